"""What OneFlow's training deletes from a document X_1, and what it leaves, X_t.

Nguyen et al. 2025, appendices D and E. All shapes are static: what is left moves together to the
left of its row. EOS never stands in X_t and is never missing. A picture is deleted and kept whole:
its BOI, which stands for the paper's one token <|image|>, is missing for all of it. The first
position of a document (BOS) and what has weight 0 (prompts) is never deleted; two such pieces of
text side by side have nothing between them in any draw, and that gap is not open.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.batch import IMAGE, TEXT, Batch, Vocabulary, slot_columns


class Draws(NamedTuple):
    """Uniform numbers in [0, 1) that decide what is deleted.

    Attributes:
        kind, side, clock: [b, l + 1], of documents by their number in the row.
        token: [b, l], of tokens. lag, level: [b, i], of pictures.
    """

    kind: jax.Array
    side: jax.Array
    clock: jax.Array
    token: jax.Array
    lag: jax.Array
    level: jax.Array


class Corrupted(NamedTuple):
    """X_t, and what is missing from it.

    Attributes:
        batch: X_t as a batch, its positions moved together to the left and counted anew; a deleted
            picture's slot is vacant.
        t: [b, i] noise levels, 1 for pictures that are given.
        row: [b, l] int32, for positions of X_1 that are kept their place in X_t, for deleted ones
            the place in X_t of the position to the right of which they are missing.
        missing: [b, l] bool, what is in the bags: deleted words, and the BOI of deleted pictures.
        k: [b, l] f32, how many are missing to the right of each position of X_t.
        open: [b, l] bool, positions of X_t whose gap has a loss.
        drawn: [b, i] f32, weight of the flow loss.
    """

    batch: Batch
    t: jax.Array
    row: jax.Array
    missing: jax.Array
    k: jax.Array
    open: jax.Array
    drawn: jax.Array


class Units(NamedTuple):
    """What may be deleted as one.

    Attributes:
        word: [b, l] bool, text with a weight, other than sentinels of documents and pictures.
        piece: [b, l] int32, the slot of the picture a BOI, patch or EOI belongs to, or 0.
        begin: [b, l] bool, the BOI of a picture.
        first: [b, l] bool, the first position of a document.
    """

    word: jax.Array
    piece: jax.Array
    begin: jax.Array
    first: jax.Array


def shift(x, step: int):
    """[b, l] -> the same moved right by one (step = 1) or left (-1); what comes in is 0."""
    if step == 1:
        return jnp.pad(x[:, :-1], ((0, 0), (1, 0)))
    return jnp.pad(x[:, 1:], ((0, 0), (0, 1)))


def sums(x, at):
    """Values [b, l] added up at indexes [b, l] in 0 ... l -> [b, l + 1]."""
    b, length = x.shape
    return jnp.zeros((b, length + 1), x.dtype).at[jnp.arange(b)[:, None], at].add(x)


def take(x, at):
    """Row by row x[at]; [b, n], [b, m] -> [b, m]."""
    return jnp.take_along_axis(x, at, axis=1)


def units(batch: Batch, v: Vocabulary) -> Units:
    """What of a batch may be deleted."""
    text = (batch.modality == TEXT) & (batch.segment > 0)
    begin = text & (batch.tokens == v.boi)
    end = text & (batch.tokens == v.eoi)
    piece = jnp.where(begin, shift(batch.image, -1), jnp.where(end, shift(batch.image, 1), 0))
    piece = jnp.where(batch.modality == IMAGE, batch.image, piece)
    first = (batch.segment > 0) & (batch.segment != shift(batch.segment, 1))
    sentinel = jnp.isin(batch.tokens, jnp.array([v.bos, v.eos, v.boi, v.eoi, v.sep]))
    word = text & (batch.weight > 0) & ~sentinel & ~first
    return Units(word, piece, begin & (piece > 0), first)


def compact(batch: Batch, keep) -> tuple[Batch, jax.Array]:
    """The batch with only the positions `keep` [b, l] says, moved left, positions counted anew.

    The first position of every document must be kept. Where patches share one position, they do
    still.

    Returns:
        (the batch, [b, l] from where each of its positions came).
    """
    order = jnp.argsort(~keep, axis=1, stable=True)
    held = take(keep, order)
    same = batch.segment == shift(batch.segment, 1)
    step = jnp.where(keep & same, batch.position - shift(batch.position, 1), 0)
    reached = jnp.cumsum(step, axis=1)
    position = reached - jax.lax.cummax(jnp.where(same, 0, reached), axis=1)

    def moved(x):
        return jnp.where(held, take(x, order), jnp.zeros((), x.dtype))

    left = batch._replace(
        tokens=moved(batch.tokens), modality=moved(batch.modality), segment=moved(batch.segment),
        position=moved(position), image=moved(batch.image), weight=moved(batch.weight),
    )  # fmt: skip
    return left, order


def draw(keys, length: int, slots: int) -> Draws:
    """Draws for rows of `length` positions and `slots` pictures; keys [b], one a row."""
    shapes = [length + 1] * 3 + [length] + [slots] * 2

    def row(key):
        split = jax.random.split(key, len(shapes))
        return Draws(*(jax.random.uniform(k, (n,)) for k, n in zip(split, shapes, strict=True)))

    return jax.vmap(row)(keys)


def corrupt(
    deletion: str, mixed_share: float, v: Vocabulary, batch: Batch, draws: Draws
) -> Corrupted:
    """Deletes from X_1.

    Args:
        deletion: "uniform" keeps each word of a document with its probability t. "suffix" draws one
            of the m + 1 cuts between the document's m words and pictures, and deletes what follows.
        mixed_share: share of the documents with pictures that are on one clock: tau ~ U[0, 2], text
            has the time tau and from 1 on no loss, as in sampling nothing is asked of it then; each
            picture has tau - u with u ~ U[0, 1], and is deleted below 0. Of the others those that
            write give all their pictures and have t ~ U[0, 1] for their text; those that draw give
            their text, and each picture has a t ~ U[0, 1]. A document that has both does either,
            half of the time each.
        v: ids of the sentinels. batch: X_1. draws: the chance.
    """
    u, slots = units(batch, v), batch.pixels.shape[1]
    column, used = slot_columns(batch.image, slots)
    home = jnp.where(used, take(batch.segment, column), 0)  # [b, i], number of its document
    weight = jnp.where(used, take(batch.weight, column), 0.0)
    pictures = sums((u.begin & (batch.weight > 0)).astype(jnp.int32), batch.segment) > 0
    mixed = (draws.kind < mixed_share) & pictures
    words = sums(u.word.astype(jnp.int32), batch.segment) > 0
    write = ~mixed & words & ((draws.side < 0.5) | ~pictures)
    free = (weight > 0) & ~take(write, home)
    if deletion == "uniform":
        clock = draws.clock * jnp.where(mixed, 2.0, 1.0)
        gone = u.word & (draws.token >= take(clock, batch.segment))
        tau = jnp.where(take(mixed, home), take(clock, home) - draws.lag, draws.level)
        lost, t = free & (tau < 0.0), jnp.clip(tau, 0.0, 1.0)
    else:
        late = behind_cut(batch, u.word | (u.begin & of_slot(free, u.piece)), draws.clock)
        gone, lost = u.word & late, free & take(late, jnp.maximum(column - 1, 0))
        lost, t = lost & take(mixed, home), draws.level
    active = write | (mixed & ((draws.clock * 2.0 < 1.0) | (deletion == "suffix")))
    gone &= take(active, batch.segment)
    drawn = jnp.where(free & ~lost & (t < 1.0), weight, 0.0)
    x = without(v, batch, u, gone, lost, free)
    opened = x.open & take(active, x.batch.segment)
    if deletion == "suffix":
        none = take(sums(x.k, x.batch.segment) == 0, x.batch.segment)
        last = x.batch.segment != shift(x.batch.segment, -1)
        opened &= (x.k > 0) | (none & last)
    return x._replace(t=jnp.where(free, t, 1.0), open=opened, drawn=drawn)


def behind_cut(batch: Batch, unit, clock):
    """[b, l] bool: the units [b, l] behind their document's cut; clock [b, l + 1] in [0, 1)."""
    total = sums(unit.astype(jnp.int32), batch.segment)
    cut = jnp.minimum((clock * (total + 1).astype(jnp.float32)).astype(jnp.int32), total)
    before = jnp.cumsum(total, axis=1) - total  # units of the row before the document
    return unit & (jnp.cumsum(unit, axis=1) > take(before + cut, batch.segment))


