"""Held-out records, drawn once for all evaluations."""

from collections.abc import Sequence

import numpy as np

from mmjax.batch import Image, Text
from mmjax.data import pipeline
from mmjax.trained import Trained

CHOICES = 10  # a picture's or caption's own and nine others: chance is 0.10
SHOWN = 48  # cells on a contact sheet

# Split -> suffix of the names in summary.json. The compositional split holds new combinations of
# parts that were seen; the test split holds concepts that were never seen.
SPLITS = {"compositional": "", "test": "_concepts"}


def draw(trained: Trained, split: str, count: int, seed: int) -> list[dict]:
    """Up to `count` records of a split of the first source, in an order the seed fixes."""
    data = trained.run.experiment.data
    source = pipeline.records(data, next(iter(data.sources)), split)
    order = np.random.default_rng(seed).permutation(len(source))
    return [source[int(i)] for i in order[:count]]


def captioned(records: Sequence[dict], text_first: bool = False) -> list:
    """Records as documents of both parts."""
    pairs = [(Text(r["caption"]), Image(r["image"])) for r in records]
    return [[t, i] if text_first else [i, t] for t, i in pairs]


def others(count: int, choices: int, seed: int) -> np.ndarray:
    """[n, choices] int: each row its own index first, then distinct others, drawn at random."""
    rng = np.random.default_rng(seed + 1)
    rows = []
    for i in range(count):
        rest = rng.permutation(np.delete(np.arange(count), i))[: choices - 1]
        rows.append(np.concatenate([[i], rest]))
    return np.stack(rows)
