"""The loss a family is trained on, on held-out documents: what any family can be measured by."""

from functools import partial
from pathlib import Path

import jax
import numpy as np

from mmjax import losses, watch
from mmjax.batch import Batch
from mmjax.evals.value import Value, ratio
from mmjax.mesh import put
from mmjax.models import family_of
from mmjax.trained import Trained
from mmjax.validation import batches, packed, undropped

SPLITS = ("test", "validation")


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """`loss_<term>`: mean of each term that training minimises, on the first split of SPLITS.

    Documents, their form and their batches are as those of the validation loss, see
    `mmjax.validation`; noise follows from the seed. n and the interval are over batches.
    """
    e, run = trained.run.experiment, trained.run
    rows = next((found for split in SPLITS if (found := packed(run, split))), [])
    model = family_of(e.family).build(undropped(e.model), run.vocabulary, run.rules)
    of_batch = trained.compiled(terms, loss=model.loss)
    sums: dict[str, list[losses.Term]] = {name: [] for name in model.weights}
    split = run.rules.split("batch")  # of these devices, which need not be those of training
    for number, batch in enumerate(watch.pieces(list(batches(run, rows)), "batches")):
        batch = jax.tree.map(partial(filled, split), batch)
        key = jax.random.fold_in(jax.random.key(seed), number)
        keys = jax.random.split(key, len(batch.tokens))
        found = jax.device_get(of_batch(trained.params, put(batch, run.rules), keys))
        for name, some in sums.items():
            some.append(found[name])
    return {
        f"loss_{name}": ratio([float(t.sum) for t in some], [float(t.count) for t in some], seed)
        for name, some in sums.items()
        if sum(t.count for t in some) > 0
    }


def filled(multiple: int, x: np.ndarray) -> np.ndarray:
    """[b, ...] with rows of zeros, which hold no document, up to a multiple."""
    return np.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))


def terms(parts, params, batch: Batch, keys, loss) -> losses.Terms:
    """The scalar terms of a loss."""
    return {name: t for name, t in loss(params, batch, keys).items() if t.sum.ndim == 0}
