"""A Transfusion of a million parameters on real pictures, OpenMoji at 32 x 32 pixels.

Run:  mmjax data build --src=openmoji --dst=out/data/openmoji
      mmjax train --config=experiments/small_openmoji.py --workdir=out/small_openmoji
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The small Transfusion's fields on the base's data, 64 patches a picture."""
    c = load(str(HERE / "small_transfusion.py"))
    c.data.sources = load(str(HERE / "base.py")).data.sources
    c.data.image = c.model.image = 32
    c.evals.drawings = 256
    return c
