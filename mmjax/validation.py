"""The loss that training lowers, of held-out documents, while it trains."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.batch import Batch
from mmjax.data import pipeline
from mmjax.data.kinds import with_kinds
from mmjax.data.pack import Piece, first_fit
from mmjax.data.transform import to_document
from mmjax.mesh import put
from mmjax.models import family_of
from mmjax.models.family import merge, split
from mmjax.run import Run
from mmjax.step import State

SPLIT = "validation"
SEED = 20260801  # of the documents' form and of the noise: the same at every step and in every run
BATCHES = 8  # at most, each of a training batch's rows


def validation(run: Run) -> Callable[[State], dict[str, float]] | None:
    """A function from a state to its mean loss, `loss`, and terms on the validation splits.

    Up to `evals.documents` documents, evenly from each source by its weight, take the form that
    training gives them and fill up to BATCHES batches. Documents, noise and noise levels are the
    same each time, whatever the mesh; nothing is dropped out. The weights are the averaged ones
    where the run keeps some, as those are what is evaluated and sampled from in the end.

    Returns:
        The function, or None if no source has such a split.
    """
    rows = packed(run)
    if not rows:
        return None
    e, rules = run.experiment, run.rules
    model = family_of(e.family).build(undropped(e.model), run.vocabulary, rules)

    def sums(params, batch: Batch, number):
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(SEED), number), batch.tokens.shape[0]
        )
        terms = model.loss(params, batch, keys)
        return {name: tuple(t) for name, t in terms.items() if t.sum.ndim == 0}

    compiled = jax.jit(sums, out_shardings=NamedSharding(rules.mesh, P()))

    def validate(state: State) -> dict[str, float]:
        params = state.params
        if state.ema is not None:
            params = merge(state.ema, split(params, model.frozen)[1])
        total: dict[str, np.ndarray] = {}
        for number, batch in enumerate(batches(run, rows)):
            found = jax.device_get(compiled(params, put(batch, rules), np.int32(number)))
            for name, pair in found.items():
                total[name] = total.get(name, np.zeros(2)) + np.array(pair, np.float64)
        means = {name: float(s / max(count, 1e-9)) for name, (s, count) in total.items()}
        loss = sum(weight * means[name] for name, weight in model.weights.items())
        return {"loss": float(loss)} | means

    return validate


def undropped(config: Any) -> Any:
    """A family's configuration with every probability of dropout at 0."""
    new = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            new[field.name] = undropped(value)
        elif field.name == "dropout":
            new[field.name] = 0.0
    return dataclasses.replace(config, **new)


def packed(run: Run, split: str = SPLIT) -> list[list[Piece]]:
    """Rows of laid-out documents of a split, pictures still encoded; [] if there are none."""
    e, c = run.experiment, run.experiment.data
    weights = pipeline.stages(c, e.steps)[-1][1]
    have = {
        n: w for n, w in weights.items() if w and split in pipeline.splits(pipeline.path_of(c, n))
    }
    pieces: list[Piece] = []
    for number, (name, weight) in enumerate(have.items()):
        held = pipeline.records(c, name, split)
        count = min(len(held), max(1, round(e.evals.documents * weight / sum(have.values()))))
        rng = np.random.default_rng((SEED, number))
        drawn = [
            with_kinds(c, to_document(c, c.sources[name].template, held[int(i)], rng), name)
            for i in np.unique(np.linspace(0, len(held) - 1, count).astype(int))
        ]
        pieces += pipeline.to_pieces(c, run.tokenizer, run.vocabulary, rng, drawn)
    lengths, slots = [len(p["tokens"]) for p in pieces], [len(p["pictures"]) for p in pieces]
    fit = [i for i, n in enumerate(lengths) if n <= c.length and slots[i] <= c.images]
    plan = first_fit([lengths[i] for i in fit], [slots[i] for i in fit], c.length, c.images)
    most = BATCHES * e.batch // e.accumulate
    return [[pieces[fit[i]] for i in row] for row in plan[:most]]


def batches(run: Run, rows: list[list[Piece]]) -> Iterator[Batch]:
    """This process's part of each batch of rows; the last is filled up with empty ones."""
    e = run.experiment
    size = e.batch // e.accumulate
    share, process = size // jax.process_count(), jax.process_index()
    shape = pipeline.shape_of(e.data)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        part = part + [[] for _ in range(size - len(part))]
        mine = part[process * share : (process + 1) * share]
        yield pipeline.begin_rows(shape, run.vocabulary, mine)()
