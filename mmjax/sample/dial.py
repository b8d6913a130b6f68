"""Sampling with the dial: one more span behind every prompt, at any alpha, with a cache.

The clock s takes S = steps / w even steps, so that every token has about `steps` of its own: all n
together at alpha = 0, one after the other at alpha = 1. In a step the tokens go whose windows it
meets, from t_i(s) to t_i(s'): patches by a solver's rule, masked tokens by being revealed with
probability (k(t_i(s')) - k(t_i(s))) / (1 - k(t_i(s))), k(t) being the chance to be clean. A token
that starts within a step is active in all of it, at time 0.
Who is active is the same for all rows and known beforehand, so every step runs no more than the
window, the tokens that it has just left clean, and the row before them, whose view of the window is
not what later tokens are to see.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import dial, diffusion
from mmjax.batch import IMAGE, TEXT, Batch
from mmjax.error import UserError
from mmjax.models import blocks
from mmjax.models.denoise import over, paced
from mmjax.models.dial import Parts
from mmjax.sample.choose import allow, either, likeliest
from mmjax.sample.decode import logits_of, prefill
from mmjax.sample.engine import word_ids
from mmjax.sample.flow import Solver, begun, guided
from mmjax.sample.flow import step as advance
from mmjax.sample.sizes import arguments

KINDS = ("text", "codes", "patches")


@arguments(("steps", "temperature", "guidance", "solver"), kept=("guided",))
@dataclass(frozen=True)
class Options:
    """What is made and how. Compiled in where it is static, else but for its numbers.

    Attributes:
        kind: "text", "codes" or "patches". size: n, tokens of the span.
        steps: of each token; tokens that are revealed in one step do not know of each other, so
            more steps come nearer to the model's law. Where one is active at a time, 1.
        temperature: of tokens; 0 is greedy. guidance: s in u + s (c - u); 1 is none. The other
            stream's prompt is BOS, and for a picture BOI.
        shared: whether the patches of a picture share one position, as in training.
        solver: of patches; its steps and guidance are those above. Its times are those of a patch.
    """

    kind: str
    size: int
    steps: int
    temperature: float
    guidance: float
    shared: bool
    solver: Solver | None = None

    def __post_init__(self):
        """Checks ranges."""
        if self.kind not in KINDS:
            raise UserError(f"kind={self.kind!r} is unknown; have: {', '.join(KINDS)}")
        if self.size < 1 or self.steps < 1:
            raise UserError(f"size={self.size} and steps={self.steps} must be at least 1")
        assert self.discrete or self.solver is not None

    @cached_property
    def guided(self) -> bool:
        """Whether there is any guidance."""
        return self.guidance != 1.0

    @property
    def discrete(self) -> bool:
        """Whether tokens are made, not patches."""
        return self.kind != "patches"


class Plan(NamedTuple):
    """Who goes when; numpy, the same for all rows.

    Attributes:
        time: [S + 1, n] f64, t_i at the steps' borders. active: [S, n] bool.
        start: [S] int32, first row of the span that a step runs; -1 is the prompt's last position.
        rows: how many it runs.
    """

    time: np.ndarray
    active: np.ndarray
    start: np.ndarray
    rows: int

    @property
    def evaluations(self) -> int:
        """Active tokens summed over steps: what a sampler pays that runs no others."""
        return int(self.active.sum())


def plan(form: str, alpha: float, n: int, steps: int, discrete: bool) -> Plan:
    """Steps for a span of n tokens; see the module."""
    with jax.ensure_compile_time_eval():
        place = jnp.arange(n, dtype=jnp.int32)
        window = dial.windows(form, alpha, place, jnp.full((n,), n, jnp.int32))
    begin, end, scale = (np.asarray(x, np.float64) for x in window)
    width = (end - begin)[0] / scale[0]
    if discrete and n * width <= 1 + 1e-4:  # one token at a time: it is revealed in one step
        steps = 1
    count = max(math.ceil(steps / width - 1e-4), 1)
    clock = scale[0] * np.arange(count + 1)[:, None] / count
    near = 1e-6 * scale[0]  # windows are f32: what is so near to a border lies on it
    active = (begin < clock[1:] - near) & (end > clock[:-1] + near)
    time = np.where(end <= clock + near, 1.0, (clock - begin) / (end - begin))
    time = np.where(begin >= clock - near, 0.0, time)
    first = active.argmax(1)
    last = n - 1 - active[:, ::-1].argmax(1)
    start = np.concatenate([[0], first[:-1]]) - int(discrete)
    return Plan(time, active, start.astype(np.int32), int((last - start).max()) + 1)


def blank(parts: Parts, prompt: Batch, kind: str) -> Batch:
    """The prompt without its content, `BOS`, and `BOI` for a picture."""
    v = parts.vocabulary
    index = jnp.arange(prompt.tokens.shape[1])[None]
    tokens = jnp.where(index == 0, v.bos, jnp.where(index == 1, v.boi, v.pad))
    both = jnp.broadcast_to(index < (1 if kind == "text" else 2), prompt.tokens.shape)
    nothing = jnp.zeros(prompt.tokens.shape, jnp.int32)
    return prompt._replace(
        tokens=jnp.where(both, tokens, v.pad).astype(jnp.int32),
        modality=nothing,
        segment=both.astype(jnp.int32),
        position=jnp.where(both, index, 0).astype(jnp.int32),
        image=nothing,
    )


def make(parts: Parts, params, prompt: Batch, keys, options: Options):
    """Makes a span behind every prompt.

    Args:
        prompt: [b, l] rows; each ends in text, that of a picture in BOI.
        keys: [b], one a row.

    Returns:
        (tokens [b, n] int32, or for patches the picture's signal [b, h, w, c], and the number of
        token evaluations a row, see Plan). Text is as long as it is asked for; what stands behind
        its first EOS is none.
    """
    found = plan_of(parts.config, options)
    chart = chart_of(parts.config, options, found)
    made = follow(parts, params, prompt, keys, chart, options, found.rows)
    return made, jnp.asarray(found.evaluations, jnp.int32)


def plan_of(c, options: Options) -> Plan:
    """The plan of a model's configuration."""
    alpha = c.text_alpha if options.kind == "text" else c.image_alpha
    return plan(c.form, alpha, options.size, options.steps, options.discrete)


