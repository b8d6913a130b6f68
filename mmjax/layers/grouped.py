"""Rows sorted by tower, each tower's through its own matrices, at the cost of one tower.

On TPU and GPU a product is `jax.lax.ragged_dot`. On CPU that multiplies every row by every matrix,
so there each tower begins at a multiple of a block of rows, and goes through in pieces of 1, 2, 4,
... blocks: for each size the whole function is compiled, and which of them run is decided by the
number of rows. Only what leaves a piece is copied to its place among all rows.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from mmjax.layers.linear import linear, precision

BLOCK = 32  # rows, at least
MOST = 64  # blocks, at most: each doubling of their number compiles more products


def block_size(platform: str, rows: int) -> int:
    """At a multiple of how many rows a tower begins."""
    return max(BLOCK, -(-rows // MOST)) if platform == "cpu" else 1


def places(tower, towers: int, block: int):
    """Where rows go when sorted by tower, each tower's in order, from a multiple of `block` on.

    Args:
        tower: [n] int32. towers: m.

    Returns:
        (order [o] int32: which row stands at each place, n for none; back [n], its inverse; sizes
        [m] int32, rows of each tower), where o is a multiple of `block` and the same for all
        towers [n].
    """
    n = tower.size
    total = n if block == 1 else (-(-n // block) + towers - 1) * block
    before = jnp.cumsum(jax.nn.one_hot(tower, towers, dtype=jnp.int32), axis=0) - 1
    rank = jnp.take_along_axis(before, tower[:, None], axis=1)[:, 0]
    sizes = before[-1] + 1
    back = block * borders(sizes, block)[0][tower] + rank
    order = jnp.full(total, n, jnp.int32)
    return order.at[back].set(jnp.arange(n, dtype=jnp.int32), unique_indices=True), back, sizes


def borders(sizes, block: int):
    """(first block, number of blocks) of each tower, [m] both; sizes [m] int32, its rows."""
    count = -(-sizes // block)
    return jnp.cumsum(count) - count, count


def grouped(function: Callable, x, held, sizes, block: int):
    """A function of a few products of rows that lie as `places` says.

    Args:
        function: (product, rows [., ...], weights) -> tree of [., ...], where product(x, w, axes)
            is `linear`; what it makes of a row depends on that row alone, and of a product that it
            returns it makes nothing else.
        x: [o, ...]. held: tuple of matrices, a tuple of m each. sizes: see `places`. block: see
            `block_size`.

    Returns:
        The tree, [o, ...].
    """
    if block > 1:
        return pieced(function, x, held, sizes, block)

    def product(x, w, axes=1):
        flat = jnp.stack([one.reshape(-1, one[(0,) * axes].size) for one in w])
        rows = x.reshape(x.shape[0], -1)
        y = jax.lax.ragged_dot(rows, flat, sizes, precision=precision(x))
        return y.reshape(x.shape[0], *w[0].shape[axes:])

    return function(product, x, held)


def cover(first, count, block: int, rows: int, step, carry):
    """Calls carry = step(carry, first row, number of rows) for pieces that cover `count` blocks."""
    at = first
    for bit in reversed(range((rows // block).bit_length())):
        used = (count >> bit) & 1
        do = partial(step, size=block << bit)
        carry = jax.lax.cond(used == 1, do, lambda carry, at: carry, carry, at * block)
        at = at + (used << bit)
    return carry


def piece(x, at, size: int):
    """`size` rows of every leaf from row `at` on."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, size), x)


def put(x, new, at):
    """Writes rows into every leaf from row `at` on."""

    def one(x, new):
        return jax.lax.dynamic_update_slice_in_dim(x, new, at, 0)

    return jax.tree.map(one, x, new)


def flat(x, w, axes: int):
    """Rows and weights as two matrices: others of half precision XLA does not multiply on CPU."""
    return x.reshape(x.shape[0], -1), w.reshape(math.prod(w.shape[:axes]), -1)


def kept(function, rows, weights):
    """-> (what the function makes, the products its gradient needs: all but those it returns)."""
    made: list = []

    def product(x, w, axes=1):
        y = linear(*flat(x, w, axes))
        made.append((y.reshape(x.shape[0], *w.shape[axes:]), y))
        return made[-1][0]

    y = function(product, rows, weights)
    ends = {id(leaf) for leaf in jax.tree.leaves(y)}
    return y, [None if id(shaped) in ends else one for shaped, one in made]


@jax.custom_vjp
def known(x, w, y):
    """`linear` of matrices x and w where its result y is at hand."""
    return y


known.defvjp(
    lambda x, w, y: (y, (x, w)),
    lambda saved, g: (*jax.vjp(linear, *saved)[1](g), None),
)


def again(function, rows, weights, made):
    """What the function makes, its products being at hand as `kept` returns them."""
    rest = iter(made)

    def product(x, w, axes=1):
        y, (x, matrix) = next(rest), flat(x, w, axes)
        if y is None:  # it is returned, and its value is not asked for
            y = jnp.zeros((x.shape[0], matrix.shape[1]), x.dtype)
        return known(x, matrix, y).reshape(x.shape[0], *w.shape[axes:])

    return function(product, rows, weights)


def own(held, m: int) -> tuple:
    """Matrices of one tower."""
    return tuple(w[m] for w in held)


@partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def pieced(function, x, held, sizes, block: int):
    """`grouped` in pieces."""
    return _forward(function, x, held, sizes, block)[0]


def _forward(function, x, held, sizes, block):
    shapes = jax.eval_shape(partial(kept, function), piece(x, 0, block), own(held, 0))
    whole = jax.tree.map(lambda s: jnp.zeros((x.shape[0], *s.shape[1:]), s.dtype), shapes)
    for m, (first, count) in enumerate(zip(*borders(sizes, block), strict=True)):

        def step(whole, at, size, m=m):
            return put(whole, kept(function, piece(x, at, size), own(held, m)), at)

        whole = cover(first, count, block, x.shape[0], step, whole)
    y, made = whole
    return y, (x, held, sizes, made)


def _backward(function, block, saved, g):
    x, held, sizes, made = saved
    dx, dw = jnp.zeros_like(x), []
    for m, (first, count) in enumerate(zip(*borders(sizes, block), strict=True)):

        def step(carry, at, size, m=m):
            dx, total = carry

            def replayed(x, w):
                return again(function, x, w, piece(made, at, size))

            back = jax.vjp(replayed, piece(x, at, size), own(held, m))[1]
            rows, new = back(piece(g, at, size))
            return put(dx, rows, at), jax.tree.map(added, total, new)

        nothing = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), own(held, m))
        dx, total = cover(first, count, block, x.shape[0], step, (dx, nothing))
        dw.append(jax.tree.map(lambda total, w: total.astype(w.dtype), total, own(held, m)))
    return dx, tuple(zip(*dw, strict=True)), None


def added(total, new):
    """A sum in the precision of `total`."""
    return total + new.astype(total.dtype)


pieced.defvjp(_forward, _backward)
