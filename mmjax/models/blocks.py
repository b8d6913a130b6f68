"""Two streams: a row as it is and, behind it, noisy copies of its spans, all blocks at once.

Every block is at a time of its own and sees, beside itself, what stands before it as it is. The
mean over blocks takes the place of the mean over clocks, so that each token counts once: the same
expectation at less variance. BD3-LM (arXiv 2503.09573) has such a mask; its clean blocks see
themselves both ways, which here only patches can (`within`): the last word of a block, as the row
that the next one is read out from, sees what its own block must not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import dial
from mmjax.batch import Batch, patch_index
from mmjax.dial import Spans
from mmjax.layers.weight import gather
from mmjax.models.denoise import Sight


def beside_active(batch: Batch, active) -> Sight:
    """Copies of pictures at one clock a picture; active [b, i, p]."""
    flat = active.reshape(len(active), -1)
    index = jnp.arange(flat.shape[1])
    earlier = (index[None, :] <= index[:, None])[None]
    both = flat[:, :, None] & flat[:, None, :]
    return Sight(earlier | both, jnp.zeros((1, 1, batch.tokens.shape[1]), bool))


def of_patches(alpha: float, p: int):
    """[p] int32: the number of each patch's block."""
    place = jnp.arange(p)
    window = dial.windows("block", alpha, place, jnp.full((p,), p))
    return window.begin.astype(jnp.int32)


def within(alpha: float, batch: Batch, p: int):
    """[b, l, l] bool: pairs of patches of one block of one picture."""
    block = of_patches(alpha, p)[patch_index(batch.image)]
    image, own = batch.image, batch.image > 0
    same = (image[:, :, None] == image[:, None, :]) & own[:, :, None]
    same &= batch.segment[:, :, None] == batch.segment[:, None, :]
    return same & (block[:, :, None] == block[:, None, :])


def patches(alpha: float, batch: Batch, p: int, keys):
    """Pictures whose p patches lie in blocks.

    Returns:
        (times [b, i, p] uniform in [0, 1), one a block; who sees whom).
    """
    slots = batch.pixels.shape[1]
    block = of_patches(alpha, p)
    u = jax.vmap(lambda key: jax.random.uniform(key, (slots, p)))(keys)[:, :, block]
    flat = jnp.tile(block, slots)
    here = block[patch_index(batch.image)]
    sight = Sight(
        (flat[:, None] == flat[None, :])[None],
        here[:, None, :] < flat[None, :, None],
    )
    return u, sight


class Blocks(NamedTuple):
    """Discrete tokens in blocks; [b, l] each.

    Attributes:
        inside: bool, in a span. first: int32, column where the position's block begins.
        begins: bool, the block begins here. own: bool, the row before the block may see it: it is
            in no span, or in this one.
    """

    inside: jax.Array
    first: jax.Array
    begins: jax.Array
    own: jax.Array


def of_tokens(alpha, held: Spans) -> Blocks:
    """The blocks of all discrete spans; alpha [b, l]."""
    inside, size = held.number > 0, jnp.maximum(held.size, 1)
    block, before = (
        dial.windows("block", alpha, jnp.maximum(place, 0), size).begin
        for place in (held.place, held.place - 1)
    )
    begins = inside & ((held.place == 0) | (block != before))
    index = jnp.arange(inside.shape[1])[None]
    first = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    previous = jnp.pad(held.number, ((0, 0), (1, 0)))[:, :-1]
    return Blocks(inside, first, begins, (previous == 0) | (previous == held.number))


def most(alphas: tuple[float, ...], length: int) -> int:
    """A bound of how many blocks begin in a row: a span stands behind a position in none."""

    def count(n: int, alpha: float) -> int:
        return max(1, min(n, int(n**alpha + 0.501)))

    share = max(count(n, a) / (n + 1) for a in alphas for n in range(1, length + 1))
    return int(length * share) + 1


class Copies(NamedTuple):
    """What stands behind a row, first a copy of each of its positions, then of anchors.

    Attributes:
        at: [b, a] int32, column where an anchor's block begins; the anchor stands before it.
        used: [b, a] bool. columns: [b, l + a] int32, what each copies.
    """

    at: jax.Array
    used: jax.Array
    columns: jax.Array


def copies(blocks: Blocks, count: int) -> Copies:
    """Where copies stand, of at most `count` anchors a row."""
    length = blocks.begins.shape[1]
    at = jnp.argsort(~blocks.begins, axis=1, stable=True)[:, :count]
    used = jnp.take_along_axis(blocks.begins, at, axis=1)
    at = jnp.maximum(at, 1)
    every = jnp.broadcast_to(jnp.arange(length)[None], blocks.begins.shape)
    return Copies(at, used, jnp.concatenate([every, at - 1], axis=1))


