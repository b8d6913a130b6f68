"""Reconstruction alignment of small_transfusion.py, a short training after training.

Run:  as small_transfusion.py, and
      mmjax train --config=experiments/small_reca.py --workdir=out/small_reca
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The small Transfusion with the documents and the optimizer of reca_scenes.py."""
    c = load(str(HERE / "small_transfusion.py"))
    base = load(str(HERE / "reca_scenes.py"))
    path = c.data.sources.scenes.path
    c.steps = base.steps
    c.data.sources = base.data.sources
    c.data.sources.scenes.path = c.data.sources.captions.path = path
    c.data.bottleneck = base.data.bottleneck
    c.optim = base.optim
    c.start = dict(all="out/small_transfusion")
    return c
