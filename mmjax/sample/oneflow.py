"""Writing and drawing by insertion: OneFlow's sampler (Nguyen et al. 2025, appendix D).

A row is a canvas of l positions, the first `length` of them in use. In each step of size 1 / steps
every picture moves along its velocity, and to the right of every open position i a token may be
inserted, all at once; what stands to the right of it moves on. With kappa = t that happens with
probability (1 - pi_i) min(1, lambda_i / (steps - step)), and the token is drawn from Q_i. BOI
brings its patches, at noise, and EOI with it. What no longer fits is not inserted.

A model whose target is the leftmost missing token of a gap is asked once at each position: with
probability pi_i nothing more comes between i and what stands behind it, else the token drawn from
Q_i stands next to i and is asked in turn. With suffixes deleted that is autoregression.

Every function is pure and row-wise: a row's result depends on nothing but its prompt and its key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import diffusion
from mmjax.batch import IMAGE, TEXT, Batch, Vocabulary, patch_index
from mmjax.layers.linear import linear
from mmjax.models.deletion import compact, shift, take
from mmjax.models.denoise import Parts, wide
from mmjax.models.oneflow import look
from mmjax.sample.engine import word_ids
from mmjax.sample.flow import guided
from mmjax.sample.sizes import arguments


@arguments(("steps", "guidance", "text_guidance"), kept=("guided",))
@dataclass(frozen=True)
class Options:
    """How rows are filled. Compiled in where it is static, else in its sizes only.

    Attributes:
        steps: from time 0 to 1, of text and of each picture.
        length: positions of a row, l. slots: pictures of a row, i.
        guidance: s in u + s (c - u) for velocities. text_guidance: w in lambda_c^w lambda_u^(1-w)
            and Q_c^w Q_u^(1-w). 1 is none. The other side is the same row without its prompt.
        shared: whether a picture's patches share one position, as in training.
    """

    steps: int
    length: int
    slots: int
    guidance: float
    text_guidance: float
    shared: bool

    @cached_property
    def guided(self) -> bool:
        """Whether there is any guidance."""
        return self.guidance != 1.0 or self.text_guidance != 1.0


class Plan(NamedTuple):
    """What is asked of each row.

    Attributes:
        drawn: [b] bool, it draws a picture behind its prompt and writes nothing.
        pictures: [b] int32, how many it may insert of itself; at most as many as slots are free.
        room: [b] int32, most positions, at most l. words: [b] int32, most of them.
    """

    drawn: jax.Array | np.ndarray
    pictures: jax.Array | np.ndarray
    room: jax.Array | np.ndarray
    words: jax.Array | np.ndarray


class Canvas(NamedTuple):
    """Where all rows stand.

    Attributes:
        tokens, image: [b, l] int32, as in a Batch; behind `length` [b] they are padding and 0.
        given: [b, l] bool, the prompt. open: [b, l] bool, where insertion to the right is allowed.
        clock: [b] int32, steps the text has taken; at its end nothing more is inserted.
        x: [b, i, h, w, c], pictures. age: [b, i] int32, steps each has taken; `steps` is finished.
        room: [b] int32, most positions. left, words: [b] int32, pictures and words that may yet be
            inserted.
        step: int32 scalar, steps done.
    """

    tokens: jax.Array
    image: jax.Array
    given: jax.Array
    open: jax.Array
    length: jax.Array
    clock: jax.Array
    x: jax.Array
    age: jax.Array
    room: jax.Array
    left: jax.Array
    words: jax.Array
    step: jax.Array


class Seen(NamedTuple):
    """What a network says of a canvas.

    Attributes:
        empty, log_rate: [b, l] f32, logit of pi, and log lambda. log_q: [b, l, v] f32.
        velocity: [b, i, h, w, c] f32.
    """

    empty: jax.Array
    log_rate: jax.Array
    log_q: jax.Array
    velocity: jax.Array


Network = Callable[[Batch, jax.Array, jax.Array], Seen]  # (X_t, pictures, their t [b, i])


def batch_of(canvas: Canvas, v: Vocabulary, shared: bool) -> Batch:
    """The canvas as a batch of one document a row."""
    index = jnp.arange(canvas.tokens.shape[1], dtype=jnp.int32)[None]
    held = index < canvas.length[:, None]
    inside = patch_index(canvas.image) > 0
    step = jnp.where(held & (index > 0) & ~(inside & shared), 1, 0)
    return Batch(
        tokens=jnp.where(held, canvas.tokens, v.pad),
        modality=jnp.where(canvas.image > 0, IMAGE, TEXT),
        segment=held.astype(jnp.int32),
        position=jnp.where(held, jnp.cumsum(step, axis=1), 0),
        image=canvas.image,
        weight=held.astype(jnp.float32),
        pixels=canvas.x,
    )


def network(parts: Parts, params) -> Network:
    """The model as what `fill` asks."""

    def ask(batch: Batch, x, t) -> Seen:
        hidden, velocity = look(parts, params, batch, x, t, floor=diffusion.SHORT)
        empty, log_rate = parts.gaps(params, hidden)
        logits = linear(hidden, parts.head(params), 1, "float32")
        return Seen(empty, log_rate, jax.nn.log_softmax(logits, axis=-1), velocity)

    return ask


def ask(net: Network, canvas: Canvas, v: Vocabulary, o: Options) -> Seen:
    """What the network says, guided away from what it says of the same canvas without prompt.

    There, gaps of the prompt are one: that behind the last position that stays.
    """
    t = canvas.age.astype(jnp.float32) / o.steps
    batch = batch_of(canvas, v, o.shared)
    c = net(batch, canvas.x, t)
    if not o.guided:
        return c
    first = jnp.arange(canvas.tokens.shape[1])[None] == 0
    keep = (batch.segment > 0) & (~canvas.given | first)
    u = net(compact(batch, keep)[0], canvas.x, t)
    row = jnp.maximum(jnp.cumsum(keep, axis=1, dtype=jnp.int32) - 1, 0)
    w = o.text_guidance
    other = jnp.take_along_axis(u.log_q, row[:, :, None], axis=1)
    return Seen(
        empty=c.empty,
        log_rate=guided(c.log_rate, take(u.log_rate, row), w),
        log_q=guided(c.log_q, other, w),
        velocity=guided(c.velocity, u.velocity, o.guidance),
    )


class Inserted(NamedTuple):
    """What one step inserts to the right of each position.

    Attributes:
        token: [b, l] int32. size: [b, l] int32, positions it takes, 0 for nothing.
        slot: [b, l] int32, of the picture it begins, or 0.
    """

    token: jax.Array
    size: jax.Array
    slot: jax.Array


def choose(
    canvas: Canvas, seen: Seen, v: Vocabulary, o: Options, once: bool, writing, patches: int, keys
) -> Inserted:
    """Draws what is inserted, as far as it fits: a row is filled from its left.

    Args:
        once: ask each position once, see the module. writing: [b] bool, rows that may insert.
        patches: of a picture. keys: [b].
    """
    chance = jax.nn.sigmoid(-seen.empty)
    if not once:
        later = jnp.maximum(o.steps - canvas.clock, 1).astype(jnp.float32)[:, None]
        chance *= jnp.minimum(1.0, jnp.exp(seen.log_rate) / later)
    # A key a position, so that a row's chance does not depend on the canvas it shares with others.
    split = jax.vmap(jax.vmap(jax.random.split))(each(keys, o.length))
    draws = jax.vmap(jax.vmap(jax.random.uniform))(split[:, :, 0])
    wanted = canvas.open & writing[:, None] & (draws < chance)
    index = jnp.arange(v.size)[None]
    fits = (canvas.left > 0) & (canvas.length + patches + 2 <= canvas.room)
    allowed = word_ids(v)[None] | ((index == v.boi) & fits[:, None])
    logits = jnp.where(allowed[:, None], seen.log_q, -jnp.inf)
    token = jax.vmap(jax.vmap(jax.random.categorical))(split[:, :, 1], logits).astype(jnp.int32)
    begins = wanted & (token == v.boi)
    number = jnp.cumsum(begins, axis=1, dtype=jnp.int32)
    begins &= number <= canvas.left[:, None]
    wanted &= begins | (token != v.boi)
    write = wanted & ~begins
    wanted &= begins | (jnp.cumsum(write, axis=1, dtype=jnp.int32) <= canvas.words[:, None])
    size = jnp.where(begins, patches + 2, wanted.astype(jnp.int32))
    # A picture that no longer fits behind what stands left of it is no hindrance to words.
    reached = canvas.length[:, None] + jnp.cumsum(size, axis=1)
    size = jnp.where(begins & (reached > canvas.room[:, None]), 0, size)
    size = jnp.where(
        canvas.length[:, None] + jnp.cumsum(size, axis=1) <= canvas.room[:, None], size, 0
    )
    slot = canvas.image.max(1, keepdims=True) + number
    return Inserted(token, size, jnp.where(begins & (size > 0), slot, 0))


def insert(canvas: Canvas, new: Inserted, noise, v: Vocabulary, patches: int) -> Canvas:
    """Puts what is new in its place; `noise` [b, i, h, w, c] is what new pictures begin as."""
    length = canvas.tokens.shape[1]
    column = jnp.arange(length, dtype=jnp.int32)
    start = column[None] + jnp.cumsum(new.size, axis=1) - new.size  # where the old ones go
    # Every column holds the old position that begins there or, `offset` behind it, what is new.
    old = jax.vmap(lambda s: jnp.searchsorted(s, column, side="right"))(start).astype(jnp.int32) - 1
    offset = column[None] - take(start, old)
    total = canvas.length + new.size.sum(1)
    held = column[None] < total[:, None]
    slot = take(new.slot, old)
    patch = (slot > 0) & (offset > 1) & (offset < patches + 2)
    token = jnp.where(offset == 1, take(new.token, old), jnp.where(patch, v.pad, v.eoi))
    was = offset == 0
    begun = (new.slot[:, :, None] == jnp.arange(1, noise.shape[1] + 1)[None, None]).any(1)
    return canvas._replace(
        tokens=jnp.where(held, jnp.where(was, take(canvas.tokens, old), token), v.pad),
        image=jnp.where(
            held, jnp.where(was, take(canvas.image, old), jnp.where(patch, slot, 0)), 0
        ),
        given=held & was & take(canvas.given, old),
        open=held & jnp.where(was, take(canvas.open, old), (slot == 0) | (offset == patches + 2)),
        length=total,
        x=jnp.where(begun[:, :, None, None, None], noise, canvas.x),
        age=jnp.where(begun, 0, canvas.age),
        left=canvas.left - begun.sum(1, dtype=jnp.int32),
        words=canvas.words - (new.size == 1).sum(1, dtype=jnp.int32),
    )


def limit_of(parts: Parts, o: Options) -> int:
    """Steps of the text: those of the clock, or where positions are asked once, one a position."""
    return o.length if parts.config.target == "leftmost" else o.steps


def busy(parts: Parts, canvas: Canvas, o: Options):
    """[b] bool: rows whose text is not at its end."""
    return canvas.open.any(1) & (canvas.clock < limit_of(parts, o))


def step(parts: Parts, net: Network, canvas: Canvas, keys, o: Options) -> Canvas:
    """One step of all rows; keys [b], one a row, the same at every step."""
    v, p = parts.vocabulary, parts.config.tokens
    once, writing = parts.config.target == "leftmost", busy(parts, canvas, o)
    seen = ask(net, canvas, v, o)
    split = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, canvas.step)))(keys)
    new = choose(canvas, seen, v, o, once, writing, p, split[:, 0])
    noise = fresh(split[:, 1], canvas.x.shape[1:])
    young = canvas.age < o.steps
    canvas = canvas._replace(
        x=canvas.x + wide(young.astype(jnp.float32)) * seen.velocity / o.steps,
        age=canvas.age + young.astype(jnp.int32),
        open=canvas.open & ~writing[:, None] if once else canvas.open,
        clock=canvas.clock + writing.astype(jnp.int32),
        step=canvas.step + 1,
    )
    return insert(canvas, new, noise, v, p)


def fill(parts: Parts, net: Network, canvas: Canvas, keys, o: Options) -> Canvas:
    """Steps until every row's times are 1; keys [b], one a row."""

    def more(canvas: Canvas):
        return busy(parts, canvas, o).any() | (canvas.age < o.steps).any()

    return jax.lax.while_loop(more, lambda canvas: step(parts, net, canvas, keys, o), canvas)