class Chart(NamedTuple):
    """A plan as arguments of a program, which serves any number of steps up to a size.

    Attributes:
        time: [S + 1, n] f32. active: [S, n] bool. start: [S] int32. chance: [S, n] f32, see
            `revealed`; 0 for patches. steps: how many there are, at most S.
    """

    time: np.ndarray
    active: np.ndarray
    start: np.ndarray
    chance: np.ndarray
    steps: int


def chart_of(c, options: Options, found: Plan, size: int = 0) -> Chart:
    """The chart of a plan, of `size` steps if there are fewer."""
    chance = np.zeros(found.active.shape, np.float32)
    if options.discrete:
        chance = revealed(c.schedule, found)
    count = len(found.active)
    behind = max(size - count, 0)

    def more(x, dtype):
        return np.pad(x, ((0, behind), *((0, 0),) * (x.ndim - 1)), mode="edge").astype(dtype)

    return Chart(
        more(found.time, np.float32), more(found.active, bool), more(found.start, np.int32),
        more(chance, np.float32), count,
    )  # fmt: skip


def follow(parts: Parts, params, prompt: Batch, keys, chart: Chart, options: Options, rows: int):
    """`make` by a chart; rows: how many of the span a step runs, see `Plan`."""
    asked = prompt
    if options.guided:
        other = blank(parts, prompt, options.kind)
        asked = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), prompt, other)
    look = looker(parts, params, asked, rows, options)
    go = reveal if options.discrete else flow
    return go(parts, params, look, chart, keys, options)


