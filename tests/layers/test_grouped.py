"""Rows sorted by tower in pieces against all rows through every tower, forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.layers.grouped import BLOCK, MOST, block_size, borders, cover, grouped, places
from mmjax.layers.linear import linear

N, D, F, TOWERS = 40, 6, 10, 3


def gated(product, x, held):
    """Two products of one input, one of what they make, and one that ends here: [n, d] twice."""
    gate, up, down, side = held
    hidden = jnp.tanh(product(x, gate)) * product(x, up)
    return product(hidden, down, 2), [product(x, side)]


def draw(seed: int):
    """(x, held, the gradient of what `gated` makes)."""
    shapes = (D, 2, F), (D, 2, F), (2, F, D), (D, F)
    keys = jax.random.split(jax.random.key(seed), 7)
    held = tuple(
        tuple(jax.random.normal(k, (TOWERS, *s))) for k, s in zip(keys[:4], shapes, strict=True)
    )
    x, g, h = (jax.random.normal(k, (N, s)) for k, s in zip(keys[4:], (D, D, F), strict=True))
    return x, held, (g, [h])


def both(function, x, held, g):
    """What a function makes, and its gradients."""
    y, back = jax.vjp(function, x, held)
    return y, *back(g)


@jax.jit
def selected(tower, x, held, g):
    """All rows through every tower, the own one's taken."""

    def function(x, held):
        each = [gated(linear, x, tuple(w[m] for w in held)) for m in range(TOWERS)]
        return jax.tree.map(
            lambda *ys: sum(jnp.where((tower == m)[:, None], y, 0) for m, y in enumerate(ys)), *each
        )

    return both(function, x, held, g)


@partial(jax.jit, static_argnames="block")
def sorted_(tower, x, held, g, block):
    """The same by `grouped`."""
    order, back, sizes = places(tower, TOWERS, block)

    def function(x, held):
        rows = x.at[order].get(mode="fill", fill_value=0)
        return jax.tree.map(lambda y: y[back], grouped(gated, rows, held, sizes, block))

    return both(function, x, held, g)


def check(tower, block, seed=0):
    x, held, g = draw(seed)
    tower = np.asarray(tower, np.int32)
    got, want = sorted_(tower, x, held, g, block), selected(tower, x, held, g)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), got, want)
    for m in range(TOWERS):
        for w in got[2]:
            assert (np.abs(w[m]).max() > 0) == (m in tower)  # exactly zero, and no NaN
    return got


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, TOWERS), st.sampled_from([1, 8, 16]))
def test_sorted_equals_a_product_a_tower(seed, towers, block):
    """Towers anywhere and of any size, none too; 40 rows are no multiple of 16."""
    rng = np.random.default_rng(seed)
    check(rng.permutation(TOWERS)[rng.integers(0, towers, N)], block, seed)


@pytest.mark.parametrize("sizes", [(N, 0, 0), (0, 0, N), (0, N, 0), (8, 24, 8), (1, 1, 38)])
@pytest.mark.parametrize("block", [1, 8])
def test_towers_without_rows_and_borders_of_blocks(sizes, block):
    check(np.repeat(np.arange(TOWERS), sizes), block)


@pytest.mark.parametrize("block", [1, 8])
def test_half_precision_is_kept(block):
    """Gradients of weights are summed in f32 and come in their own precision."""
    tower = np.arange(N) % TOWERS
    x, held, g = jax.tree.map(lambda x: x.astype(jnp.bfloat16), draw(0))
    got = sorted_(tower, x, held, g, block)
    exact = [jax.tree.map(lambda x: x.astype(jnp.float32), part) for part in (x, held, g)]
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(*map(jax.tree.leaves, (got, selected(tower, *exact))), strict=True):
        assert np.abs(np.asarray(a, np.float32) - b).max() < 0.05 * np.abs(b).max()


def test_rows_know_their_tower():
    """A row that changes its tower changes, and no other does."""
    tower = np.arange(N) % TOWERS
    moved = np.where(np.arange(N) == 13, (tower + 1) % TOWERS, tower)
    a, b = check(tower, 8)[0], check(moved, 8)[0]
    same = np.isclose(np.asarray(a[0]), np.asarray(b[0]), atol=1e-5).all(1)
    np.testing.assert_array_equal(np.flatnonzero(~same), [13])


@pytest.mark.parametrize("block", [1, 8])
def test_places_sort_and_turn_back(block):
    """Each tower's rows stand together, in their order, from a multiple of a block on."""
    tower = np.random.default_rng(0).integers(0, TOWERS, N)
    order, back, sizes = places(jnp.asarray(tower), TOWERS, block)
    np.testing.assert_array_equal(order[back], np.arange(N))
    assert order.size == (N if block == 1 else N + (TOWERS - 1) * block)
    np.testing.assert_array_equal(sizes, np.bincount(tower, minlength=TOWERS))
    for m, first in enumerate(borders(sizes, block)[0]):
        mine = order[first * block :][: sizes[m]]
        np.testing.assert_array_equal(mine, np.flatnonzero(tower == m))
    assert (order == N).sum() == order.size - N  # the rest stands for no row


def test_pieces_cost_the_rows_they_have_and_less_than_a_block_more_a_tower():
    """Rows that run, counted; how they lie compiled in powers of two."""

    def step(total, at, size):
        return total + size

    for sizes in ((40, 0), (13, 27), (16, 24), (1, 39), (0, 0)):
        rows = [int(cover(*one, 8, 48, step, jnp.int32(0)))
                for one in zip(*borders(jnp.array(sizes), 8), strict=True)]  # fmt: skip
        assert rows == [-(-size // 8) * 8 for size in sizes]
    assert block_size("cpu", 100) == BLOCK and block_size("cpu", 2 * MOST * BLOCK) == 2 * BLOCK
    assert block_size("tpu", 2 * MOST * BLOCK) == 1
