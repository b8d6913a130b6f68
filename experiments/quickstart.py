"""32 x 32 images from captions, and captions from images: minutes on two CPU cores.

Run:  mmjax data build --src=openmoji --dst=out/data/openmoji
      mmjax train --config=experiments/quickstart.py --workdir=out/quickstart
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The base with larger images; it reads them without noise."""
    c = load(str(Path(__file__).parent / "base.py"))
    c.steps = 1800
    c.data.image = c.model.image = 32
    c.data.patch = c.model.patch = 8
    # One source teaches to draw, the other to write: its images have no loss and no noise. Noisy
    # ones, before text, took most of the loss and hid the skin tone that the caption has to name.
    c.data.text_first = 1.0
    draw = c.data.sources.openmoji
    c.data.sources.captions = ConfigDict(draw.to_dict() | dict(template="caption"))
    c.model.time_mean = -1.0  # larger patches hide more: more noise
    c.model.image_weight = 3.0
    c.optim.peak = 6e-3
    c.sample.guidance = 2.0
    return c
