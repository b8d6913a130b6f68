r"""The decoder of small_transfusion.py on text alone, as a start for models that learn to see.

Run:  mmjax data build --src=prose --dst=out/data/prose
      mmjax data tokenizer --src=out/data/prose,out/data/scenes16 \
        --dst=out/data/small_tokenizer.json
      mmjax train --config=experiments/small_text.py --workdir=out/small_text
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The small Transfusion without pictures."""
    c = load(str(Path(__file__).parent / "small_transfusion.py"))
    c.steps = 600
    c.data.sources = dict(prose=dict(path="out/data/prose", weight=1.0, template="", balance=False))
    c.data.tokenizer = "out/data/small_tokenizer.json"
    c.data.length = 512
    c.data.images = 1
    c.batch = 4
    return c
