"""A small Transfusion and a small OneFlow with random weights, for tests of their pieces."""

import jax
import numpy as np
from random_batch import VOCABULARY

from mmjax.batch import Batch
from mmjax.mesh import Rules, make_mesh
from mmjax.models import oneflow, transfusion
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


def oneflow_config(**changes) -> oneflow.Config:
    """Pictures of 4 x 4 pixels in four patches."""
    values = dict(
        decoder=decoder_config(), image=4, patch=2, mask="both", deletion="uniform", target="bag",
        mixed=0.5, prediction="velocity", bag_weight=1.0, rate_weight=1.0, empty_weight=1.0,
        image_weight=1.0, signal_mean=0.6, signal_std=0.6,
    )  # fmt: skip
    return oneflow.Config(**values | changes)


def oneflow_model(c: oneflow.Config):
    """(model, params); layers that start at zero, and would hide leaks, are random."""
    model = oneflow.build(c, VOCABULARY, Rules(make_mesh(1, 1, 1, jax.devices()[:1])))
    params = jax.jit(model.init)(jax.random.key(0))
    for part, name in (("patch_out", "patch"), ("gaps", "w"), ("gaps", "bias")):
        zeros = params[part][name]
        params[part][name] = 0.3 * jax.random.normal(jax.random.key(1), zeros.shape)
    return model, params


def story(rows: int) -> Batch:
    """The same document in every row: three words, a picture, three words."""
    line = [
        VOCABULARY.bos,
        7,
        8,
        9,
        VOCABULARY.boi,
        *[VOCABULARY.pad] * 4,
        VOCABULARY.eoi,
        10,
        11,
        12,
        VOCABULARY.eos,
    ]
    patch = np.array([0] * 5 + [1] * 4 + [0] * 5, np.int32)
    place = np.arange(len(line), dtype=np.int32)
    fields = np.array(line, np.int32), patch, np.ones_like(patch), place, patch
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)
    row = Batch(*fields, (place > 0).astype(np.float32), pixels)
    return jax.tree.map(lambda x: np.repeat(x[None], rows, axis=0), row)
