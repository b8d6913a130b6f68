"""Feature distance: its definition, its gradient, and what it is good for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mmjax.codecs import efficientnet, perceptual
from mmjax.data.pipeline import open_split
from mmjax.data.pixels import decode_image

RNG = np.random.default_rng(0)
A, B = RNG.uniform(-1, 1, (2, 4, 32, 32, 3)).astype(np.float32)
LITE0 = perceptual.NETWORKS["efficientnet_lite0"]
distance = jax.jit(partial(perceptual.distance, LITE0))
gradients = jax.jit(jax.grad(lambda p, a, b: distance(p, a, b).sum(), argnums=(0, 1)))


@pytest.fixture(scope="module")
def params():
    return LITE0.load()


def test_distance_by_its_definition(params):
    found = distance(params, A, B)
    seen = [jax.jit(lambda x: efficientnet.features(params, x, (0, 1, 2, 3, 4)))(x) for x in (A, B)]
    want = np.zeros(4)
    for a, b in zip(*seen, strict=True):
        a, b = (np.asarray(x, np.float64).reshape(4, -1, x.shape[-1]) for x in (a, b))
        for n in range(4):
            for x, y in zip(a[n], b[n], strict=True):
                gap = x / np.linalg.norm(x) - y / np.linalg.norm(y)
                want[n] += (gap**2).sum() / len(a[n])
    np.testing.assert_allclose(found, want, rtol=1e-4)
    assert found.dtype == jnp.float32
    assert abs(distance(params, A, B[::-1]) - want).min() > 1e-3
    np.testing.assert_allclose(distance(params, A, A), 0.0, atol=1e-6)


def test_any_network_may_look():
    """One of two stages: colours turned by a matrix, and the same of every second pixel."""
    turn = RNG.normal(size=(3, 5)).astype(np.float32)
    other = perceptual.Network(lambda: {"turn": turn}, lambda p, x: [x @ p["turn"], x[:, ::2, ::2]])
    found = perceptual.distance(other, other.load(), A, B)
    want = np.zeros(4)
    for a, b in ((A @ turn, B @ turn), (A[:, ::2, ::2], B[:, ::2, ::2])):
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        want += ((a - b) ** 2).sum(-1).mean((1, 2))
    np.testing.assert_allclose(found, want, rtol=1e-3)


def test_the_gradient_moves_pictures_and_no_weights(params):
    weights, pictures = gradients(params, A, B)
    assert not any(np.any(w) for w in jax.tree.leaves(weights))
    assert (abs(pictures).max((1, 2, 3)) > 1e-4).all()
    nearer = distance(params, A - 1e-2 * pictures / abs(pictures).max(), B)
    assert (nearer < distance(params, A, B)).all()


def test_the_gradient_is_finite_where_pictures_or_features_vanish(params):
    np.testing.assert_allclose(gradients(params, A, A)[1], 0.0, atol=1e-7)
    # Behind the stem all features are 0, and so are the lengths they are divided by.
    dead = {**jax.tree.map(np.zeros_like, params), "stem": params["stem"]}
    assert (distance(dead, A, B) > 0.0).all()
    found = gradients(dead, A, B)[1]
    assert np.isfinite(found).all() and abs(found).max() > 1e-5


def test_blur_is_farther_than_brightness(params, openmoji):
    records = open_split(openmoji, "validation")
    pictures = [decode_image(records[i].images[0], 32, "pil_bicubic_aa") for i in range(8)]
    a = np.stack(pictures).astype(np.float32) / 127.5 - 1.0
    for x in (a[:4], a[4:]):
        blurred = gaussian_filter(x, (0, 1, 1, 0))
        shift = np.sqrt(((x - blurred) ** 2).mean((1, 2, 3), keepdims=True))
        far, near = distance(params, x, blurred), distance(params, x, x - shift)
        np.testing.assert_array_less(1.5 * near, far)
