"""Does a model draw from what it reads of a picture? The reconstruction-alignment score, RAS.

A model reads a picture and is asked for it (reconstruction alignment, Xie et al. 2025, arXiv
2509.07295, which has no such score; this one is defined here). Its error on the answer is compared
with the error it makes on the same answer, with the same noise at the same times, after

    shuf: another picture of the split,        prior: no picture,
    RAS_shuf = 1 - e_true / e_shuf,            RAS_prior = 1 - e_true / e_prior,

as ratios of means over pictures; RAS is the smaller one. 1 is perfect, 0 is a picture ignored, less
is one that misleads. Each control has a hole that the other closes: any picture at all may help
against `prior`, by what all pictures share, and a wrong picture may hurt one that learns little
from the right one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import diffusion, watch
from mmjax.batch import TEXT, Batch, Document, Image, Text, slot_weight
from mmjax.data.tokenizer import REGISTERS, encode
from mmjax.data.transform import RECONSTRUCT, asked
from mmjax.evals import heldout
from mmjax.evals.caption import log_likelihood
from mmjax.evals.heldout import Pair
from mmjax.evals.value import RESAMPLES, Value, proportion, ratio
from mmjax.models.denoise import denoise, wide
from mmjax.sample import prompt
from mmjax.sample.decode import text_log_likelihood
from mmjax.trained import Trained

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
NOISES = 4  # fixed noises a picture, each at every time
K = 16  # pictures read before one answer, its own among them: chance is 1 / 16
CHOSEN = 64  # answers that is done for, at most
STRATA = 4  # of captions by length
ROWS = 64  # scored at a time


class Layout(NamedTuple):
    """How a picture is read: see `mmjax.config.DataConfig`; `told`: trained on this layout."""

    bottleneck: str
    shrink: int
    told: bool


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Scores on each held-out split. Names end in the bottleneck, and only equal ones compare.

    It is the run's own bottleneck; a run that was never trained to reconstruct reads pictures at
    low resolution ("lowres"), and has no `prior`, which would be a prompt it does not know, hence
    RAS_shuf but no RAS; against a picture behind nothing at all, which captions that are dropped
    teach, it has `ras_bare`: less than 0 if what it reads keeps it from drawing. `ras_at_16`: share
    of answers with a smaller error after their own picture than after each of 15 others, at the
    first noise. `ras_error_*`: the errors, nats a code or mean squared errors of the velocity;
    which of them moved is what a ratio does not say. `grounding_gap`: nats by which a caption is
    likelier after its own picture than after another; `_token`: a token.
    """
    layout = layout_of(trained)
    values: dict[str, Value] = {}
    if layout is None:
        return values
    for split, suffix in heldout.splits(trained).items():
        count = trained.run.experiment.evals.documents
        records = distinct(heldout.draw(trained, split, count, seed))
        if len(records) < heldout.FEWEST:
            continue
        lengths = [len(encode(trained.run.tokenizer, r.caption)) for r in records]
        other = derangement(strata(lengths), seed)
        found = alignment(trained, layout, records, other, seed)
        values |= {f"{name}_{layout.bottleneck}{suffix}": v for name, v in found.items()}
        gaps = grounding(trained, records, other, seed)
        values |= {name + suffix: v for name, v in gaps.items()}
    return values


def layout_of(trained: Trained) -> Layout | None:
    """The layout a run is scored in; None where it does not fit its rows or pictures."""
    c = trained.run.experiment.data
    told = any(s.template == "reconstruct" for s in c.sources.values())
    layout = Layout(c.bottleneck if told else "lowres", c.shrink, told)
    request = len(encode(trained.run.tokenizer, RECONSTRUCT[0]))
    registers = len(REGISTERS) * (layout.bottleneck == "registers")
    length = 2 * (c.patches + 2) + registers + request + 2
    if length > c.length or (layout.bottleneck == "lowres" and c.image % c.shrink):
        return None
    return layout


def distinct(records: Sequence[Pair]) -> list[Pair]:
    """Records without those whose picture stands before."""
    found: dict[bytes, Pair] = {}
    for record in records:
        found.setdefault(record.image, record)
    return list(found.values())


