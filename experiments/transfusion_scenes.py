"""Transfusion on scenes at 32 x 32 pixels: the data and the decoder of chameleon_scenes.py.

Run:  mmjax data build --src=scenes --dst=out/data/scenes32 --size=32 --level=3 --count=40000
      mmjax train    --config=experiments/transfusion_scenes.py --workdir=out/transfusion_scenes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """Chameleon's experiment with the base's way with images."""
    c = load(str(HERE / "chameleon_scenes.py"))
    base = load(str(HERE / "base.py"))
    base.model.decoder = c.model.decoder
    base.model.image = c.data.image
    base.model.patch = c.data.patch
    c.family = "transfusion"
    c.model = base.model
    c.data.coded = False
    c.data.shared_position = True
    c.start = dict()
    c.sample.guidance = 2.5
    return c
