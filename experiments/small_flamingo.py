"""Flamingo with the decoder of small_language.py and the eyes of small_clip.py, which are frozen.

Questions about scenes of one object, 16 x 16 pixels. There is no language model to begin with: the
decoder trains with what lies between. Where one is trained already, as in the papers,
`c.start.language` names its workdir, and `c.model.train` leaves it out.

Run:  as small_clip.py, and
      mmjax train --config=experiments/small_flamingo.py --workdir=out/small_flamingo
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The language model's fields, what sees, and what lies between."""
    c = load(str(HERE / "small_language.py"))
    clip = load(str(HERE / "small_clip.py"))
    c.data.resize = clip.data.resize
    c.data.patch = c.data.image
    c.family = "flamingo"
    d, vision = c.model.decoder, clip.model.vision.to_dict()
    c.model = c.model.to_dict() | dict(
        vision=vision,
        resampler=dict(
            latents=8,
            depth=2,
            heads=4,
            head_dim=32,
            mlp=4 * vision["encoder"]["width"],
            activation="gelu",
            qk_norm=False,
            eps=1e-5,
        ),
        cross=dict(
            every=2,
            before="first",
            heads=4,
            head_dim=32,
            mlp=d.mlp,
            norm="rms",
            eps=1e-5,
            kind="swiglu",
            gate="scalar",
            qk_norm=False,
        ),
        select="all",
        added=0,
        place=-1,
        mean=clip.model.mean,
        std=clip.model.std,
        train=("resampler", "cross", "added", "embed", "decoder", "head"),
    )
    c.start = dict(vision="out/small_clip")
    return c
