"""A KL codec for scenes at 32 x 32: 8 x 8 latents of 4 numbers; some minutes on two CPU cores.

Run:  mmjax data build --src=scenes --dst=out/data/scenes32 --size=32 --level=3 --count=40000
      mmjax train --config=experiments/codec_kl_scenes.py --workdir=out/codec_kl_scenes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The codec of scenes with latents in place of codes."""
    c = load(str(Path(__file__).parent / "codec_scenes.py"))
    c.steps = 1500
    c.model.codec.quantiser.kind = "kl"
    c.model.codec.quantiser.codes = 0
    c.model.codec.quantiser.width = 4
    c.model.codec.quantiser.commit = 1e-5  # of the divergence, summed over 256 numbers
    c.model.codec.quantiser.restart = 0.0
    return c
