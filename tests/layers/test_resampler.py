"""The resampler against plain numpy, and the gated block against its equations."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.error import UserError
from mmjax.layers.cross import Cross, CrossConfig
from mmjax.layers.resampler import Resampler, ResamplerConfig
from mmjax.mesh import Rules, make_mesh

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
C = ResamplerConfig(3, 2, 2, 4, 12, "gelu", qk_norm=False, eps=1e-5)
CROSS = CrossConfig(
    every=1, before="first", heads=2, head_dim=4, mlp=12, norm="layer", eps=1e-5, kind="gelu",
    gate="vector", qk_norm=False,
)  # fmt: skip
ERF = np.vectorize(math.erf)


def drawn(layer, *inputs):
    shapes = jax.eval_shape(layer.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: 0.5 * rng.normal(size=x.value.shape), shapes, is_leaf=boxed)


def boxed(x):
    return hasattr(x, "names")


def normed(p, name, x):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * p[f"{name}_scale"] + p[f"{name}_bias"]


def gelu(x):
    return x * (1 + ERF(x / np.sqrt(2))) / 2


def attention(p, asks, told, allowed=None):
    q, k, v = (
        np.einsum("ld,dhk->lhk", x, p[n]) for x, n in ((asks, "q"), (told, "k"), (told, "v"))
    )
    scores = np.exp(np.einsum("lhk,mhk->hlm", q, k) * q.shape[-1] ** -0.5)
    scores = scores if allowed is None else scores * allowed
    total = scores.sum(-1, keepdims=True)
    y = np.einsum("hlm,mhk->lhk", np.divide(scores, total, where=total > 0, out=0 * scores), v)
    return np.einsum("lhk,hkd->ld", y, p["o"])


def test_resampler_is_its_equations():
    """OpenFlamingo's: keys of the latents behind those of the features, GELU, no biases."""
    layer = Resampler(RULES, "float32", C)
    x = np.random.default_rng(0).normal(size=(2, 5, 8))
    p = drawn(layer, jnp.asarray(x, jnp.float32))
    floats = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), p)
    found = jax.jit(layer.apply)({"params": floats}, jnp.asarray(x, jnp.float32))
    for picture, mine in zip(x, found, strict=True):
        latents = p["latents"]
        for n in range(2):
            b = jax.tree.map(lambda w, n=n: w[n], p["blocks"])
            asks, media = normed(b, "latent_norm", latents), normed(b, "media_norm", picture)
            latents = latents + attention(b, asks, np.concatenate([media, asks]))
            hidden = gelu(normed(b, "mlp_norm", latents) @ b["mlp"]["up"])
            latents = latents + hidden @ b["mlp"]["down"]
        np.testing.assert_allclose(mine, normed(p, "final_norm", latents), atol=2e-5)
    with pytest.raises(UserError, match=r"resampler.latents=0 must be at least 1"):
        replace(C, latents=0)
    with pytest.raises(UserError, match=r"resampler.activation='tanh' is unknown"):
        replace(C, activation="tanh")


def test_block_is_its_equations():
    """OpenFlamingo's: one position sees one picture, one both, one none; words follow the gates."""
    layer, rng = Cross(RULES, "float32", CROSS), np.random.default_rng(0)
    x, media = rng.normal(size=(1, 3, 6)), rng.normal(size=(1, 2, 4, 8))
    looks = np.array([[[True, False], [True, True], [False, False]]])
    given = jnp.asarray(x, jnp.float32), jnp.asarray(media, jnp.float32), jnp.asarray(looks)
    p = drawn(layer, *given)
    floats = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), p)
    found, held = jax.jit(layer.apply)({"params": floats}, *given)
    allowed = np.repeat(looks[0], 4, axis=1)
    y = attention(
        p["attention"], normed(p, "attention_norm", x[0]), media[0].reshape(8, 8), allowed
    )
    assert np.abs(y[:2]).min() > 0 and np.abs(y[2]).max() == 0
    want = x[0] + np.tanh(p["attention_gate"]) * y
    hidden = gelu(normed(p, "mlp_norm", want) @ p["mlp"]["up"])
    want = want + np.tanh(p["mlp_gate"]) * (hidden @ p["mlp"]["down"])
    np.testing.assert_allclose(found[0], want, atol=2e-5)
    again, _ = jax.jit(layer.apply)({"params": floats}, given[0], None, given[2], held)
    np.testing.assert_allclose(again, found, atol=1e-6)
