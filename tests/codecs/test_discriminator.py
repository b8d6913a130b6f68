"""PatchGAN and its losses against their definitions, written out plainly."""

from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.codecs.discriminator import (
    PatchGAN,
    adaptive_weight,
    generator_loss,
    hinge,
    smallest,
)
from mmjax.mesh import Rules, make_mesh

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
RNG = np.random.default_rng(0)
ONE = PatchGAN(RULES, "float32", 2, 1)
X = RNG.uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)
REAL, FAKE = RNG.normal(0, 2, (2, 4, 2, 3, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """Of ONE, every number its own, so that a scale or bias left out shows."""
    tree = nn.unbox(jax.eval_shape(ONE.init, jax.random.key(0), X))["params"]
    return jax.tree.map(lambda p: RNG.normal(0, 0.5, p.shape).astype(np.float32), tree)


@jax.jit
def judge(params, x):
    return ONE.apply({"params": params}, x)


def conv_by_loop(p, x, stride):
    """4 x 4 with one row and column of zeros around; [h, w, c] -> [h', w', features]."""
    x = np.pad(x.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    side = (len(x) - 4) // stride + 1
    y = np.zeros((side, side, p["w"].shape[-1]))
    for i in range(side):
        for j in range(side):
            patch = x[i * stride : i * stride + 4, j * stride : j * stride + 4]
            y[i, j] = np.einsum("hwc,hwcf->f", patch, p["w"]) + p["bias"]
    return y


def test_it_is_its_definition(params):
    """Depth 1: stride 2; stride 1 with a norm of as many groups as channels, 4; to one channel."""

    def leaky(x):
        return np.where(x > 0, x, 0.2 * x)

    found = np.asarray(judge(params, X))
    for x, got in zip(X, found, strict=True):
        y = leaky(conv_by_loop(params["conv0"], x, 2))
        y = conv_by_loop(params["conv1"], y, 1)
        y = (y - y.mean((0, 1))) / np.sqrt(y.var((0, 1)) + 1e-6)
        y = leaky(y * params["norm1_scale"] + params["norm1_bias"])
        np.testing.assert_allclose(got, conv_by_loop(params["out"], y, 1), rtol=1e-3, atol=1e-4)
    assert found.shape == (3, 2, 2, 1)
    assert abs(found[0] - found[1]).max() > 1e-2


def test_no_picture_depends_on_another(params):
    other = np.concatenate([X[:1], -X[1:]])
    a, b = judge(params, X), judge(params, other)
    np.testing.assert_allclose(a[0], b[0], atol=1e-6)
    assert (abs(a - b)[1:].max((1, 2, 3)) > 1e-2).all()


def shapes(side: int, depth: int, dtype: str = "float32"):
    module = PatchGAN(RULES, dtype, 4, depth)
    x = jnp.zeros((2, side, side, 3))
    tree = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x))
    return tree["params"], jax.eval_shape(module.apply, tree, x)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_smallest_picture_has_one_patch(depth):
    least = smallest(depth)
    assert shapes(least, depth)[1].shape == (2, 1, 1, 1)
    assert shapes(least - 1, depth)[1].size == 0
    assert least <= 32


def test_channels_double_up_to_eight_times():
    tree = shapes(32, 5)[0]
    kernels = [tree[f"conv{i}"]["w"].shape for i in range(6)] + [tree["out"]["w"].shape]
    want = [3, 4, 8, 16, 32, 32, 32, 1]
    assert kernels == [(4, 4, *pair) for pair in pairwise(want)]
    assert "norm0_scale" not in tree and tree["norm5_scale"].shape == (32,)


def test_logits_are_f32_at_any_precision():
    out = shapes(16, 2, "bfloat16")[1]
    assert out.shape == (2, 2, 2, 1) and out.dtype == jnp.float32


def test_losses_by_a_loop_over_patches():
    found, told = hinge(REAL, FAKE), generator_loss(FAKE)
    for n in range(4):
        a = [max(0.0, 1 - float(x)) for x in REAL[n].ravel()]
        b = [max(0.0, 1 + float(x)) for x in FAKE[n].ravel()]
        np.testing.assert_allclose(found[n], (sum(a) / 6 + sum(b) / 6) / 2, rtol=1e-5)
        np.testing.assert_allclose(told[n], -FAKE[n].sum() / 6, rtol=1e-5)
    assert found.shape == told.shape == (4,)
    assert abs(hinge(FAKE, REAL) - found).min() > 1e-2  # which is which counts
    sure = jnp.full((1, 2, 2, 1), 1.5)
    assert hinge(sure, -sure)[0] == 0.0 and hinge(-sure, sure)[0] == 2.5


def test_the_adaptive_weight_is_a_ratio_of_norms():
    g, h = jnp.asarray([[3.0, 0.0], [0.0, 4.0]]), jnp.asarray([[0.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(adaptive_weight(g, h), 5.0 / 2.0001, rtol=1e-6)
    np.testing.assert_allclose(adaptive_weight(h, g), 2.0 / 5.0001, rtol=1e-6)
    assert adaptive_weight(g, h, most=2.0) == 2.0
    assert adaptive_weight(g, 0.0 * h) == 1e4  # 5 / 1e-4 is more
    assert adaptive_weight(0.0 * g, h) == 0.0


def test_the_adaptive_weight_passes_no_gradient_on():
    g = jnp.asarray([3.0, 4.0])
    np.testing.assert_array_equal(jax.grad(lambda x: adaptive_weight(x, g))(g), 0.0)
    both = jax.grad(lambda x: adaptive_weight(x, g) * x.sum())(g)
    np.testing.assert_allclose(both, 5.0 / 5.0001, rtol=1e-6)  # the weight as a constant