class Step(NamedTuple):
    """A step's part of a chart."""

    number: jax.Array
    time: jax.Array
    to: jax.Array
    active: jax.Array
    start: jax.Array


def each_step(chart: Chart, times, body, carry):
    """carry = body(carry, step) for all steps; times [S + 1, n] f32."""
    active, start = jnp.asarray(chart.active), jnp.asarray(chart.start)

    def one(number, carry):
        step = Step(number, times[number], times[number + 1], active[number], start[number])
        return body(carry, step)

    return jax.lax.fori_loop(0, chart.steps, one, carry)


def looker(parts: Parts, params, prompt: Batch, rows: int, options: Options):
    """(the cache behind the prompts, a function that runs a step's rows behind them).

    The function takes (x [b, n, d], what the span's tokens are now, step, cache), and returns
    (outputs [b, w, d], which places [w] they are at, cache).
    """
    n, w = options.size, rows
    filled = prefill(parts, params, prompt, n)
    total, base = filled.cache.keys.shape[3], filled.length[:, None]
    last = jnp.take_along_axis(prompt.tokens, base - 1, axis=1)
    anchor = parts.embed(params, last)
    tower = TEXT if options.kind == "text" else IMAGE
    # Patches that see each other both ways when clean: those just left clean are all run again.
    wide = parts.config.clean_mask == "both" and not options.discrete
    block = blocks.of_patches(parts.config.image_alpha, n) if wide else None

    def run(x, step: Step, cache):
        row = step.start + jnp.arange(w)
        x = jnp.concatenate([jnp.broadcast_to(anchor, (len(base), 1, x.shape[-1])), x], axis=1)
        x = jnp.take(x, jnp.minimum(row, n - 1) + 1, axis=1)
        columns = jnp.where(row[None] < n, base + row[None], total)
        further = jnp.minimum(row, 0) if options.shared else row
        place = filled.position[:, None] + 1 + further[None]
        mask = seen(step.active, row, jnp.arange(total)[None] - base, options.discrete, block)
        mask &= filled.sees[:, None]
        kind = jnp.broadcast_to(jnp.where(row < 0, TEXT, tower)[None], columns.shape)
        hidden, cache = parts.run(params, x, mask, place, cache, columns, tower=kind)
        return hidden, row, cache

    return filled.cache, run


def seen(active, row, column, discrete: bool, block=None):
    """Who sees whom in a span and behind its prompt; see `mmjax.dial`.

    Args:
        active: [n] bool. row: [w] int32, places in the span; -1 is before it, from n on nothing.
        column: [b, m] int32, places of what is in the cache, negative for the prompt.
        block: [n] int32, blocks whose tokens see each other at all times; None if none do.

    Returns:
        [b, w, m] bool.
    """
    n = len(active)

    def own(place):
        return (place >= 0) & (place < n)

    def at(place):
        return active[jnp.clip(place, 0, n - 1)] & own(place)

    r, j = row[None, :, None], column[:, None, :]
    both = at(r) & at(j)
    if discrete:
        both |= at(r + 1) & at(j) & (j != r + 1)
    if block is not None:
        same = block[jnp.clip(r, 0, n - 1)] == block[jnp.clip(j, 0, n - 1)]
        both |= own(r) & own(j) & same
    return (j <= r) | both


