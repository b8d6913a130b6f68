"""Every family, tiny, in any precision, with a batch for it: for tests of what all must hold to."""

from functools import cache

import jax
import numpy as np
import tiny
from random_batch import random_batch

from mmjax import config, run
from mmjax.batch import Batch, Vocabulary
from mmjax.mesh import Rules, make_mesh
from mmjax.models import MODELS

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
UNTIE = ("qkv", "o", "qk_norm", "attn_norm", "ffn", "ffn_norm", "final_norm")
TOWERS = {"model__decoder__towers": 2, "model__decoder__untie": UNTIE}
BIASED = {"model__decoder__biases": ("attention", "mlp"), "model__decoder__kv_heads": 1}


def language(**changes):
    """A language model, in the place of the tiny Transfusion."""
    c = tiny.tiny_config()
    c.family, c.model = "language", {"decoder": c.model.decoder.to_dict(), "z_weight": 1e-5}
    return tiny.changed(c, changes)


VARIANTS = {
    "transfusion": tiny.tiny_config,
    "mixture of transformers": lambda: tiny.tiny_config(**TOWERS),
    "lmfusion": lambda: tiny.tiny_config(**TOWERS, model__text_rate=0.0, model__context="clean"),
    "u-net": lambda: tiny.tiny_config(model__unet=8),
    "chameleon": tiny.tiny_chameleon_config,
    "oneflow": tiny.tiny_oneflow_config,
    "dial": lambda: tiny.tiny_dial_config(
        model__text_alpha=0.5, model__form="block", data__ends=16
    ),
    "two streams": lambda: tiny.tiny_dial_config(
        base="chameleon", model__text_alpha=0.5, model__form="block", model__two_streams=True,
        data__ends=16,
    ),
    "language": lambda: language(**BIASED),
    "llava": tiny.tiny_llava_config,
    "flamingo": lambda: tiny.tiny_flamingo_config(model__added=2, model__place=-1),
    "clip": tiny.tiny_clip_config,
    "siglip": lambda: tiny.tiny_clip_config(name="siglip"),
    "codec": tiny.tiny_codec_config,
}  # fmt: skip


def in_dtype(values, dtype: str):
    """Configuration values with every dtype among them put to another."""
    if not isinstance(values, dict):
        return values
    return {k: dtype if k == "dtype" else in_dtype(v, dtype) for k, v in values.items()}


@cache
def of(name: str, dtype: str = "float32"):
    """(experiment, model) of one of VARIANTS."""
    c = VARIANTS[name]()
    c.model = in_dtype(c.to_dict()["model"], dtype)
    e = config.resolve(c, run.families())
    base = getattr(e.model, "chameleon", None) or e.model
    codes = base.codec.codes if "codec" in vars(base) and e.family in ("chameleon", "dial") else 0
    vocabulary = Vocabulary(64, codes=40, code_count=codes, masks=(7,)) if codes else Vocabulary(64)
    return e, MODELS[e.family].build(e.model, vocabulary, RULES)


def batch_of(e, rows: int, length: int = 48, slots: int = 2) -> Batch:
    """A random batch whose pictures take as many positions as those of an experiment."""
    size = e.data.patches
    return random_batch(0, rows=rows, length=length, slots=slots, patches=size, size=e.data.image)


def gradient(model, params, batch: Batch):
    """The gradient of the loss."""
    from mmjax import step

    keys = jax.random.split(jax.random.key(0), np.shape(batch.tokens)[0])
    return step.gradients(model, params, batch, keys, 1)[0]
