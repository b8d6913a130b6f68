"""Your own pictures with captions, at 32 x 32: some minutes on two CPU cores.

Run:  mmjax data build --src=PHOTOS --format=folder --dst=out/data/own
      mmjax train --config=experiments/own.py --workdir=out/own
      mmjax data describe --src=out/data/own --signal --size=32
The last measures model.signal_mean and model.signal_std of one's own images.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The quickstart on another data set."""
    c = load(str(Path(__file__).parent / "quickstart.py"))
    own = dict(path="out/data/own", weight=1.0, template="", balance=False)
    c.data.sources = dict(own=own, captions=own | dict(template="caption"))
    # Mean and deviation of pixels in [-1, 1]: those of photographs, about.
    c.model.signal_mean = 0.0
    c.model.signal_std = 0.5
    return c
