"""The dial alpha between flow (0) and autoregression (1): windows, times, and who sees whom.

A span of n tokens is written along one clock s in [0, 1]. Token i has a window [a_i, a_i + w):
    ramp    a_i = alpha i / n,              w = 1 - alpha (n - 1) / n
    block   a_i = floor(i K / n) / K,       w = 1 / K,   K = round(n^alpha), from 1 to n
in which its own time t_i = clip((s - a_i) / w, 0, 1) runs from 0 (noise, [MASK]) to 1 (clean).
alpha = 0: all windows are the whole of [0, 1]: diffusion. alpha = 1: one token at a time, in order.
On average n w tokens are active, and the last one ends at s = 1. Blocks are coarse where n is
small: n = 4 and alpha = 0.25 give K = 1.

Tokens see each other causally, and those that are active at the same time both ways:
    continuous   (j <= i) or (active_i and active_j)
    discrete     (j <= r) or (active_r and active_j) or (active_{r+1} and active_j and j != r+1)
Discrete tokens are read out shifted: row r predicts token r + 1, the first one from the row before
the span, its anchor. The last clause shows the row at the window's left edge what the others see,
but not its own token's [MASK], so that alpha = 1 is next-token prediction to the last bit.
A token that has not begun is seen by no other of its span.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.batch import Batch, causal, same_document

FORMS = ("ramp", "block")
SCHEDULES = {"linear": 0.5, "cosine": 2 / math.pi}  # -> share that is masked, over all times


class Spans(NamedTuple):
    """What is written along clocks, position by position; [b, l] int32 each.

    Attributes:
        number: of the position's span within the row, from 1 on; 0 is none: clean and causal.
        place: how many tokens of its span stand before it. size: n of its span; 0 where none.
    """

    number: jax.Array
    place: jax.Array
    size: jax.Array


class Window(NamedTuple):
    """Begin and end of tokens' windows on a clock that runs from 0 to `scale`; f32 each.

    In these units begin and end are exact at alpha = 0, at alpha = 1 and for blocks, so that no
    rounding opens a gap between the windows of neighbours or makes them overlap.
    """

    begin: jax.Array
    end: jax.Array
    scale: jax.Array

    @property
    def width(self):
        """w, as a share of the clock."""
        return (self.end - self.begin) / self.scale


def spans(batch: Batch, member) -> Spans:
    """Numbers the spans of a batch: maximal runs of members within a document.

    A picture's patches or codes are a run of their own.

    Args:
        member: [b, l] bool, which positions are written along a clock.
    """
    b, length = batch.tokens.shape
    index = jnp.arange(length)[None]
    kind = jnp.stack([batch.segment, batch.image, member.astype(jnp.int32)], -1)
    begins = (kind[:, 1:] != kind[:, :-1]).any(-1)
    side = jnp.ones((b, 1), bool)
    starts = jnp.concatenate([side, begins], axis=1)
    ends = jnp.concatenate([begins, side], axis=1)
    first = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, index, length), axis=1, reverse=True)
    number = jnp.cumsum(starts & member, axis=1, dtype=jnp.int32)
    return Spans(*(jnp.where(member, x, 0) for x in (number, index - first, last - first + 1)))


def windows(form: str, alpha, place, size) -> Window:
    """Windows of tokens.

    Args:
        form: "ramp" or "block". alpha: f32 in [0, 1], shaped like place, or a scalar.
        place, size: int32 of one shape, i and n >= 1.
    """
    i, n = place.astype(jnp.float32), size.astype(jnp.float32)
    alpha = jnp.broadcast_to(jnp.asarray(alpha, jnp.float32), n.shape)
    if form == "ramp":
        return Window(alpha * i, n - alpha * (n - 1.0 - i), n)
    count = jnp.clip(jnp.round(n**alpha).astype(jnp.int32), 1, size)
    begin = (place * count // size).astype(jnp.float32)
    return Window(begin, begin + 1.0, count.astype(jnp.float32))


def local_time(s, window: Window):
    """t_i in [0, 1] at clock s; f32, shaped like the window."""
    return jnp.clip((s * window.scale - window.begin) / (window.end - window.begin), 0.0, 1.0)


def active(s, window: Window):
    """Whether a_i <= s < a_i + w; bool, shaped like the window.

    Decided on s and not by 0 < t < 1: at s = 0 every token of alpha = 0 has t = 0, yet is active.
    """
    y = s * window.scale
    return (window.begin <= y) & (y < window.end)


def clean_chance(schedule: str, t):
    """Probability that a discrete token is clean at its own time t; f32, shaped like t.

    "linear" is t; "cosine" 1 - cos(pi t / 2), which keeps more masked for longer (MaskGIT,
    arXiv 2202.04200, section 3.2). The bound of the likelihood is the same for both.
    """
    return t if schedule == "linear" else 1.0 - jnp.cos(0.5 * jnp.pi * t)


def reveal_rate(schedule: str, t, least: float):
    """Rate k' / (1 - k) at which masked tokens become clean, k being `clean_chance`; f32, like t.

    least: what is divided by is at least that.
    """
    if schedule == "linear":
        return 1.0 / jnp.maximum(1.0 - t, least)
    angle = 0.5 * jnp.pi * t
    return 0.5 * jnp.pi * jnp.sin(angle) / jnp.maximum(jnp.cos(angle), least)


class Moment(NamedTuple):
    """What the clocks say; [b, l] each.

    Attributes:
        spans: whose clocks. time: f32, t_i; 1 outside spans. active: bool.
        rate: f32, 1 / w where active, else 0; 1 outside spans. Its mean over s is 1 everywhere.
    """

    spans: Spans
    time: jax.Array
    active: jax.Array
    rate: jax.Array


def moment(form: str, alpha, held: Spans, s) -> Moment:
    """Every position at its span's clock; alpha and s [b, l] f32, s in [0, 1)."""
    inside = held.number > 0
    window = windows(form, alpha, held.place, jnp.maximum(held.size, 1))
    now = active(s, window) & inside
    rate = jnp.where(now, 1.0 / window.width, 0.0)
    return Moment(
        held,
        jnp.where(inside, local_time(s, window), 1.0),
        now,
        jnp.where(inside, rate, 1.0),
    )


