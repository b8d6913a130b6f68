"""The dial over the Transfusion of small_transfusion.py: patches half way to autoregression.

Run:  as small_transfusion.py, whose data it takes, and
      mmjax train --config=experiments/small_dial.py --workdir=out/small_dial
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """Text from left to right, patches along a ramp."""
    c = load(str(Path(__file__).parent / "small_transfusion.py"))
    c.family = "dial"
    c.model = dict(
        transfusion=c.model,
        chameleon=None,
        text_alpha=1.0,
        image_alpha=0.5,
        form="ramp",
        weight="elbo",
        schedule="linear",
        two_streams=False,
        clean_mask="causal",
    )
    return c