def mask_with(mask, blocks: Blocks, behind: Copies):
    """[b, m, m] bool -> [b, m + l + a, m + l + a]: what positions and copies see.

    A noisy token sees its block both ways, its block's anchor, and what the token itself saw in
    front of that. An anchor, which the block's first token is read out from, sees the block but for
    that token, itself, and what it saw as it stood in the row. Nothing sees a copy but these.
    """
    (b, length), total = blocks.inside.shape, mask.shape[2]
    columns = jnp.arange(total)[None, None]
    back = jnp.take_along_axis(mask, behind.columns[:, :, None], axis=1)
    edge = jnp.concatenate([blocks.first, behind.at], axis=1) - 1
    back &= columns < edge[:, :, None]  # columns[edge] is the anchor, which has a copy
    back &= jnp.concatenate([blocks.inside, behind.used], axis=1)[:, :, None]
    here = blocks.first[:, None, :]
    noisy = (blocks.first[:, :, None] == here) & blocks.inside[:, :, None]
    noisy &= blocks.inside[:, None, :]
    led = (behind.at[:, :, None] == here) & behind.used[:, :, None] & blocks.inside[:, None, :]
    own = jnp.take_along_axis(blocks.own, behind.at, axis=1)[:, :, None]
    ahead = led & own & (jnp.arange(length)[None, None] != behind.at[:, :, None])
    count = behind.at.shape[1]
    same = jnp.broadcast_to(jnp.eye(count, dtype=bool)[None], (b, count, count))
    beside = jnp.concatenate([
        jnp.concatenate([noisy, led.swapaxes(1, 2)], axis=2),
        jnp.concatenate([ahead, same], axis=2),
    ], axis=1)  # fmt: skip
    forth = jnp.zeros((b, total, beside.shape[1]), bool)
    return jnp.concatenate(
        [jnp.concatenate([mask, forth], axis=2), jnp.concatenate([back, beside], axis=2)], axis=1
    )


def counts(batch: Batch, blocks: Blocks) -> tuple[float, float]:
    """Host batch -> (copies that are in use, pairs in their rows of the mask), to count FLOPs."""
    inside, first, begins, own = (np.asarray(x) for x in blocks)
    segment = np.asarray(batch.segment)
    copies, pairs = 0.0, 0.0
    for row in range(len(inside)):
        at = np.flatnonzero(begins[row])
        size = np.bincount(first[row][inside[row]], minlength=inside.shape[1])[at]
        document = (segment[row][None] == segment[row][at][:, None]).argmax(1)
        before = at - 1 - document  # what stands in front of the anchor
        copies += float((size + 1).sum())
        pairs += float((size * (before + size + 1) + before + 1 + (size - 1) * own[row][at]).sum())
    return copies, pairs


def hide(masked, hidden, x):
    """x [b, l, d], but `hidden` [d] f32 where `masked` [b, l]; its gradient is summed in f32."""
    found = jnp.where(masked[..., None], hidden[None, None], x.astype(jnp.float32))
    return found.astype(x.dtype)


def beside(run, blocks: Blocks, masked, hidden, count: int):
    """A decoder's `run` that reads discrete spans noisy, in copies behind the row.

    Args:
        run: see `models.denoise.Parts`. masked: [b, l] bool, tokens that are [MASK] in the copies.
        hidden: [d], the embedding of [MASK]. count: see `most`.

    Returns:
        A function like `run`, of rows of l positions and perhaps more behind them, that gives for
        each position what its next token is read out from.
    """
    length = masked.shape[1]
    behind = copies(blocks, count)

    def both(params, x, mask, position, keys=None, watch=False, tower=None):
        total = x.shape[1]
        row = x[:, :length]

        def copied(values):
            return gather(values[:, :length], behind.columns, axis=1)

        noisy = hide(masked, hidden, row)
        anchors = gather(row, (behind.at - 1)[..., None], axis=1)
        if tower is not None:
            tower = jnp.concatenate([tower, copied(tower)], axis=1)
        found = run(
            params, jnp.concatenate([x, noisy, anchors], axis=1), mask_with(mask, blocks, behind),
            jnp.concatenate([position, copied(position)], axis=1), keys=keys, watch=watch,
            tower=tower,
        )  # fmt: skip
        out = found[0]
        side = ((0, 0), (0, 1))
        within = jnp.pad((blocks.inside & ~blocks.begins)[:, 1:], side)
        read = jnp.where(within[..., None], out[:, total : total + length], out[:, :length])
        rows = jnp.arange(len(out))[:, None]
        # Beyond the row, each at a place of its own: dropped.
        nowhere = length + jnp.arange(behind.at.shape[1])[None]
        before = jnp.where(behind.used, behind.at - 1, nowhere)
        anchored = out[:, total + length :]
        read = read.at[rows, before].set(anchored, mode="drop", unique_indices=True)
        out = jnp.concatenate([read, out[:, length:total]], axis=1)
        if not watch:
            return out, found[1]
        return out, found[1], found[2]._replace(norm=found[2].norm[:, :total])

    return both
