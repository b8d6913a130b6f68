"""The interleaved engine: text and pictures in one compiled loop, each row in a state of its own.

Some rows may write words while others draw. The grammar is part of the loop: behind BOI come
exactly as many codes as a picture has, or the steps of a solver over all its patches, then EOI,
and only then words again (Chameleon's two decoders and the switch between them; Transfusion's LM
and diffusion modes). Guidance keeps further streams of each row, which hold its pictures only, or
nothing but the picture being drawn, each at positions of its own.

Every function is pure and row-wise: a row's result depends on nothing but its prompt and its key.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.batch import IMAGE, TEXT, Batch, Vocabulary
from mmjax.layers.attention import KV
from mmjax.models.family import Reader
from mmjax.sample.choose import allow, choose, contrast, guided3, rule_of
from mmjax.sample.decode import logits_of, prefill
from mmjax.sample.flow import Solver, guided
from mmjax.sample.paint import Canvas, Stand, empty, paint
from mmjax.sample.sizes import arguments, power_of
from mmjax.sample.streams import stream_of
from mmjax.sample_config import Choice


@arguments(
    ("words", "codes", "solver", "guidance", "image_guidance", "contrast", "contrast_k"),
    kept=("streams", "sorted"),
    change={"words": rule_of, "codes": rule_of},
)
@dataclass(frozen=True)
class Options:
    """How tokens are chosen. Compiled in where it is static, else in its sizes and kinds only.

    Attributes:
        count: most turns of the loop: new tokens, and steps of the solver. room: most new positions
            a row. pictures: most new pictures a row.
        words, codes: choice of text and of image codes.
        solver: how pictures are denoised, for families that do so; None where they are codes.
        shared: whether the patches of a denoised picture share one position.
        guidance: s in u + s (c - u) for codes; 1 is none. image_guidance: with pictures in the
            prompt, s_img of the three-way form; 0 leaves it two-way.
        contrast: alpha of contrastive decoding (CD-K) of codes, instead of guidance; 0 is none.
        contrast_k: its k.
        masked: the further streams have `<mask>` in place of words, as models of CM3's objective
            know captions that are still to come (CM3Leon); without it nothing.
    """

    count: int
    room: int
    pictures: int
    words: Choice
    codes: Choice
    solver: Solver | None = None
    shared: bool = False
    guidance: float = 1.0
    image_guidance: float = 0.0
    contrast: float = 0.0
    contrast_k: int = 1
    masked: bool = False

    @cached_property
    def sorted(self) -> int:
        """How many codes contrast sorts; 0 without it."""
        return power_of(self.contrast_k, 16) if self.contrast else 0

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """What each row keeps beside itself: "image" (its pictures), "blank"; see `stream_of`."""
        if self.contrast:
            return ("full", "blank")
        if self.image_guidance:
            return ("full", "image", "blank")
        return ("full",) if self.guidance == 1.0 else ("full", "blank")


class Plan(NamedTuple):
    """What is asked of each row; [b] int32 all, but for `ends`.

    Attributes:
        left: turns of a picture that is open when the prompt ends, its closing one included; 0 if
            words come next.
        close: what closes that picture.
        pictures: how many it may begin by itself. until: after how many closed ones it stops; 0 no
            limit. limit: most turns. columns: how long the row may grow. words: most of them.
        ends: [b, e] ids that end it.
    """

    left: jax.Array
    close: jax.Array
    pictures: jax.Array
    until: jax.Array
    limit: jax.Array
    columns: jax.Array
    words: jax.Array
    ends: jax.Array


class State(NamedTuple):
    """Where all rows stand; s streams.

    Attributes:
        cache: [n, s b, g, m, k] each. hidden: [s, b, d], outputs at each stream's last token.
        column, position: [s, b] int32, of the next token. left, pictures, closed: [b] int32.
        close: [b] int32. done: [b] bool. seen: [b, v] bool, ids so far. sees: [s b, m] bool,
            columns that may be looked at. words: [b] int32, how many were written. tokens:
            [b, count] int32, `pad` at turns without one. step: int32 scalar, turns taken.
        canvas: pictures that are denoised, or None.
    """

    cache: KV
    hidden: jax.Array
    column: jax.Array
    position: jax.Array
    left: jax.Array
    pictures: jax.Array
    closed: jax.Array
    close: jax.Array
    done: jax.Array
    seen: jax.Array
    sees: jax.Array
    words: jax.Array
    tokens: jax.Array
    step: jax.Array
    canvas: Canvas | None


def turns(parts: Reader, options: Options) -> int:
    """Turns between the one that begins a picture and the one that closes it."""
    # One for each code; or for each step of the solver, and the pass over the finished picture.
    return parts.config.tokens if options.solver is None else options.solver.steps + 1


def begin(parts, params, prompt: Batch, plan: Plan, options: Options) -> State:
    """Reads the prompts, one a row, beginning at column 0."""
    v, streams = parts.vocabulary, options.streams
    b, length = prompt.tokens.shape
    prompt = parts.coded(params, prompt)
    if v.code_count:  # the codes stand in the tokens now: pixels have done their part
        prompt = prompt._replace(pixels=prompt.pixels[:, :0])
    rows = [stream_of(name, prompt, plan.left > 0, v, options.masked) for name in streams]
    whole = jax.tree.map(lambda *x: jnp.concatenate(x), *rows)
    filled = prefill(parts, params, whole, options.room)
    by_stream = (len(streams), b)
    seen = jnp.zeros((b, v.size), bool)
    held = prompt.segment > 0
    row = jnp.broadcast_to(jnp.arange(b)[:, None], (b, length))
    seen = seen.at[row, jnp.where(held, prompt.tokens, v.size)].set(True, mode="drop")
    nothing = jnp.zeros((b,), jnp.int32)
    return State(
        cache=filled.cache,
        hidden=filled.last.reshape(*by_stream, -1),
        column=filled.length.reshape(by_stream).astype(jnp.int32),
        position=filled.position.reshape(by_stream).astype(jnp.int32) + 1,
        left=plan.left,
        pictures=plan.pictures,
        closed=nothing,
        close=plan.close,
        done=plan.limit <= 0,
        seen=seen,
        sees=filled.sees,
        words=nothing,
        tokens=jnp.full((b, options.count), v.pad, jnp.int32),
        step=jnp.zeros((), jnp.int32),
        canvas=None if options.solver is None else empty(parts.config, b, options.pictures),
    )


def advance(
    parts: Reader, params, state: State, plan: Plan, keys, until, options: Options
) -> State:
    """Makes tokens until `until` (int32 scalar) of them or until every row is done."""

    def more(state: State):
        return (state.step < jnp.minimum(until, options.count)) & ~state.done.all()

    def body(state: State) -> State:
        token = pick(parts, params, state, plan, keys, options)
        if options.solver is not None:
            state = draw(parts, params, state, keys, options.solver, options)
        return feed(parts, params, state, token, plan, options)

    return jax.lax.while_loop(more, body, state)


def draw(parts, params, state: State, keys, solver: Solver, options: Options) -> State:
    """One step of the solver for the rows whose picture is open; nothing where there are none."""
    turn = turns(parts, options) + 1 - state.left
    open_now = (state.left >= 2) & ~state.done
    turn = jnp.where(open_now, turn, -1)

    def go(held):
        canvas, stand = held
        number, shared = state.closed, options.shared
        return paint(parts, params, canvas, stand, turn, number, keys, solver, shared)

    held = state.canvas, Stand(state.cache, state.column, state.position, state.sees)
    canvas, stand = jax.lax.cond(open_now.any(), go, lambda held: held, held)
    return state._replace(
        canvas=canvas, cache=stand.cache, column=stand.column, position=stand.position
    )


def word_ids(vocabulary: Vocabulary):
    """[v] bool: ids of words, neither sentinels nor codes nor barred."""
    v = vocabulary
    index = jnp.arange(v.size)
    code = (index >= v.codes) & (index < v.codes + v.code_count)
    return ~code & ~jnp.isin(index, jnp.array(v.sentinels + v.barred))


def pick(parts: Reader, params, state: State, plan: Plan, keys, options: Options):
    """The next token of each row, [b] int32; `pad` for rows that are done."""
    v = parts.vocabulary
    logits = logits_of(parts, params, state.hidden)
    draws = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, state.step)))(keys)
    # Words, if any are left, an end, or BOI where a picture still fits.
    index = jnp.arange(v.size)[None]
    words = word_ids(v)[None]
    room = plan.limit - state.step >= turns(parts, options) + 2
    room &= plan.columns - state.column[0] >= parts.config.tokens + 2
    may_begin = (state.pictures > 0) & room
    allowed = words & (state.words < plan.words)[:, None]
    allowed |= (index[:, None] == plan.ends[:, :, None]).any(1)
    allowed |= may_begin[:, None] & (index == v.boi)
    # Words are penalised for repetition, an end and BOI are not.
    word = choose(allow(logits[0], allowed), options.words, draws[:, 0], state.seen & words)
    code = jnp.full_like(word, v.pad)  # a turn of the solver, or nothing
    if v.code_count:
        span = slice(v.codes, v.codes + v.code_count)
        codes = code_logits(logits[..., span], options)
        code = choose(codes, options.codes, draws[:, 1], state.seen[:, span]) + v.codes
    token = jnp.where(state.left == 0, word, jnp.where(state.left == 1, state.close, code))
    return jnp.where(state.done, v.pad, token).astype(jnp.int32)


def code_logits(logits, options: Options):
    """Logits of all streams [s, b, v] -> [b, v], guided or contrasted."""
    if len(options.streams) == 1:
        return logits[0]
    if options.sorted:
        o = options
        return contrast(logits[0], logits[1], o.contrast, o.contrast_k, o.sorted)
    if "image" in options.streams:
        full, image, blank = logits[0], logits[1], logits[2]
        return guided3(full, image, blank, options.guidance, options.image_guidance)
    return guided(logits[0], logits[1], options.guidance)


def bare(place, begins, options: Options):
    """[b] columns or positions of the blank stream: when a picture begins, behind BOS and mask."""
    return jnp.where(begins, 1 + options.masked, place)


def feed(parts: Reader, params, state: State, token, plan: Plan, options: Options) -> State:
    """Reads the chosen tokens [b] into every stream they belong to, and moves each row on."""
    v = parts.vocabulary
    streams, b = state.column.shape
    live = ~state.done
    begins = live & (state.left == 0) & (token == v.boi)
    closes = live & (state.left == 1)
    drawing = begins | (live & (state.left > 0))
    left = jnp.where(begins, turns(parts, options) + 1, jnp.maximum(state.left - 1, 0))
    closed = state.closed + closes.astype(jnp.int32)
    ended = (token[:, None] == plan.ends).any(1) & ~drawing
    done = ended | (closes & (plan.until > 0) & (closed >= plan.until))
    # A picture may fill the row: it is closed one turn later, by a token that is not read.
    done |= (state.step + 1 >= plan.limit) | ((state.column[0] >= plan.columns) & ~drawing)

    read, beside = live, drawing
    if options.solver is not None:  # patches were read already
        read, beside = live & (state.left < 2), begins
    fed = jnp.stack([read & ~done] + [beside & ~done] * (streams - 1))
    column, position = state.column, state.position
    if streams > 1:
        column, position = (x.at[-1].set(bare(x[-1], begins, options)) for x in (column, position))

    def look(held):
        cache, hidden = held
        total = cache.keys.shape[3]
        at = jnp.where(fed, column, total).reshape(-1, 1)  # beyond the cache: written nowhere
        mask = jnp.arange(total)[None, None] <= column.reshape(-1, 1, 1)
        mask &= state.sees[:, None]
        tokens = jnp.tile(token, streams)[:, None]
        code = (tokens >= v.codes) & (tokens < v.codes + v.code_count)
        found, cache = parts.run(
            params, parts.embed(params, tokens), mask, position.reshape(-1, 1), cache, at,
            tower=jnp.where(code, IMAGE, TEXT),
        )  # fmt: skip
        found = found.reshape(streams, b, -1)
        return cache, jnp.where(fed[..., None], found, hidden)

    held = state.cache, state.hidden
    if options.solver is None:
        cache, hidden = look(held)
    else:
        cache, hidden = jax.lax.cond(fed.any(), look, lambda held: held, held)
    return state._replace(
        cache=cache,
        hidden=hidden,
        column=column + fed.astype(jnp.int32),
        position=position + fed.astype(jnp.int32),
        left=left,
        pictures=state.pictures - begins.astype(jnp.int32),
        closed=closed,
        close=jnp.where(begins, v.eoi, state.close),
        done=state.done | done,
        seen=state.seen.at[jnp.arange(b), token].set(True),
        words=state.words + (live & ~drawing & ~ended).astype(jnp.int32),
        tokens=state.tokens.at[:, state.step].set(token),
        step=state.step + 1,
    )