def strata(lengths: Sequence[int]) -> np.ndarray:
    """[n] int: which quarter of the captions, ordered by length, each is in."""
    rank = np.argsort(np.argsort(lengths, kind="stable"), kind="stable")
    return rank * STRATA // max(len(rank), 1)


def derangement(strata: np.ndarray, seed: int) -> np.ndarray:
    """A permutation [n] that leaves nothing in its place, and all within their strata [n].

    A stratum of one joins the stratum before it, or the next if it is the first.

    Raises:
        ValueError: for fewer than two.
    """
    rng = np.random.default_rng(seed)
    groups: list[np.ndarray] = []
    for label in np.unique(strata):
        mine = np.flatnonzero(strata == label)
        if groups and min(len(mine), len(groups[-1])) < 2:
            groups[-1] = np.concatenate([groups[-1], mine])
        else:
            groups.append(mine)
    if not groups or len(groups[0]) < 2:
        raise ValueError(f"{len(strata)} pictures cannot change places")
    out = np.empty(len(strata), int)
    for group in groups:
        cycle = rng.permutation(group)
        out[cycle] = np.roll(cycle, 1)
    return out


def score(
    true: np.ndarray,
    shuf: np.ndarray,
    prior: np.ndarray | None,
    seed: int,
    bare: np.ndarray | None = None,
) -> dict[str, Value]:
    """Errors [n] of the same answers under each condition -> {name: Value}; without limits.

    Intervals are a bootstrap over pictures, which keep their errors together. Without `prior` there
    is no `ras`. Beside the scores stand the errors themselves, `ras_error_*`.
    """
    draws = np.random.default_rng(seed).integers(0, len(true), (RESAMPLES, len(true)))
    again = true[draws].mean(1)
    given = {"shuf": shuf, "prior": prior, "bare": bare}
    controls = {name: e for name, e in given.items() if e is not None}
    value = {f"ras_{name}": 1.0 - true.mean() / e.mean() for name, e in controls.items()}
    spread = {f"ras_{name}": 1.0 - again / e[draws].mean(1) for name, e in controls.items()}
    if prior is not None:
        value["ras"] = min(value["ras_shuf"], value["ras_prior"])
        spread["ras"] = np.minimum(spread["ras_shuf"], spread["ras_prior"])
    ends = {name: np.quantile(x, [0.025, 0.975]) for name, x in spread.items()}
    scores = {
        name: Value(float(x), len(true), seed, *map(float, ends[name])) for name, x in value.items()
    }
    ones, errors = np.ones(len(true)), {"true": true} | controls
    return scores | {f"ras_error_{name}": ratio(e, ones, seed) for name, e in errors.items()}


def at_k(errors: np.ndarray, seed: int) -> Value:
    """Errors [n, k] on an answer after its own picture, first, and k - 1 others -> share of hits.

    Equal errors are told apart by lot, so that a model blind to pictures has chance, 1 / k.
    """
    lots = np.random.default_rng(seed).random(errors.shape)
    least = errors == errors.min(1, keepdims=True)
    return proportion(np.where(least, lots, -1.0).argmax(1) == 0, seed)


def alignment(
    trained: Trained, layout: Layout, records: Sequence[Pair], other: np.ndarray, seed: int
) -> dict[str, Value]:
    """All of a split's `ras` entries; see `evaluate`. other: [n], the picture of `shuf`."""
    every = np.arange(len(records))

    def errors(read: np.ndarray | None, answers: np.ndarray, noises: int) -> np.ndarray:
        documents = [
            document(layout, None if read is None else records[read[n]], records[answer])
            for n, answer in enumerate(answers)
        ]
        return picture_errors(trained, documents, answers, seed, noises)

    true, shuf = errors(every, every, NOISES), errors(other, every, NOISES)
    if layout.told:
        values = score(true, shuf, errors(None, every, NOISES), seed)
    else:
        alone = [(Image(r.image),) for r in records]
        bare = picture_errors(trained, alone, every, seed, NOISES)
        values = score(true, shuf, None, seed, bare)
    k = min(K, len(records))
    table = heldout.others(range(len(records)), k, seed)[:CHOSEN]
    each = errors(table.ravel(), np.repeat(every[: len(table)], k), 1)
    return values | {f"ras_at_{k}": at_k(each.reshape(table.shape), seed)}


