"""Transfusion's KL-VAE: 256 x 256 pixels to 32 x 32 latents of 8 numbers (appendix A).

The paper's loss has two parts more, a perceptual distance by LPIPS, in whose place stands the
EfficientNet-Lite0 feature distance here, and one of MoCo features, which is left out.

Run:  mmjax train --config=experiments/codec_transfusion.py --workdir=out/codec_transfusion
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """Chameleon's codec with one level less and a Gaussian bottleneck."""
    c = load(str(Path(__file__).parent / "codec_chameleon.py"))
    c.steps = 1_000_000
    c.data.image = 256
    c.data.patch = 256
    c.data.resize = "pil_box"
    codec = c.model.codec
    codec.image, codec.multipliers, codec.latent = 256, (1, 2, 4, 4), 512
    q = codec.quantiser
    q.kind, q.codes, q.width, q.commit, q.restart, q.decay = "kl", 0, 8, 1e-6, 0.0, 0.0
    c.model.adversarial, c.model.adversarial_start = 0.5, 50_000
    return c
