"""Norms against NumPy in f64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.norm import EPS, layer_norm, rms_norm

RNG = np.random.default_rng(0)
X = RNG.normal(1.0, 3.0, (2, 3, 4, 8)).astype(np.float32)
SCALE, BIAS = RNG.normal(size=(2, 8)).astype(np.float32)


def numpy_rms(x, scale):
    x = np.asarray(x, float)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * scale


def numpy_layer(x, scale, bias):
    x = np.asarray(x, float)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * scale + bias


def test_rms_norm():
    got = rms_norm(X, SCALE)
    np.testing.assert_allclose(got, numpy_rms(X, SCALE), atol=1e-5)
    assert np.abs(np.asarray(got) - numpy_layer(X, SCALE, 0)).max() > 0.1  # no mean is taken off


@pytest.mark.parametrize("lead", [(), (1,), (4,)])
def test_layer_norm_broadcasts_from_the_right(lead):
    """One pair for all heads, or one a head."""
    scale, bias = RNG.normal(size=(2, *lead, 8)).astype(np.float32)
    got = layer_norm(X, scale, bias)
    np.testing.assert_allclose(got, numpy_layer(X, scale, bias), atol=1e-5)
    assert np.abs(np.asarray(got) - numpy_layer(X, scale, 0)).max() > 0.1


def test_rms_norm_forgets_the_size_and_layer_norm_the_offset_too():
    np.testing.assert_allclose(rms_norm(9 * X, SCALE), rms_norm(X, SCALE), atol=1e-4)
    np.testing.assert_allclose(
        layer_norm(9 * X + 5, SCALE, BIAS), layer_norm(X, SCALE, BIAS), atol=1e-4
    )
    assert np.abs(np.asarray(rms_norm(X + 5, SCALE)) - np.asarray(rms_norm(X, SCALE))).max() > 0.1


@pytest.mark.parametrize(
    "norm", [lambda x: rms_norm(x, SCALE), lambda x: layer_norm(x, SCALE, BIAS)]
)
def test_a_row_of_zeros_is_finite_with_its_gradient(norm):
    zero = np.zeros((1, 8), np.float32)
    assert np.isfinite(norm(zero)).all()
    assert np.isfinite(jax.grad(lambda x: norm(x).sum())(zero)).all()


def test_bf16_is_normalised_in_f32():
    """Squares of 300 lose everything below 1 in bf16: the mean must not be taken there."""
    x = jnp.asarray(X * 100, jnp.bfloat16)
    got = rms_norm(x, jnp.asarray(SCALE, jnp.bfloat16))
    assert got.dtype == jnp.bfloat16
    want = numpy_rms(np.asarray(x, np.float32), np.asarray(jnp.asarray(SCALE, jnp.bfloat16), float))
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=2**-8)
