"""LLaVA with the decoder of small_language.py and the eyes of small_clip.py, which are frozen.

Questions about scenes of one object, 16 x 16 pixels. There is no language model to begin with: one
stage trains the decoder with the projector.

Run:  as small_clip.py, and
      mmjax train --config=experiments/small_llava.py --workdir=out/small_llava
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The language model's fields, and what sees."""
    c = load(str(HERE / "small_language.py"))
    clip = load(str(HERE / "small_clip.py"))
    c.data.resize = clip.data.resize
    c.family = "llava"
    c.model = c.model.to_dict() | dict(
        vision=clip.model.vision.to_dict(),
        layers=(-2,),
        select="patches",
        activation="gelu",
        mean=clip.model.mean,
        std=clip.model.std,
        train=("projector", "embed", "decoder", "head"),
    )
    c.start = dict(vision="out/small_clip")
    return c
