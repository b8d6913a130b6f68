"""OneFlow with the decoder and the data of small_transfusion.py.

Run:  mmjax train --config=experiments/small_oneflow.py --workdir=out/small_oneflow
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The Transfusion's fields with OneFlow's model and objective."""
    c = load(str(Path(__file__).parent / "small_transfusion.py"))
    base = c.model
    c.family = "oneflow"
    c.model = dict(
        decoder=base.decoder,
        image=base.image,
        patch=base.patch,
        mask="both",
        deletion="uniform",
        target="bag",
        mixed=0.2,
        prediction=base.prediction,
        bag_weight=1.0,
        rate_weight=1.0,
        empty_weight=1.0,
        image_weight=base.image_weight,
        signal_mean=base.signal_mean,
        signal_std=base.signal_std,
    )
    return c