def flow(parts: Parts, params, look, chart: Chart, keys, options: Options):
    """Patches from noise by a solver's steps; -> signal [b, h, w, c]."""
    c, (cache, run), b = parts.config.base, look, len(keys)
    solver, apart = options.solver, parts.config.image_alpha > 0
    assert solver is not None
    times = diffusion.shifted(jnp.asarray(chart.time), solver.shift)
    if apart:  # else all share one time, whose steps may be even
        times = paced(c, times, jnp.zeros(times.shape, bool))
    noise = jax.vmap(lambda key: jax.random.normal(key, c.shape))(keys)
    streams = cache.keys.shape[1] // b

    def meet(t, x):
        """[n] numbers of patches as they meet x [b, h, w, c]."""
        del x
        return over(c, t[None, None])[0]

    def body(carry, step: Step):
        x, cache = carry
        caches = []
        active = meet(step.active.astype(jnp.float32), x) > 0

        def velocity(x, t):
            noisy = jnp.tile(x, (streams, 1, 1, 1))[:, None]
            level = jnp.broadcast_to(t[None, None], (streams * b, 1, options.size))
            level = level if apart else level[..., 0]
            patches, kept = parts.base.patch_in(params, noisy, level)
            found, row, filled = run(patches[:, 0], step, cache)
            caches.append(filled)
            hidden = jnp.zeros(patches.shape, found.dtype).at[:, 0, row].set(found, mode="drop")
            output = parts.base.patch_out(params, hidden, kept)
            at = over(c, level), diffusion.SHORT
            v = diffusion.estimate(c.path, c.prediction, output, noisy, *at).velocity[:, 0]
            v = jnp.where(active, v, 0.0)  # no other is of the length that guidance keeps
            return v if streams == 1 else solver.guide(v[:b], v[b:], meet(t, x))

        time = begun(c.prediction, step.time, step.to)
        ahead = advance(solver.kind, c.path, velocity, x, time, step.to, meet)
        # Heun's second look leaves no trace: what it wrote is written anew in the next step.
        return jnp.where(active, ahead, x), caches[0]

    return each_step(chart, times, body, (noise, cache))[0]


def reveal(parts: Parts, params, look, chart: Chart, keys, options: Options):
    """Tokens from [MASK]; -> [b, n] int32."""
    v, (cache, run), b, n = parts.vocabulary, look, len(keys), options.size
    streams = cache.keys.shape[1] // b
    ids = jnp.arange(v.size)
    allowed = word_ids(v) | (ids == v.eos)
    if options.kind == "codes":
        allowed = (ids >= v.codes) & (ids < v.codes + v.code_count)
    chances = jnp.asarray(chart.chance)

    def body(carry, step: Step):
        tokens, hidden, cache = carry
        chance = chances[step.number]
        x = parts.embed(params, tokens)
        x = jnp.where(hidden[..., None], params["mask"].astype(x.dtype)[None, None], x)
        out, row, cache = run(jnp.tile(x, (streams, 1, 1)), step, cache)
        logits = logits_of(parts, params, out)
        if streams > 1:
            logits = guided(logits[:b], logits[b:], options.guidance)
        drawn = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, step.number)))(keys)
        found = pick(allow(logits, allowed[None, None]), drawn[:, 0], options.temperature)
        lucky = jax.vmap(lambda key: jax.random.uniform(key, (n,)))(drawn[:, 1]) < chance[None]
        now = hidden & step.active[None] & lucky
        found = tokens.at[:, row + 1].set(found, mode="drop")
        return jnp.where(now, found, tokens), hidden & ~now, cache

    start = jnp.full((b, n), v.pad, jnp.int32), jnp.ones((b, n), bool), cache
    return each_step(chart, jnp.asarray(chart.time), body, start)[0]


def revealed(schedule: str, chart: Plan):
    """[S, n] f32: chance that a token which is masked before a step is clean behind it."""
    with jax.ensure_compile_time_eval():
        clean = np.asarray(dial.clean_chance(schedule, chart.time), np.float64)
    left = np.maximum(1.0 - clean[:-1], 1e-9)
    return ((clean[1:] - clean[:-1]) / left).astype(np.float32)


def pick(logits, keys, temperature: float):
    """[b, w, v], keys [b] -> ids [b, w] int32; the likeliest at temperature 0."""

    def draw(logits):
        return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)

    return either(temperature == 0.0, likeliest, draw, logits)
