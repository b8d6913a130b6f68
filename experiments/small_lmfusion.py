"""LMFusion: the text model of small_text.py learns to see and draw, its own weights frozen.

Run:  as small_text.py, and
      mmjax train --config=experiments/small_lmfusion.py --workdir=out/small_lmfusion
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The small Transfusion with a tower for images, started from text."""
    c = load(str(HERE / "small_transfusion.py"))
    text = load(str(HERE / "small_text.py"))
    c.data.tokenizer = text.data.tokenizer
    # Read by the evaluation alone.
    c.data.sources.docstrings = text.data.sources.docstrings
    c.data.stages = dict(whole=dict(until=1.0, weights=dict(scenes=1.0, docstrings=0.0)))
    c.model.decoder.towers = 2
    c.model.decoder.untie = (
        "qkv", "o", "qk_norm", "attn_norm", "ffn", "ffn_norm", "final_norm",
    )  # fmt: skip
    c.model.text_rate = 0.0
    c.start = dict(language="out/small_text")
    return c
