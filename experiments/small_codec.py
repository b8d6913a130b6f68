"""A codec for scenes at 16 x 16 pixels: 8 x 8 codes of 512; a minute or two on two CPU cores.

Run:  the data of small_transfusion.py, and
      mmjax train --config=experiments/small_codec.py --workdir=out/small_codec
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The codec of scenes, of pictures half as large, with one level less."""
    c = load(str(Path(__file__).parent / "codec_scenes.py"))
    c.steps = 1000
    c.data.sources.scenes.path = "out/data/scenes16"
    c.data.image = c.data.patch = c.model.codec.image = 16
    c.model.codec.multipliers = (1, 2)
    c.model.codec.quantiser.codes = 512
    return c
