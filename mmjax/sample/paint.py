"""Denoising inside the interleaved engine: rows that draw take one step of the solver.

The positions of the picture are written again at every step, over the keys and values of the step
before; what stands before it is read from the cache. The last pass is over the finished picture at
t = 1, whose keys and values remain for what follows: as in training, where later positions see the
picture (nearly) as it is, and not the last step's noisy one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax import diffusion
from mmjax.layers.attention import KV
from mmjax.models.denoise import Parts, wide
from mmjax.models.transfusion import Config
from mmjax.sample.flow import Solver, begun, step

NOISE = 0x6E6F6973  # folded into a row's key for its noise, which draws of tokens do not use


class Canvas(NamedTuple):
    """Pictures in the making.

    Attributes:
        x: [b, h, w, c], each row's signal as it is now. made: [b, m, h, w, c], the finished ones.
    """

    x: jax.Array
    made: jax.Array


class Stand(NamedTuple):
    """Where rows stand.

    Attributes:
        cache: keys and values. column, position: [s, b], the next of each stream.
        sees: [s b, m] bool, columns of the cache that may be looked at.
    """

    cache: KV
    column: jax.Array
    position: jax.Array
    sees: jax.Array


def empty(config: Config, rows: int, pictures: int) -> Canvas:
    """Nothing drawn yet."""
    h, w, c = config.shape
    return Canvas(jnp.zeros((rows, h, w, c)), jnp.zeros((rows, pictures, h, w, c)))


def fresh(keys, number, shape):
    """Noise [b, h, w, c] of each row's picture `number` [b]."""

    def one(key, n):
        return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, NOISE), n), shape)

    return jax.vmap(one)(keys, number)


def looker(parts: Parts, params, stand: Stand, solver: Solver, shared: bool):
    """A function (x [b, h, w, c], t [b], cache, rows [b] bool) -> (velocity like x, cache).

    It reads noisy pictures at the next positions of every stream, and leaves in the cache the keys
    and values of those in `rows`.
    """
    c, streams = parts.config, stand.column.shape[0]
    p, total = c.tokens, stand.cache.keys.shape[3]
    count = jnp.arange(p)[None]
    begin = stand.column.reshape(-1, 1)
    place = stand.position.reshape(-1, 1) + (jnp.zeros_like(count) if shared else count)
    last = (count if c.picture_mask == "causal" else jnp.full_like(count, p - 1)) + begin
    mask = (jnp.arange(total)[None, None] <= last[:, :, None]) & stand.sees[:, None]

    def look(x, t, cache, rows):
        b = x.shape[0]
        columns = jnp.where(jnp.tile(rows, streams)[:, None], begin + count, total)
        noisy, level = (jnp.tile(z, (streams,) + (1,) * (z.ndim - 1))[:, None] for z in (x, t))
        patches, kept = parts.patch_in(params, noisy, level)
        tower = jnp.full(columns.shape, c.modality)
        hidden, cache = parts.run(params, patches[:, 0], mask, place, cache, columns, tower=tower)
        output = parts.patch_out(params, hidden[:, None], kept)
        at = wide(level), diffusion.SHORT
        found = diffusion.estimate(c.path, c.prediction, output, noisy, *at)
        v = found.velocity[:, 0]
        return (v if streams == 1 else solver.guide(v[:b], v[b:], t)), cache

    return look


def paint(
    parts: Parts, params, canvas: Canvas, stand: Stand, turn, number, keys, solver: Solver,
    shared: bool,
) -> tuple[Canvas, Stand]:  # fmt: skip
    """One step for every row that draws.

    Args:
        canvas, stand: of all rows; streams are (full) or (full, blank).
        turn: [b] int32, the step: 0 begins with noise, `solver.steps` is the pass over the finished
            picture; others do not draw.
        number: [b] int32, how many pictures the row has finished before this one.
        keys: [b]. solver: how. shared: whether patches share one position.

    Returns:
        The same, moved on; behind a finished picture stand the next column and position.
    """
    c, last = parts.config, solver.steps
    active = (turn >= 0) & (turn <= last)
    now = jnp.clip(turn, 0, last)
    noise = fresh(keys, number, c.shape)
    x = jnp.where((now == 0)[:, None, None, None], noise, canvas.x)
    to = solver.time(jnp.minimum(now + 1, last))
    t = begun(c.prediction, solver.time(now), to)
    look = looker(parts, params, stand, solver, shared)
    v, cache = look(x, t, stand.cache, active)
    looks = [v]

    def velocity(y, at):
        # The first look is the one above; only Heun takes a second, whose trace is not kept.
        return looks.pop() if looks else look(y, at, cache, active)[0]

    ahead = step(solver.kind, c.path, velocity, x, t, to)
    finished = active & (now == last)
    x = jnp.where((active & ~finished)[:, None, None, None], ahead, x)
    slot = jnp.where(finished, number, canvas.made.shape[1])
    made = canvas.made.at[jnp.arange(len(turn)), slot].set(x, mode="drop")
    moved = jnp.where(finished, c.tokens, 0)[None]
    onward = jnp.minimum(moved, 1) if shared else moved
    column, position = stand.column + moved, stand.position + onward
    return Canvas(x, made), stand._replace(cache=cache, column=column, position=position)
