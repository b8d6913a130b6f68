"""CLIP on scenes of one object at 16 x 16 pixels: the eyes of small_llava.py and others.

Run:  mmjax data build --src=scenes --dst=out/data/scenes16 --size=16 --level=3 --most=2
        --count=40000
      mmjax train --config=experiments/small_clip.py --workdir=out/small_clip
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """clip_openmoji.py on other data, with half the layers."""
    c = load(str(HERE / "clip_openmoji.py"))
    small = load(str(HERE / "small_transfusion.py"))
    c.data.sources = small.data.sources
    c.data.length = small.data.length
    c.data.image = c.data.patch = 16
    c.model.vision.update(image=16, patch=4)
    for tower in (c.model.vision, c.model.text):
        tower.encoder.update(depth=2, unroll=2)
    c.model.text.length = 64
    c.evals = small.evals
    return c
