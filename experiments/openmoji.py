"""The quickstart at 32 x 32 pixels: about an hour on two CPU cores.

Run:  mmjax train --config=experiments/openmoji.py --workdir=out/openmoji
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """Ten fields of the quickstart changed."""
    c = load(str(Path(__file__).parent / "quickstart.py"))
    c.steps = 2000
    c.model.image = 32
    c.data.image = 32
    c.data.length = 192
    c.data.images = 4
    c.batch = 10
    c.model.decoder.width = 192
    c.model.decoder.depth = 6
    c.model.decoder.unroll = 6
    c.model.decoder.mlp = 512
    return c
