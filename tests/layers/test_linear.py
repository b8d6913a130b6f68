"""The written-out gradient against the derived one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.layers.linear import linear

RNG = np.random.default_rng(0)


def draw(*shape, dtype="float32"):
    return jnp.asarray(RNG.normal(size=shape), dtype)


CASES = {
    "one axis": ((2, 3, 4), (4, 5), 1, "bld,df->blf"),
    "to heads": ((2, 3, 4), (4, 5, 6), 1, "bld,dhk->blhk"),
    "from heads": ((2, 3, 4, 5), (4, 5, 6), 2, "blhk,hkd->bld"),
    "pictures": ((2, 3, 4, 5), (5, 6), 1, "bipc,cd->bipd"),
}


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_value_and_gradients_are_those_of_einsum(shapes):
    x_shape, w_shape, axes, spec = shapes
    x, w = draw(*x_shape), draw(*w_shape)
    y, back = jax.vjp(lambda x, w: linear(x, w, axes), x, w)
    wanted, derived = jax.vjp(lambda x, w: jnp.einsum(spec, x, w), x, w)
    np.testing.assert_allclose(y, wanted, rtol=1e-6)
    g = draw(*y.shape)
    for ours, theirs in zip(back(g), derived(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    dx, dw = back(g)
    assert abs(dx - back(-g)[0]).max() > 0.1 and abs(dw).max() > 0.1


def test_logits_in_f32_from_half_precision():
    x, w = draw(4, 8, dtype="bfloat16"), draw(8, 16, dtype="bfloat16")
    y, back = jax.vjp(lambda x, w: linear(x, w, 1, "float32"), x, w)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)
    assert abs(y - y.astype(jnp.bfloat16).astype(jnp.float32)).max() > 0  # not rounded on the way
    dx, dw = back(jnp.ones_like(y))
    assert dx.dtype == dw.dtype == jnp.bfloat16