def document(layout: Layout, read: Pair | None, answer: Pair) -> Document:
    """One picture read, or none, and another as the answer, in the layout of training."""
    given = None if read is None else Image(read.image)
    return asked(given, RECONSTRUCT[0], Image(answer.image), layout.bottleneck, layout.shrink)


def picture_errors(
    trained: Trained, documents: Sequence[Document], numbers: np.ndarray, seed: int, noises: int
) -> np.ndarray:
    """[n] f64: the error on the one picture with a loss in each document.

    numbers: [n], of these pictures: equal ones meet equal noise. Whatever else is scored with a
    document makes no difference.
    """
    e, split = trained.run.experiment, trained.run.rules.split("batch")
    size = ROWS + -ROWS % split
    found = []
    for first in watch.pieces(range(0, len(documents), size), "documents", size, len(documents)):
        some = documents[first : first + size]
        vocabulary = trained.run.model.parts.vocabulary
        rows = prompt.lay_out(some, e.data, trained.run.tokenizer, vocabulary, draw=False, end=True)
        own = numbers[first : first + size].astype(np.uint32)
        if trained.writes_codes:
            part = trained.call(code_errors, rows)
        else:
            part = trained.call(flow_errors, rows, each=(own,), seed=seed, noises=noises)
        found.append(part)
    return np.concatenate(found).astype(np.float64)


def code_errors(parts, params, batch: Batch):
    """[b] f32: nats a code of each row's picture with a loss."""
    held = ((batch.modality != TEXT) & (batch.weight > 0)).astype(jnp.float32)
    return -(text_log_likelihood(parts, params, batch) * held).sum(1) / held.sum(1)


def flow_errors(parts, params, batch: Batch, numbers, seed: int, noises: int):
    """[b] f32: mean squared error of the velocity of each row's picture with a loss.

    Over TIMES and `noises` noises, which follow from the seed and the picture's number [b].
    Pictures without a loss are read as they are.
    """
    path, prediction = parts.config.path, parts.config.prediction
    clean, written = parts.signal(params, batch), slot_weight(batch)

    def one(draw):
        time = jnp.array(TIMES)[draw % len(TIMES)]
        key = jax.random.fold_in(jax.random.key(seed), draw // len(TIMES))
        own = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        noise = jax.vmap(lambda k: jax.random.normal(k, clean.shape[2:]))(own)
        noise = jnp.broadcast_to(noise[:, None], clean.shape)  # whichever slot the picture is in
        t = jnp.where(written > 0, time, 1.0)
        noisy = diffusion.mix(path, clean, noise, wide(t))
        _, found = denoise(parts, params, batch, noisy, t)
        true = diffusion.aim(path, prediction, clean, noise, noisy, wide(t))
        error = ((found.velocity - true.velocity) ** 2).mean((2, 3, 4))
        return (error * written).sum(1) / written.sum(1)

    return jax.lax.map(one, jnp.arange(len(TIMES) * noises)).mean(0)


def grounding(
    trained: Trained, records: Sequence[Pair], other: np.ndarray, seed: int
) -> dict[str, Value]:
    """How much likelier captions are after their own picture; see `evaluate`."""
    own, changed = (
        log_likelihood(
            trained,
            [[Image(records[n].image), Text(r.caption)] for n, r in zip(at, records, strict=True)],
        )
        for at in (np.arange(len(records)), other)
    )
    ends = trained.run.experiment.data.ends
    words = [len(encode(trained.run.tokenizer, r.caption)) for r in records]
    tokens = [n + ends - n % ends for n in words]  # with EOS, as many as there are
    return {
        "grounding_gap": ratio(own - changed, np.ones(len(own)), seed),
        "grounding_gap_token": ratio(own - changed, tokens, seed),
    }
