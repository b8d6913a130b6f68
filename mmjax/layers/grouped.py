"""Products of rows sorted by tower, each with its own tower's matrix, at the cost of one product.

On TPU and GPU this is `jax.lax.ragged_dot`. On CPU that multiplies every row by every matrix, so
there the rows of a tower are covered by pieces of 1, 2, 4, ... blocks of rows: of every size one
product is compiled, and which of them run is decided by the number of rows.
"""

from functools import partial

import jax
import jax.numpy as jnp

BLOCK = 64  # rows: where two towers meet in a block, both multiply it
MOST = 32  # blocks, at least that large: each doubling of their number compiles more products


def grouped_linear(platform: str, sizes, x, w, axes: int = 1):
    """`linear` of rows sorted by tower.

    Args:
        platform: "cpu", or another for `ragged_dot`. sizes: [m] int32, rows of each tower.
        x: [n, d ...]. w: m matrices [d ..., f ...], or one for all rows. axes: how many d is.

    Returns:
        [n, f ...].
    """
    out = w[0].shape[axes:]
    rows = x.reshape(x.shape[0], -1)
    flat = tuple(one.reshape(rows.shape[1], -1) for one in w)
    if len(w) == 1:
        from_rows = dot(rows, flat[0], 1, 0)
    elif platform == "cpu":
        from_rows = pieced(rows, flat, sizes, block_size(x.shape[0]))
    else:
        from_rows = jax.lax.ragged_dot(rows, jnp.stack(flat), sizes)
    return from_rows.reshape(x.shape[0], *out)


def block_size(rows: int) -> int:
    """Rows of a block."""
    return max(BLOCK, -(-rows // MOST))


def dot(a, b, axis_a: int, axis_b: int, dtype=None):
    """Contracts one axis of each matrix."""
    dims = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=dtype or a.dtype)


def cover(start, end, block: int, rows: int, step, carry):
    """Calls carry = step(carry, first row, number of rows) for pieces that cover start ... end.

    The first piece begins and the last ends at a multiple of `block`, `rows` being one too.
    """
    at = start // block
    count = jnp.where(end > start, -(-end // block) - at, 0)
    for bit in reversed(range((rows // block).bit_length())):
        used = (count >> bit) & 1
        do = partial(step, size=block << bit)
        carry = jax.lax.cond(used == 1, do, lambda carry, at: carry, carry, at * block)
        at = at + (used << bit)
    return carry


def piece(x, at, size: int):
    """`size` rows of x from row `at` on."""
    return jax.lax.dynamic_slice_in_dim(x, at, size)


def put(x, new, at):
    """Writes rows into x from row `at` on."""
    return jax.lax.dynamic_update_slice_in_dim(x, new, at, 0)


def borders(sizes) -> list:
    """[m] -> (start, end) of each tower's rows."""
    ends = jnp.cumsum(sizes)
    return [(ends[m] - sizes[m], ends[m]) for m in range(len(sizes))]


def padded(x, block: int):
    """x with rows of zeros behind it, to a multiple of `block`."""
    return jnp.pad(x, ((0, -x.shape[0] % block), (0, 0))) if x.shape[0] % block else x


def multiply(x, w, sizes, block: int, axis: int):
    """Rows [n, .] by their tower's matrix, contracting its `axis`."""
    n = x.shape[0]
    x = padded(x, block)
    y = jnp.zeros((x.shape[0], w[0].shape[1 - axis]), x.dtype)
    for (start, end), one in zip(borders(sizes), w, strict=True):
        # What this tower writes over in the block where it begins is put back.
        first = jnp.minimum(start // block * block, x.shape[0] - block)
        before = piece(y, first, block)

        def step(y, at, size, one=one):
            return put(y, dot(piece(x, at, size), one, 1, axis), at)

        y = cover(start, end, block, x.shape[0], step, y)
        mine = (first + jnp.arange(block) >= start)[:, None]
        y = put(y, jnp.where(mine, piece(y, first, block), before), first)
    return y[:n]


def outer(x, g, sizes, block: int) -> tuple:
    """The gradient of each tower's matrix: x^T g over its rows, f32; zeros if it has none."""
    x, g = padded(x, block), padded(g, block)

    def of(start, end):
        def step(total, at, size):
            index = at + jnp.arange(size)
            mine = ((index >= start) & (index < end))[:, None]
            a, b = piece(x, at, size), piece(g, at, size)
            if a.shape[1] < b.shape[1]:
                a = jnp.where(mine, a, 0)
            else:
                b = jnp.where(mine, b, 0)
            return total + dot(a, b, 0, 0, jnp.float32)

        nothing = jnp.zeros((x.shape[1], g.shape[1]), jnp.float32)
        return cover(start, end, block, x.shape[0], step, nothing)

    return tuple(of(*border) for border in borders(sizes))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def pieced(x, w, sizes, block: int):
    """x [n, d] sorted by tower, w m matrices [d, f], sizes [m] of sum n -> [n, f]."""
    return multiply(x, w, sizes, block, 0)


def _forward(x, w, sizes, block):
    return pieced(x, w, sizes, block), (x, w, sizes)


def _backward(block, saved, g):
    x, w, sizes = saved
    g = g.astype(x.dtype)
    dw = tuple(d.astype(w[0].dtype) for d in outer(x, g, sizes, block))
    return multiply(g, w, sizes, block, 1), dw, None


pieced.defvjp(_forward, _backward)
