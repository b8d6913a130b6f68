"""OpenMoji at 32 x 32 pixels in 64 patches, a larger decoder: ten minutes to an hour on two cores.

Run:  mmjax train --config=experiments/openmoji.py --workdir=out/openmoji
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The base with larger images and a larger model."""
    c = load(str(Path(__file__).parent / "base.py"))
    c.steps = 2500
    c.batch = 6
    c.model.image = 32
    c.data.image = 32
    c.data.length = 256
    c.model.decoder.width = 192
    c.model.decoder.depth = 6
    c.model.decoder.unroll = 6
    c.model.decoder.mlp = 512
    return c
