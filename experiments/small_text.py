"""The decoder of small_transfusion.py on text alone, as a start for models that learn to see.

Run:  the data of small_transfusion.py, and
      python experiments/evidence/docstrings.py
      mmjax train --config=experiments/small_text.py --workdir=out/small_text
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The small Transfusion without pictures."""
    c = load(str(Path(__file__).parent / "small_transfusion.py"))
    c.steps = 600
    text = dict(path="out/data/docstrings", weight=1.0, template="", balance=False)
    c.data.sources = dict(docstrings=text)
    c.data.tokenizer = "out/data/small_tokenizer.json"
    c.data.images = 1
    return c