def of_slot(x, piece):
    """[b, i] bool, of slots, at [b, l] their numbers from 1 on; False where that is 0."""
    return take(jnp.pad(x, ((0, 0), (1, 0))), piece)


def without(v: Vocabulary, batch: Batch, u: Units, gone, lost, free) -> Corrupted:
    """X_1 without the words `gone` [b, l] and the pictures `lost` [b, i].

    `free` [b, i] are the pictures that are not given; t and drawn are theirs to say who knows the
    times, and `open` does not know yet which documents have deletions at all.
    """
    held, text = batch.segment > 0, batch.modality == TEXT
    ended = text & (batch.tokens == v.eos) & ~u.first
    keep = held & ~ended & ~gone & ~of_slot(lost, u.piece)
    missing = gone | (u.begin & of_slot(lost, u.piece))
    row = jnp.maximum(jnp.cumsum(keep, axis=1, dtype=jnp.int32) - 1, 0)
    given = ~u.word & ~of_slot(free, u.piece)
    fixed = given & held & text & (u.piece == 0) & ~ended & ~u.first
    gap = keep & text & ((u.piece == 0) | (batch.tokens == v.eoi)) & ~(given & shift(fixed, -1))
    left, order = compact(batch, keep)
    return Corrupted(
        batch=left,
        t=jnp.ones(lost.shape),
        row=row,
        missing=missing,
        k=sums(missing.astype(jnp.float32), row)[:, :-1],
        open=take(gap, order) & (left.segment > 0),
        drawn=jnp.zeros(lost.shape),
    )


def leftmost(missing, row):
    """[b, l] bool: those of the missing that stand first in their gap; both as in `Corrupted`."""
    latest = jax.lax.cummax(jnp.where(missing, row + 1, 0), axis=1)
    return missing & (shift(latest, 1) != row + 1)
