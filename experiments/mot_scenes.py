"""Mixture-of-Transformers: Chameleon on scenes with weights of their own for words and pictures.

All weights but embeddings and output are untied; the work a token takes is that of the dense model.

Run:  as chameleon_scenes.py, whose data and codec it takes, and
      mmjax train --config=experiments/mot_scenes.py --workdir=out/mot_scenes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """chameleon_scenes.py with two towers."""
    c = load(str(HERE / "chameleon_scenes.py"))
    decoder = c.model.decoder
    decoder.towers = 2
    decoder.untie = ("qkv", "o", "qk_norm", "attn_norm", "ffn", "ffn_norm", "final_norm")
    decoder.grouped = True
    decoder.unroll = 1  # the pieces of a grouped layer take long to compile: do it once
    return c
