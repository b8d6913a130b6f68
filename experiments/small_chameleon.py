"""A Chameleon with the decoder and the data of small_transfusion.py, 64 codes a picture.

Run:  as small_codec.py, and
      mmjax tokenize --config=experiments/small_chameleon.py --workdir=out/small_codec
      mmjax train    --config=experiments/small_chameleon.py --workdir=out/small_chameleon
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The Transfusion's fields with Chameleon's model and objective."""
    c = load(str(HERE / "small_transfusion.py"))
    codec = load(str(HERE / "small_codec.py"))
    base = load(str(HERE / "chameleon_scenes.py"))
    c.data.patch = 2
    c.data.shared_position = False
    c.data.coded = True
    c.family = "chameleon"
    c.model = base.model.to_dict() | dict(
        decoder=c.model.decoder.to_dict(), codec=codec.model.codec.to_dict()
    )
    c.start = dict(codec="out/small_codec")
    c.sample.guidance = base.sample.guidance
    return c
