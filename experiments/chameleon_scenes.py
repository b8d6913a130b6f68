"""Chameleon on scenes at 32 x 32: 4 million parameters, about an hour on two CPU cores.

Run:  mmjax data build --src=scenes --dst=out/data/scenes32 --size=32 --level=3 --count=40000
      mmjax train    --config=experiments/codec_scenes.py --workdir=out/codec_scenes
      mmjax tokenize --config=experiments/chameleon_scenes.py --workdir=out/codec_scenes
      mmjax train    --config=experiments/chameleon_scenes.py --workdir=out/chameleon_scenes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The base's fields with Chameleon's model and objective."""
    c = load(str(HERE / "base.py"))
    codec = load(str(HERE / "codec_scenes.py"))
    c.steps = 8000
    c.save_every = 500
    c.data.sources = codec.data.sources
    c.data.image = codec.model.codec.image
    c.data.patch = 4  # 64 codes a picture
    c.data.length = 384
    c.data.images = 6
    c.data.text_first = 0.5
    c.data.shared_position = False
    c.data.coded = True

    decoder = c.model.decoder
    decoder.width = 192
    decoder.depth = 6
    decoder.unroll = 6
    decoder.mlp = 512
    c.family = "chameleon"
    c.model = dict(
        decoder=decoder,
        codec=codec.model.codec,
        z_weight=1e-5,
        text_weight=1.0,
        image_weight=1.0,
    )
    c.start = dict(codec="out/codec_scenes")

    c.optim.peak = 1.2e-2
    c.optim.warmup = 100
    c.optim.ema = 0.99
    c.sample.guidance = 4.0
    c.sample.text = 80
    return c
