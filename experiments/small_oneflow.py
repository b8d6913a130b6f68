"""OneFlow with the decoder and the data of small_transfusion.py.

Run:  as small_transfusion.py, whose data it takes, and
      mmjax train --config=experiments/small_oneflow.py --workdir=out/small_oneflow
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The small Transfusion's fields with OneFlow's model and objective."""
    c = load(str(HERE / "small_transfusion.py"))
    model = load(str(HERE / "oneflow_scenes.py")).model
    for name in ("decoder", "image", "patch"):
        model[name] = c.model[name]
    c.family = "oneflow"
    c.model = model
    return c
