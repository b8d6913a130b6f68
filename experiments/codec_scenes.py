"""A codec for scenes at 32 x 32: 64 codes of 2,048 a picture; twenty minutes on two CPU cores.

Run:  mmjax data build --src=scenes --dst=out/data/scenes32 --size=32 --level=3 --count=40000
      mmjax train --config=experiments/codec_scenes.py --workdir=out/codec_scenes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The OpenMoji codec on another data set, with more codes: small shapes need them."""
    c = load(str(Path(__file__).parent / "codec_openmoji.py"))
    c.steps = 3000
    c.data.sources = dict(
        scenes=dict(path="out/data/scenes32", weight=1.0, template="", balance=False)
    )
    c.model.codec.quantiser.codes = 2048
    c.model.codec.quantiser.restart = 0.02
    c.optim.peak = 2e-3
    return c
