"""OneFlow on scenes at 32 x 32 pixels: the data and the decoder of transfusion_scenes.py.

Run:  mmjax data build --src=scenes --dst=out/data/scenes32 --size=32 --level=3 --count=40000
      mmjax train    --config=experiments/oneflow_scenes.py --workdir=out/oneflow_scenes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """Transfusion's experiment with text by insertion, and pictures in the same patches."""
    c = load(str(HERE / "transfusion_scenes.py"))
    c.family = "oneflow"
    c.model = dict(
        decoder=c.model.decoder,
        image=c.model.image,
        patch=c.model.patch,
        mask="both",
        deletion="uniform",
        target="bag",
        mixed=0.2,
        prediction=c.model.prediction,
        bag_weight=1.0,
        rate_weight=1.0,
        empty_weight=1.0,
        image_weight=c.model.image_weight,
        signal_mean=c.model.signal_mean,
        signal_std=c.model.signal_std,
    )
    return c