def at_once(now: Moment, copied, u) -> Moment:
    """A moment at which what is `copied` [b, l] stands behind the row, at times u [b, l]."""
    return now._replace(
        time=jnp.where(copied, u, now.time),
        rate=jnp.where(copied, 1.0, now.rate),
        active=now.active & ~copied,
    )


def clocks(keys, held: Spans):
    """[b, l] f32 in [0, 1): one uniform draw a span, from one key a row (`keys` [b])."""
    draw = jax.vmap(lambda key: jax.random.uniform(key, (held.number.shape[1] + 1,)))(keys)
    return jnp.take_along_axis(draw, held.number, axis=1)


def visible(batch: Batch, now: Moment, discrete):
    """[b, l, l] bool: whom each position sees, within its document.

    Across spans it is the order that counts. An anchor that is itself in another span keeps to its
    own view: what it read of the next span would reach that one's tokens through it.

    Args:
        discrete: [b, l] bool, which tokens are read out from the row before them.
    """
    number = now.spans.number
    q, k = number[:, :, None], number[:, None, :]
    seen = now.active[:, None, :]
    together = (q == k) & now.active[:, :, None] & seen
    side = ((0, 0), (0, 1))
    following = jnp.pad(number[:, 1:], side)
    edge = jnp.pad((now.active & discrete)[:, 1:], side)
    edge &= (number == following) | (number == 0)
    index = jnp.arange(number.shape[1])
    own = (index[None, :] == index[:, None] + 1)[None]
    ahead = edge[:, :, None] & (following[:, :, None] == k) & seen & ~own
    return (causal(len(index)) | together | ahead) & same_document(batch.segment, batch.segment)
