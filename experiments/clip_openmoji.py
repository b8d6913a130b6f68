"""CLIP on OpenMoji at 32 x 32 pixels: which picture belongs to which caption?

Run:  mmjax data build --src=openmoji --dst=out/data/openmoji
      mmjax train --config=experiments/clip_openmoji.py --workdir=out/clip_openmoji
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """Rows of eight pairs, a picture being one position of them."""
    c = load(str(Path(__file__).parent / "base.py"))
    c.batch = 16
    c.data.image = c.data.patch = 32
    c.data.images = 8
    c.data.caption_dropout = 0.0

    c.family = "clip"
    encoder = dict(
        width=128,
        depth=4,
        heads=4,
        mlp=512,
        activation="quick_gelu",
        eps=1e-5,
        remat=False,
        unroll=4,
        dtype="float32",
    )
    c.model = dict(
        vision=dict(
            encoder=encoder,
            image=32,
            patch=8,
            pool="token",
            positions="learned",
            patch_bias=False,
            pre_norm=True,
        ),
        text=dict(encoder=encoder, length=32, causal=True, pool="end"),
        embed=128,
        project="linear",
        objective="softmax",
        scale=1 / 0.07,
        bias=0.0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    )
    c.optim.kind = "adamw"
    c.optim.peak = 1e-3
    c.optim.weight_decay = 0.2
    c.optim.b2 = 0.98
    return c
