"""Products by tower in pieces against one product a tower, forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.layers.grouped import BLOCK, block_size, cover, grouped_linear, pieced

N, D, F, SIZE = 40, 6, 10, 8


def draw(seed: int, towers: int = 3):
    x, g = (
        jax.random.normal(jax.random.key(k), s) for k, s in ((seed, (N, D)), (seed + 1, (N, F)))
    )
    return x, tuple(jax.random.normal(jax.random.key(seed + 2), (towers, D, F))), g


def both(function, x, w, g):
    y, back = jax.vjp(function, x, w)
    return y, *back(g)


@jax.jit
def selected(x, w, sizes, g):
    tower = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(N), side="right")

    def function(x, w):
        return sum(jnp.where((tower == m)[:, None], x @ one, 0.0) for m, one in enumerate(w))

    return both(function, x, w, g)


@partial(jax.jit, static_argnames="block")
def in_pieces(x, w, sizes, g, block):
    return both(lambda x, w: pieced(x, w, sizes, block), x, w, g)


def check(sizes, block, seed=0):
    sizes = np.array(sizes, np.int32)
    x, w, g = draw(seed)
    got, want = in_pieces(x, w, sizes, g, block), selected(x, w, sizes, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
    for m, size in enumerate(sizes):
        assert (np.abs(got[2][m]).max() > 0) == (size > 0)  # exactly zero, and no NaN
    return got


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, N), min_size=2, max_size=2), st.sampled_from([8, 16]))
def test_pieces_equal_a_product_a_tower(cuts, block):
    """Towers of any size, none too; 40 rows are no multiple of 16."""
    low, high = sorted(cuts)
    check([low, high - low, N - high], block)


@pytest.mark.parametrize("sizes", [(N, 0, 0), (0, 0, N), (0, N, 0), (8, 24, 8), (1, 1, 38)])
def test_towers_without_rows_and_borders_of_blocks(sizes):
    check(sizes, SIZE)


def test_rows_know_their_tower():
    a, b = check((13, 20, 7), SIZE), check((14, 19, 7), SIZE)
    same = np.isclose(np.asarray(a[0]), np.asarray(b[0]), atol=1e-5).all(1)
    np.testing.assert_array_equal(np.flatnonzero(~same), [13])


@pytest.mark.parametrize("form", ["cpu", "tpu"])
def test_each_platform_has_its_form(form):
    """Attention's output contracts two axes; the same numbers from `ragged_dot`."""
    x = jax.random.normal(jax.random.key(0), (2 * BLOCK, 2, 3))
    w = tuple(jax.random.normal(jax.random.key(1), (2, 2, 3, 5)))
    sizes = jnp.array([50, 2 * BLOCK - 50])
    got = jax.jit(partial(grouped_linear, form, axes=2))(sizes, x, w)
    want = [np.tensordot(x, one, 2) for one in w]
    np.testing.assert_allclose(got[:50], want[0][:50], atol=1e-5)
    np.testing.assert_allclose(got[50:], want[1][50:], atol=1e-5)
    assert np.abs(want[0] - want[1]).max() > 0.1
    shared = jax.jit(partial(grouped_linear, form, axes=2))(sizes, x, w[:1])
    np.testing.assert_allclose(shared, want[0], atol=1e-5)


def test_pieces_cost_the_rows_they_have_and_at_most_a_block_more():
    """Rows multiplied, counted: between n and n plus a block for each border."""

    def step(total, at, size):
        return total + size

    for start, end in ((0, 40), (0, 13), (13, 40), (16, 32), (17, 18), (9, 9)):
        rows = int(cover(jnp.int32(start), jnp.int32(end), 8, 40, step, jnp.int32(0)))
        want = 0 if start == end else -(-end // 8) * 8 - start // 8 * 8
        assert rows == want
    assert block_size(100) == BLOCK and block_size(64 * BLOCK) == 2 * BLOCK
