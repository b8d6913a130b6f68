"""A Chameleon with the decoder and the data of small_openmoji.py, 64 codes a picture.

Run:  the data of small_openmoji.py, and
      mmjax train    --config=experiments/codec_openmoji.py       --workdir=out/codec_openmoji
      mmjax tokenize --config=experiments/small_openmoji_codes.py --workdir=out/codec_openmoji
      mmjax train    --config=experiments/small_openmoji_codes.py --workdir=out/small_openmoji_codes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The small Chameleon's fields on OpenMoji."""
    c = load(str(HERE / "small_chameleon.py"))
    base = load(str(HERE / "small_openmoji.py"))
    c.data.sources = base.data.sources
    c.data.image, c.data.patch = 32, 4
    c.model.codec = load(str(HERE / "codec_openmoji.py")).model.codec
    c.start.codec = "out/codec_openmoji"
    c.evals = base.evals
    return c
