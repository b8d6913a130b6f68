"""A codec for 32 x 32 OpenMoji: 64 codes of 512 a picture; some minutes on two CPU cores.

Run:  mmjax data build --src=openmoji --dst=out/data/openmoji
      mmjax train --config=experiments/codec_openmoji.py --workdir=out/codec_openmoji
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The base's fields, for pictures alone: rows of 16 pictures of one position each."""
    c = load(str(Path(__file__).parent / "base.py"))
    c.steps = 1500
    c.batch = 2
    c.data.image = 32
    c.data.patch = 32
    c.data.length = 80
    c.data.images = 16
    c.data.caption_dropout = 1.0

    c.family = "codec"
    c.model = dict(
        codec=dict(
            image=32,
            channels=32,
            multipliers=(1, 2, 2),
            blocks=1,
            attend=(),
            latent=64,
            quantiser=dict(
                kind="vq",
                codes=512,
                width=16,
                depth=1,
                levels=(),
                commit=0.25,
                decay=0.99,
                unit=False,
                restart=0.1,
                gradient="straight",
                entropy=0.0,
                legacy_beta=False,
            ),
            dtype="float32",
        ),
        absolute=1.0,
        squared=1.0,
        perceptual=0.0,
        adversarial=0.0,
        adversarial_start=0,
        critic_width=32,
        critic_depth=2,
    )
    c.optim = dict(
        kind="adamw",
        peak=1e-3,
        warmup=100,
        decay="cosine",
        floor=0.05,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        weight_decay=0.0,
        clip=1.0,
        ema=0.0,
    )
    return c
