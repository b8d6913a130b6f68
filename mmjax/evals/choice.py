"""Choice among 10: which caption fits the picture, and which true picture is nearest the drawn one."""

from pathlib import Path

import numpy as np

from mmjax.batch import Image, Text
from mmjax.data import pipeline
from mmjax.evals import heldout
from mmjax.evals.value import Value, proportion
from mmjax.sample import prompt
from mmjax.sample.decode import text_log_likelihood, word_weight
from mmjax.trained import Trained

CHOICES = 10  # chance is 0.10
ROWS = 256  # scored at a time


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Both choices on each held-out split, the nine others drawn at random from the same split.

    `choice_among_10`: the picture's own caption has the highest likelihood after the picture, less
    its likelihood after no picture (pointwise mutual information: else short and common captions
    win whatever the picture shows). `choice_among_10_likelihood`: without that correction.
    `drawn_choice_among_10`: the picture drawn from the caption is nearer, in mean squared error of
    pixels, to its own true picture than to the nine others.
    """
    values: dict[str, Value] = {}
    e = trained.run.experiment
    for split, suffix in heldout.SPLITS.items():
        records = heldout.draw(trained, split, max(e.evals.documents, e.evals.drawings), seed)
        found = caption_choice(trained, records[: e.evals.documents], seed)
        found |= drawn_choice(trained, records[: e.evals.drawings], seed)
        values |= {name + suffix: value for name, value in found.items()}
    return values


def log_likelihood(trained: Trained, documents) -> np.ndarray:
    """[n] nats of all words of each document."""
    data = trained.run.experiment.data
    vocab = trained.run.model.parts.vocabulary
    rows = prompt.lay_out(documents, data, trained.run.tokenizer, draw=False, end=True)
    weight = np.asarray(word_weight(rows, vocab))
    out = []
    for start in range(0, len(documents), ROWS):
        part = type(rows)(*(x[start : start + ROWS] for x in rows))
        whole = prompt.pad_rows(part, ROWS)
        logs = trained.call(text_log_likelihood, whole)[: len(part.tokens)]
        out.append((logs * weight[start : start + ROWS]).sum(1))
    return np.concatenate(out)


def caption_choice(trained: Trained, records, seed: int) -> dict[str, Value]:
    """Picture to caption."""
    table = heldout.others(len(records), CHOICES, seed)
    pairs = [
        [Image(records[row[0]]["image"]), Text(records[j]["caption"])] for row in table for j in row
    ]
    after = log_likelihood(trained, pairs).reshape(table.shape)
    alone = log_likelihood(trained, [[Text(r["caption"])] for r in records])[table]
    return {
        "choice_among_10": proportion((after - alone).argmax(1) == 0, seed),
        "choice_among_10_likelihood": proportion(after.argmax(1) == 0, seed),
    }


def drawn_choice(trained: Trained, records, seed: int) -> dict[str, Value]:
    """Caption to picture."""
    size = trained.run.experiment.data.image
    drawn = trained.draw([[Text(r["caption"])] for r in records], seed).astype(np.float32)
    true = np.stack([pipeline.decode_image(r["image"], size) for r in records]).astype(np.float32)
    table = heldout.others(len(records), CHOICES, seed)
    distance = ((drawn[:, None] - true[table]) ** 2).mean(axis=(2, 3, 4))
    return {"drawn_choice_among_10": proportion(distance.argmin(1) == 0, seed)}
