"""The loss a family is trained on, on held-out documents: what any family can be measured by."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from mmjax import losses, watch
from mmjax.batch import Batch
from mmjax.data import pipeline
from mmjax.data.kinds import with_kinds
from mmjax.data.pack import Piece
from mmjax.data.transform import to_document
from mmjax.evals.value import Value, ratio
from mmjax.mesh import put
from mmjax.trained import Trained

SPLITS = ("test", "validation")


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """`loss_<term>`: mean of each term that training minimises, on a held-out split.

    Documents are those of every source, by their templates, one a row, in batches as large as
    those of training; captions are never left out. n and the interval are over batches. Documents
    that do not fit into a row are passed over.
    """
    model, params = trained.run.model, trained.params
    of_batch = trained.compiled(terms, loss=model.loss)
    sums: dict[str, list[losses.Term]] = {name: [] for name in model.weights}
    for number, batch in enumerate(batches(trained, seed)):
        key = jax.random.fold_in(jax.random.key(seed), number)
        keys = jax.random.split(key, len(batch.tokens))
        found = jax.device_get(of_batch(params, put(batch, trained.run.rules), keys))
        for name, some in sums.items():
            some.append(found[name])
    return {
        f"loss_{name}": ratio([float(t.sum) for t in some], [float(t.count) for t in some], seed)
        for name, some in sums.items()
        if sum(t.count for t in some) > 0
    }


def terms(parts, params, batch: Batch, keys, loss) -> losses.Terms:
    """The scalar terms of a loss."""
    return {name: t for name, t in loss(params, batch, keys).items() if t.sum.ndim == 0}


def batches(trained: Trained, seed: int) -> Iterator[Batch]:
    """Held-out documents, one a row, in an order the seed fixes; the last batch may have free rows.

    Up to `evals.documents` of them, the same number of each source.
    """
    e, run = trained.run.experiment, trained.run
    pieces = [p for name in e.data.sources for p in documents(trained, name, seed)]
    # As many rows as a device sees in training, a multiple of what they are split over.
    split = run.rules.split("batch")
    rows = max(min(e.batch // e.accumulate, len(pieces)), 1)
    rows += -rows % split
    shape = pipeline.plain_shape(e.data, e.data.length, e.data.images)
    for first in watch.pieces(range(0, len(pieces), rows), "documents", rows, len(pieces)):
        some = [[p] for p in pieces[first : first + rows]]
        some += [[] for _ in range(rows - len(some))]
        yield pipeline.begin_rows(shape, run.model.parts.vocabulary, some)()


def documents(trained: Trained, name: str, seed: int) -> list[Piece]:
    """Laid-out documents of a source's held-out split; none where it has no such split."""
    e, run = trained.run.experiment, trained.run
    c = replace(e.data, coded=False, caption_dropout=0.0)
    there = pipeline.splits(e.data.sources[name].path)
    split = next((s for s in SPLITS if s in there), None)
    if split is None:
        return []
    records, found = pipeline.records(c, name, split), []
    rng, most = np.random.default_rng(seed), -(-e.evals.documents // len(e.data.sources))
    for i in rng.permutation(len(records))[: 2 * most]:
        record = records[int(i)]
        document = with_kinds(c, to_document(c, e.data.sources[name].template, record, rng), name)
        vocabulary = run.model.parts.vocabulary
        (piece,) = pipeline.to_pieces(c, run.tokenizer, vocabulary, rng, [document])
        if len(piece["tokens"]) <= c.length and len(piece["pictures"]) <= c.images:
            found.append(piece)
        if len(found) == most:
            break
    return found
