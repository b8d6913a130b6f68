"""From vectors to codes and back: the quantisers, as functions of a codebook.

`kind` is one of
    vq   the nearest of `codes` vectors (VQ-VAE, van den Oord et al. 2017);
    rvq  `depth` of them in turn, each on what the ones before left over (Zeghidour et al. 2021);
    fsq  every number rounded to one of `levels` (Mentzer et al. 2023), no codebook;
    lfq  the sign of every number (Yu et al. 2023), no codebook, an entropy term;
    kl   none: a Gaussian around a mean, for continuous latents (Kingma and Welling 2014).
A vector quantiser's codebook is trained by gradient, or is the moving average of what was assigned
to it (`decay`), and codes nobody uses may start anew at vectors of the batch (`restart`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.error import UserError
from mmjax.losses import Term, Terms

EPS = 1e-5  # of the Laplace smoothing of counts
RACE = 60.0  # see `_candidates`
SAMPLE = 1024  # vectors whose joint code distribution LFQ's entropy term forms at one time
LOG_VARIANCE = (-30.0, 20.0)  # bounds of the Gaussian bottleneck's
KINDS = ("vq", "rvq", "fsq", "lfq", "kl")
GRADIENTS = ("straight", "rotation")
WIDEST = 24  # signs of an LFQ; there is a count for each of 2 ** width codes

Book = Mapping[str, Any]  # "codes" [D, K, c], "counts" [D, K], "sums" [D, K, c]


@dataclass(frozen=True)
class QuantiserConfig:
    """A quantiser.

    Attributes:
        kind: see the module. codes: K, of one codebook; 0 for kl. width: c, of a code vector.
        depth: codebooks one behind the other (rvq); else 1.
        levels: of each number (fsq); else empty.
        commit: beta, weight of what draws the encoder to the codes; for kl, of the KL term.
        decay: of the codebook's moving average; 0 trains it by gradient.
        unit: codes and vectors are scaled to length 1 before they are compared.
        restart: uses a step, averaged over steps by `decay` (0.99 without), below which a code
            starts anew; 0 never.
        gradient: "straight" through, or "rotation" (Fifty et al. 2024).
        entropy: weight of LFQ's E[H(p)] - H(E[p]).
        legacy_beta: beta weighs the codebook's term instead, as in taming-transformers; only for
            imported weights.
    """

    kind: str
    codes: int
    width: int
    depth: int
    levels: tuple[int, ...]
    commit: float
    decay: float
    unit: bool
    restart: float
    gradient: str
    entropy: float
    legacy_beta: bool

    def __post_init__(self):
        """Checks fields against each other."""
        if self.kind not in KINDS:
            raise UserError(f"quantiser.kind={self.kind!r} is unknown; have: {', '.join(KINDS)}")
        if self.gradient not in GRADIENTS:
            have = ", ".join(GRADIENTS)
            raise UserError(f"quantiser.gradient={self.gradient!r} is unknown; have: {have}")
        if (self.kind == "fsq") != bool(self.levels) or (self.kind != "rvq" and self.depth != 1):
            raise UserError(
                f"quantiser.levels={self.levels} and depth={self.depth} do not fit "
                f"kind={self.kind!r}: levels are fsq's, a depth other than 1 is rvq's"
            )
        if self.kind == "fsq" and min(self.levels) < 3:
            raise UserError(f"quantiser.levels={self.levels} must be at least 3; lfq has two")
        if min(self.width, self.depth, self.codes if self.booked else 1) < 1:
            raise UserError(
                f"quantiser.codes={self.codes}, width={self.width} and depth={self.depth} must be "
                f"at least 1"
            )
        if self.kind == "lfq" and self.width > WIDEST:
            raise UserError(f"quantiser.width={self.width} of an lfq must be at most {WIDEST}")
        if min(self.commit, self.entropy) < 0:
            raise UserError(
                f"quantiser.commit={self.commit} and entropy={self.entropy} must be at least 0"
            )
        want = {"fsq": (prod(self.levels), len(self.levels)), "lfq": (2**self.width, self.width)}
        want["kl"] = (0, self.width)
        codes, width = want.get(self.kind, (self.codes, self.width))
        if (codes, width) != (self.codes, self.width):
            raise UserError(
                f"quantiser.codes={self.codes} and width={self.width} do not fit kind="
                f"{self.kind!r}; write codes={codes}, width={width}"
            )
        if self.unit and (self.depth > 1 or not self.booked):
            raise UserError("quantiser.unit=True is for kind='vq' alone; give it unit=False")
        if self.legacy_beta and (not self.booked or self.decay):
            raise UserError(
                "quantiser.legacy_beta=True puts beta on the codebook's gradient, which only vq "
                "and rvq with decay=0.0 have; give it legacy_beta=False"
            )
        if not 0 <= self.decay < 1 or self.restart < 0:
            raise UserError(
                f"quantiser.decay={self.decay} must lie in [0, 1), restart={self.restart} not "
                f"below 0"
            )

    @property
    def booked(self) -> bool:
        """Whether there is a codebook."""
        return self.kind in ("vq", "rvq")

    @property
    def memory(self) -> float:
        """Decay of the averages of counts and sums."""
        return self.decay or 0.99


class Quantised(NamedTuple):
    """What a quantiser makes of vectors z [n, h, w, c].

    Attributes:
        values: [n, h, w, c] f32, what the decoder reads; gradients pass to z.
        codes: [n, h, w, depth] int32.
        terms: losses, each already weighted: their sum is to be minimised.
        stats: what `update` needs: sums over the vectors in use.
    """

    values: jax.Array
    codes: jax.Array
    terms: Terms
    stats: Terms


def unit(x):
    """X [..., c] scaled to length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def nearest(z, book):
    """Vectors [m, c], codes [k, c] -> [m] int32, the nearest code (the first of equals)."""
    # |z|^2 is the same for all codes and left out.
    product = jnp.einsum("mc,kc->mk", z, book, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmin(jnp.sum(book * book, -1)[None] - 2.0 * product, axis=-1).astype(jnp.int32)


def straight(z, q):
    """Value of q, gradient of z (Bengio et al. 2013)."""
    return z + jax.lax.stop_gradient(q - z)


def rotation(z, q):
    """Value of q; the gradient turns with the rotation and scaling that carry z to q.

    q = (|q| / |z|) R z with R = I - 2 w w' + 2 q^ z^', w = (z^ + q^) normalised, R and the scale
    held fixed (Fifty et al. 2024, arXiv 2410.06424).
    """
    a, b = (jax.lax.stop_gradient(unit(x)) for x in (z, q))
    w = unit(a + b)
    ratio = jnp.linalg.norm(q, axis=-1, keepdims=True) * jax.lax.rsqrt(
        jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12
    )
    turned = z - 2.0 * w * jnp.sum(w * z, -1, keepdims=True)
    turned = turned + 2.0 * b * jnp.sum(a * z, -1, keepdims=True)
    return jax.lax.stop_gradient(ratio) * turned


def quantise(c: QuantiserConfig, book: Book, z, weight, keys) -> Quantised:
    """Vectors -> codes.

    Args:
        c: how. book: of a vector quantiser; otherwise empty.
        z: [n, h, w, c]. weight: [n], 0 for pictures that are padding.
        keys: [n]; each draws the noise of a Gaussian, the first one candidates for restarts.
    """
    if c.kind == "kl":
        return gaussian(z, c.commit * weight, weight, keys)
    n, h, w, width = z.shape
    flat = z.astype(jnp.float32).reshape(-1, width)
    share = jnp.repeat(weight.astype(jnp.float32), h * w)
    if c.kind == "fsq":
        found = _fsq(c, flat)
    elif c.kind == "lfq":
        found = _lfq(c, flat, share)
    else:
        found = _residual(c, book, flat, share, keys[0])
    values, codes, terms, stats = found
    counts = [_count(share, codes[:, i], c.codes) for i in range(c.depth)]
    stats = stats | {"counts": Term(jnp.stack(counts), jnp.ones(()))}
    return Quantised(values.reshape(z.shape), codes.reshape(n, h, w, c.depth), terms, stats)


def lookup(c: QuantiserConfig, book: Book, codes):
    """Codes [..., depth] -> vectors [..., c] f32, the values the decoder was trained on."""
    if c.kind == "fsq":
        half = jnp.array([level // 2 for level in c.levels], jnp.int32)
        digits = _digits(codes[..., 0], c.levels)
        half = half.reshape((1,) * (digits.ndim - 1) + (-1,))
        return (digits - half).astype(jnp.float32) / half.astype(jnp.float32)
    if c.kind == "lfq":
        return 2.0 * _digits(codes[..., 0], (2,) * c.width).astype(jnp.float32) - 1.0
    table = book["codes"].astype(jnp.float32)
    table = unit(table) if c.unit else table
    parts = [jnp.take(table[i], codes[..., i], axis=0) for i in range(c.depth)]
    return sum(parts[1:], parts[0])


def _digits(codes, bases: tuple[int, ...]):
    """Numbers [...] -> their digits [..., len(bases)], the first base the fastest."""
    out = []
    for base in bases:
        out.append(codes % base)
        codes = codes // base
    return jnp.stack(out, axis=-1)


def _number(digits, bases: tuple[int, ...]):
    """The inverse of `_digits`."""
    total, place = jnp.zeros(digits.shape[:-1], jnp.int32), 1
    for i, base in enumerate(bases):
        total, place = total + place * digits[..., i], place * base
    return total


def _mean(error, share) -> Term:
    """Mean over all numbers of error [m, c], for vectors in use."""
    return Term(jnp.sum(share * error.mean(-1)), jnp.sum(share))


def _count(share, codes, size: int):
    return jnp.zeros((size,)).at[codes].add(share)


def _residual(c: QuantiserConfig, book: Book, flat, share, key):
    """VQ, level by level."""
    table = book["codes"].astype(jnp.float32)
    z = unit(flat) if c.unit else flat
    left, total, codes, stats = z, jnp.zeros_like(z), [], []
    error, pull = jnp.zeros_like(z), jnp.zeros_like(z)
    stop = jax.lax.stop_gradient
    for level in range(c.depth):
        entries = unit(table[level]) if c.unit else table[level]
        found = nearest(stop(left), stop(entries))
        q = jnp.take(entries, found, axis=0)
        error = error + (q - stop(left)) ** 2
        pull = pull + (stop(q) - left) ** 2
        codes.append(found)
        stats.append(_assigned(stop(left), share, found, c.codes, jax.random.fold_in(key, level)))
        left, total = left - stop(q), total + q
    onto, towards = (c.commit, 1.0) if c.legacy_beta else (1.0, c.commit)
    terms = {"commit": _scaled(_mean(pull, share), towards)}
    if not c.decay:
        terms["codebook"] = _scaled(_mean(error, share), onto)
    gradient = straight if c.gradient == "straight" else rotation
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *stats)
    return gradient(z, stop(total)), jnp.stack(codes, -1), terms, stacked


def _scaled(term: Term, by: float) -> Term:
    return Term(by * term.sum, term.count)


def _assigned(z, share, codes, size: int, key) -> Terms:
    """Sums of the vectors at each code, and a candidate for each code that must start anew."""
    sums = jnp.zeros((size, z.shape[-1])).at[codes].add(share[:, None] * z)
    return {"sums": Term(sums, jnp.ones(())), "candidates": _candidates(z, share, size, key)}


def _candidates(z, share, size: int, key) -> Term:
    """A random vector in use for each code, as a sum and a count whose quotient it is.

    Sums of several microbatches must again name one vector, not a mean. So each comes with a
    weight exp(RACE u), u uniform: of two, one nearly always outweighs the other.
    """
    draw, race = jax.random.split(key)
    ends = jnp.cumsum(share)
    at = jax.random.uniform(draw, (size,)) * ends[-1]
    chosen = jnp.minimum(jnp.searchsorted(ends, at, side="right"), len(share) - 1)
    weight = jnp.exp(RACE * jax.random.uniform(race, (size, 1)))
    weight = jnp.where(ends[-1] > 0, weight, 0.0)
    return Term(weight * jnp.take(z, chosen, axis=0), weight)


def update(c: QuantiserConfig, old: Book, new: Book, stats: Terms) -> dict[str, Any]:
    """The codebook after a step.

    N <- g N + (1 - g) counts, M <- g M + (1 - g) sums, codes = M / N with N smoothed; then codes
    with N below `restart` become candidates (van den Oord et al. 2017, appendix A.1; restarts as in
    Jukebox, Dhariwal et al. 2020). All of it is a function of sums over the whole batch, so every
    device computes the same.

    Args:
        c: how. old: before the step. new: after the optimizer, whose word counts without `decay`.
        stats: of the step's batch, from `quantise`.
    """
    g = c.memory
    counts = g * old["counts"] + (1 - g) * stats["counts"].sum
    sums = g * old["sums"] + (1 - g) * stats["sums"].sum
    codes = new["codes"]
    if c.decay:
        total = counts.sum(-1, keepdims=True)
        smooth = (counts + EPS) / (total + c.codes * EPS) * total
        codes = sums / jnp.maximum(smooth, 1e-12)[..., None]
        codes = unit(codes) if c.unit else codes
    if c.restart:
        weight = stats["candidates"].count
        fresh = stats["candidates"].sum / jnp.maximum(weight, 1e-12)
        dead = (counts < c.restart)[..., None] & (weight > 0)
        codes = jnp.where(dead, fresh, codes)
        sums = jnp.where(dead, fresh * c.restart, sums)
        counts = jnp.where(dead[..., 0], c.restart, counts)
    return {"codes": codes, "counts": counts, "sums": sums}


def _fsq(c: QuantiserConfig, flat):
    """Finite scalar quantisation; the bound keeps the outermost levels reachable."""
    level = jnp.array(c.levels, jnp.float32)[None]
    half = (level - 1.0) * (1.0 + 1e-3) / 2.0
    offset = jnp.where(level % 2.0 == 0.0, 0.5, 0.0)
    bounded = jnp.tanh(flat + jnp.arctanh(offset / half)) * half - offset
    whole = straight(bounded, jnp.round(bounded))
    middle = level // 2.0
    digits = jnp.round(jax.lax.stop_gradient(bounded) + middle).astype(jnp.int32)
    return whole / middle, _number(digits, c.levels)[:, None], {}, {}


def _lfq(c: QuantiserConfig, flat, share):
    """Lookup-free quantisation: confident vectors (low E[H]), all codes in use (high H(E)).

    The distribution of a vector over the codes is softmax(2 z . code / 0.01), a product over
    numbers; its mean over vectors is not, and is formed from SAMPLE vectors spread over the batch.
    """
    sign = jnp.where(flat > 0, 1.0, -1.0)
    digits = (sign > 0).astype(jnp.int32)
    logit = 400.0 * flat
    sure = jax.nn.sigmoid(logit) * jax.nn.softplus(-logit)
    sure = sure + jax.nn.sigmoid(-logit) * jax.nn.softplus(logit)
    step = max(len(flat) // SAMPLE, 1) | 1  # odd: an even one would stay in some columns
    some, used = logit[::step], share[::step]
    joint = jnp.zeros((len(some), 1))
    for i in range(c.width):
        both = jnp.stack([jax.nn.log_sigmoid(-some[:, i]), jax.nn.log_sigmoid(some[:, i])], 1)
        joint = (both[:, :, None] + joint[:, None, :]).reshape(len(some), -1)
    mean = (used[:, None] * jnp.exp(joint)).sum(0) / jnp.maximum(used.sum(), 1.0)
    spread = -jnp.sum(mean * jnp.log(mean + 1e-10))
    each = Term(jnp.sum(share * sure.sum(-1)), share.sum())
    count = jnp.maximum(each.count, 1.0)
    terms = {
        "entropy": Term(c.entropy * (each.sum - spread * count), count),
        "commit": _scaled(_mean((flat - sign) ** 2, share), c.commit),
    }
    return straight(flat, sign), _number(digits, (2,) * c.width)[:, None], terms, {}


def perplexity(counts):
    """exp of the entropy of code use; counts [..., k] -> [...], between 1 and k."""
    share = counts / jnp.maximum(counts.sum(-1, keepdims=True), 1e-9)
    return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12), axis=-1))


def gaussian(z, scaled, weight, keys) -> Quantised:
    """KL bottleneck: z [n, h, w, 2 c] is mean and log variance of what is drawn.

    The term is KL(q || N(0, 1)) in nats a picture, times `scaled` [n].
    """
    mean, spread = jnp.split(z.astype(jnp.float32), 2, axis=-1)
    spread = jnp.clip(spread, *LOG_VARIANCE)
    kl = 0.5 * jnp.sum(mean**2 + jnp.exp(spread) - 1.0 - spread, axis=(1, 2, 3))
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
    nothing = jnp.zeros((*z.shape[:3], 0), jnp.int32)
    terms = {"kl": Term(jnp.sum(scaled * kl), jnp.sum(weight))}
    return Quantised(mean + jnp.exp(0.5 * spread) * noise, nothing, terms, {})


def term_names(c: QuantiserConfig) -> tuple[str, ...]:
    """The names of the terms `quantise` gives."""
    if c.booked:
        return ("commit",) if c.decay else ("commit", "codebook")
    return {"fsq": (), "lfq": ("entropy", "commit"), "kl": ("kl",)}[c.kind]
