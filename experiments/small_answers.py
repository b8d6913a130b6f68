"""The small Transfusion, asked about pictures once it has learnt to read and draw them.

On answers alone it does not learn to see: see experiments/README.md, "Four ways to see".

Run:  as small_transfusion.py, and
      mmjax train --config=experiments/small_answers.py --workdir=out/small_answers
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The same model on questions, at a quarter of the rate."""
    c = load(str(Path(__file__).parent / "small_transfusion.py"))
    c.steps = 600
    c.start = dict(all="out/small_transfusion")
    c.data.sources.scenes.template = "sep"
    c.optim.peak = 3e-3
    c.sample.text = 12
    return c
