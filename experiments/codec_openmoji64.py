"""A codec for 64 x 64 OpenMoji: 64 codes of 512 a picture.

Run:  mmjax data build --src=openmoji --dst=out/data/openmoji
      mmjax train --config=experiments/codec_openmoji64.py --workdir=out/codec_openmoji64
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The codec for 32 x 32 with one level more, and thinner."""
    c = load(str(Path(__file__).parent / "codec_openmoji.py"))
    c.data.image = 64
    c.data.patch = 64
    c.model.codec.image = 64
    c.model.codec.channels = 16
    c.model.codec.multipliers = (1, 2, 4, 4)
    return c
