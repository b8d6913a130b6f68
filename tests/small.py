"""A small Transfusion with random weights, for tests of its pieces."""

import jax
from random_batch import VOCABULARY

from mmjax.mesh import Rules, make_mesh
from mmjax.models import transfusion
from mmjax.models.decoder import DecoderConfig


def decoder_config(**changes) -> DecoderConfig:
    """Two layers of width 32."""
    values = dict(
        width=32, depth=2, heads=4, kv_heads=2, mlp=48, qk_norm=True, norm="pre", dropout=0.0,
        theta=1e4, remat=False, unroll=1, dtype="float32",
        towers=1, untie=(), untied_layers=(), grouped=False,
    )  # fmt: skip
    return DecoderConfig(**values | changes)


def transfusion_config(decoder: dict | None = None, **changes) -> transfusion.Config:
    """Pictures of 4 x 4 pixels in four patches."""
    values = dict(
        decoder=decoder_config(**decoder or {}), image=4, patch=2, codec=None, unet=0,
        picture_mask="both", path="flow", prediction="data", target="velocity", image_weight=5.0,
        z_weight=1e-5, time_mean=0.0, time_std=1.0, time_shift=1.0, context="noisy",
        context_time=0.5, signal_mean=0.6, signal_std=0.6, text_rate=1.0,
    )  # fmt: skip
    return transfusion.Config(**values | changes)


def make(c: transfusion.Config):
    """(model, params); the output layer, which starts at zero and would hide leaks, is random."""
    model = transfusion.build(c, VOCABULARY, Rules(make_mesh(1, 1, 1, jax.devices()[:1])))
    params = jax.jit(model.init)(jax.random.key(0))
    out = params["patch_out"]
    for part, name in ((out, "patch"), (out.get("up", {}), "out")):
        if name in part:
            part[name] = 0.3 * jax.random.normal(jax.random.key(1), part[name].shape)
    return model, params
