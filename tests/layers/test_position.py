"""RoPE turns by position and knows only differences; time features tell times apart."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.layers.position import rope_angles, rotate, scaled, time_features

WIDTH, THETA = 8, 1e4


def turned(x, position):
    """x [k] at one position."""
    angles = rope_angles(np.array([[position]], np.int32), WIDTH, THETA)
    return np.asarray(rotate(x[None, None, None], angles))[0, 0, 0]


def pair(seed):
    return np.random.default_rng(seed).normal(size=(2, WIDTH)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 300), st.integers(0, 300), st.integers(0, 500))
def test_products_depend_on_the_difference_alone(seed, i, j, shift):
    q, k = pair(seed)
    here = turned(q, i) @ turned(k, j)
    there = turned(q, i + shift) @ turned(k, j + shift)
    np.testing.assert_allclose(here, there, atol=1e-3)


def test_another_difference_is_another_product():
    q, k = pair(0)
    products = [turned(q, 7) @ turned(k, 7 + d) for d in range(6)]
    assert np.abs(np.diff(np.sort(products))).min() > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9999), st.integers(0, 5000))
def test_rotation_keeps_norms(seed, position):
    x = pair(seed)[0]
    np.testing.assert_allclose(np.linalg.norm(turned(x, position)), np.linalg.norm(x), rtol=1e-5)
    assert position == 0 or np.abs(turned(x, position) - x).max() > 1e-6


def test_halves_turn_by_their_own_frequency():
    """Coordinate c and c + k/2 are one plane, turned by position * theta^(-2c/k)."""
    x = pair(3)[0].astype(float)
    for position in (0, 1, 13):
        plane = x[: WIDTH // 2] + 1j * x[WIDTH // 2 :]
        plane = plane * np.exp(1j * position * THETA ** (-2 * np.arange(WIDTH // 2) / WIDTH))
        want = np.concatenate([plane.real, plane.imag])
        np.testing.assert_allclose(turned(x.astype(np.float32), position), want, atol=1e-5)


def test_rows_have_positions_of_their_own():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, WIDTH)).astype(np.float32)
    position = np.array([[0, 1, 2], [5, 5, 9]], np.int32)
    got = np.asarray(rotate(x, rope_angles(position, WIDTH, THETA)))
    for r in range(2):
        for i in range(3):
            for head in range(4):
                want = turned(x[r, i, head], position[r, i])
                np.testing.assert_allclose(got[r, i, head], want, atol=1e-6)


@pytest.mark.parametrize("shape", [(1001,), (7, 11, 13)])
def test_time_features_tell_a_thousand_times_apart(shape):
    t = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32)
    features = np.asarray(time_features(t.reshape(shape), 64))
    assert features.shape == (*shape, 64) and features.dtype == np.float32
    flat = features.reshape(-1, 64).astype(float)
    near = np.linalg.norm(np.diff(flat, axis=0), axis=1)
    assert near.min() > 0.1
    product = flat @ flat.T
    np.fill_diagonal(product, 0)
    assert product.max() < 32 - 1e-3  # every one has the squared norm 32
    np.testing.assert_allclose((flat**2).sum(1), 32, rtol=1e-5)


def test_scaled_frequencies():
    """Many turns in a row of training stay, few are divided, and the order is kept."""
    turns = np.array([100.0, 4.0, 2.5, 1.0, 0.01], np.float32)
    frequency = jnp.asarray(turns * 2 * np.pi / 8192)
    found = np.asarray(scaled(frequency, (8.0, 1.0, 4.0, 8192.0))) / np.asarray(frequency)
    np.testing.assert_allclose(found, [1, 1, 0.5 + 0.5 / 8, 1 / 8, 1 / 8], rtol=1e-5)
    np.testing.assert_array_equal(scaled(frequency, ()), frequency)
    np.testing.assert_array_equal(scaled(frequency, (4.0,)), frequency / 4)
