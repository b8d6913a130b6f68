"""The OpenMoji codec on VQGAN's losses: features and a critic beside pixels; sharp, but dearer.

Needs the extra `perceptual`, `pip install -e .[perceptual]`.

Run:  mmjax data build --src=openmoji --dst=out/data/openmoji
      mmjax train --config=experiments/codec_gan_openmoji.py --workdir=out/codec_gan_openmoji
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The codec's fields; the critic joins when pictures are roughly there."""
    c = load(str(Path(__file__).parent / "codec_openmoji.py"))
    c.steps = 1200
    c.model.squared = 0.0
    c.model.perceptual = 1.0
    c.model.adversarial = 0.8
    c.model.adversarial_start = 600
    c.optim.b1, c.optim.b2 = 0.5, 0.9
    return c