def each(keys, count: int):
    """Keys [b] -> [b, count], which do not depend on the count."""
    return jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(count)))(keys)


def fresh(keys, shape):
    """Noise [b, i, h, w, c] for pictures of shape (i, h, w, c); keys [b]."""
    draw = partial(jax.random.normal, shape=shape[1:])
    return jax.vmap(jax.vmap(draw))(each(keys, shape[0]))


def begin(parts: Parts, params, rows: Batch, plan: Plan, keys, o: Options) -> Canvas:
    """Prompts as canvases.

    Nothing is inserted before given words, so behind the prompt's end, and on either side of its
    pictures; with suffixes deleted, behind the end alone.

    Args:
        rows: [b, m] prompts, m <= l, one document a row; those that draw end in BOI.
        plan: what is asked of them. keys: [b].
    """
    v, p, drawn = parts.vocabulary, parts.config.tokens, plan.drawn
    behind = ((0, 0), (0, o.length - rows.tokens.shape[1]))
    tokens, image, held = (jnp.pad(x, behind) for x in (rows.tokens, rows.image, rows.segment > 0))
    index = jnp.arange(o.length)[None]
    taken = held.sum(1, dtype=jnp.int32)
    slots = image.max(1)
    end = index - taken[:, None]
    patch = drawn[:, None] & (end >= 0) & (end < p)
    tokens = jnp.where(drawn[:, None] & (end == p), v.eoi, jnp.where(held, tokens, v.pad))
    last = index == taken[:, None] - 1
    gap = held & (image == 0) & (tokens != v.boi)
    if parts.config.deletion == "uniform":
        gap &= last | (shift(tokens, -1) == v.boi)
    else:
        gap &= last
    # Which slots hold something: given pictures as they are, the one to draw as noise.
    slot = jnp.arange(o.slots)[None]
    draws = drawn[:, None] & (slot == slots[:, None])
    signal = jnp.pad(
        parts.signal(params, rows),
        ((0, 0), (0, o.slots - rows.pixels.shape[1]), (0, 0), (0, 0), (0, 0)),
    )
    steps = limit_of(parts, o)
    return Canvas(
        tokens=tokens.astype(jnp.int32),
        image=jnp.where(patch, slots[:, None] + 1, image).astype(jnp.int32),
        given=held & ~(last & drawn[:, None]),
        open=gap & ~drawn[:, None],
        length=taken + drawn.astype(jnp.int32) * (p + 1),
        clock=jnp.where(drawn, steps, 0).astype(jnp.int32),
        x=jnp.where(wide(draws), fresh(keys, signal.shape[1:]), signal),
        age=jnp.where(draws, 0, o.steps).astype(jnp.int32),
        room=jnp.asarray(plan.room),
        left=jnp.asarray(plan.pictures),
        words=jnp.asarray(plan.words),
        step=jnp.zeros((), jnp.int32),
    )


def generate(parts: Parts, params, rows: Batch, plan: Plan, keys, options: Options) -> Canvas:
    """Prompts -> full canvases; see `begin`."""
    split = jax.vmap(jax.random.split)(keys)
    canvas = begin(parts, params, rows, plan, split[:, 0], options)
    return fill(parts, network(parts, params), canvas, split[:, 1], options)
