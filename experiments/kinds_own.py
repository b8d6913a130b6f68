"""Transfusion on pictures of three shapes: square, wide and tall, from folders of any aspect.

A picture takes the shape nearest its own aspect, so the set should hold some of each; scenes are
square, and all of theirs are. `mmjax sample --kind=wide` draws a wide one.

Run:  mmjax data build --src=FOLDER --format=folder --dst=out/data/own
      mmjax train      --config=experiments/kinds_own.py --workdir=out/kinds_own
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The experiment on one's own pictures, with two shapes more."""
    c = load(str(Path(__file__).parent / "own.py"))
    side, patch = c.data.image, c.data.patch
    shapes = dict(wide=(side, 2 * side), tall=(2 * side, side))
    c.data.kinds = {n: dict(height=h, width=w, patch=patch) for n, (h, w) in shapes.items()}
    c.model.kinds = {n: dict(height=h, width=w) for n, (h, w) in shapes.items()}
    c.data.length = 2 * c.data.length
    return c
