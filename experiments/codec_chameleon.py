"""A codec of Chameleon's shapes: 512 x 512 pixels to 32 x 32 codes of 8,192; for accelerators.

Its sizes are those of the released tokenizer; its losses those of VQGAN (Esser et al. 2021), with
the distance of EfficientNet-Lite0 features where the paper has LPIPS.

Run:  mmjax data build --src=PHOTOS --format=webdataset --dst=out/data/photos
      mmjax train --config=experiments/codec_chameleon.py --workdir=out/codec_chameleon
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The OpenMoji codec's fields at full size."""
    c = load(str(Path(__file__).parent / "codec_openmoji.py"))
    c.steps = 500_000
    c.batch = 64
    c.log_every = 100
    c.save_every = 5000
    c.data.sources = dict(
        photos=dict(path="out/data/photos", weight=1.0, template="", balance=False)
    )
    c.data.image = 512
    c.data.patch = 512
    c.data.resize = "pil_lanczos"
    c.data.length = 20
    c.data.images = 4
    c.data.workers = 8

    codec = c.model.codec
    codec.image = 512
    codec.channels = 128
    codec.multipliers = (1, 1, 2, 2, 4)
    codec.blocks = 2
    codec.latent = 256
    codec.dtype = "bfloat16"
    codec.quantiser.codes = 8192
    codec.quantiser.width = 256
    c.model.squared = 0.0
    c.model.perceptual = 1.0
    c.model.adversarial = 0.8
    c.model.adversarial_start = 100_000
    c.model.critic_width = 64
    c.model.critic_depth = 3

    c.optim.peak = 1e-4
    c.optim.warmup = 1000
    c.optim.decay = "constant"
    c.optim.b1, c.optim.b2 = 0.5, 0.9
    return c
