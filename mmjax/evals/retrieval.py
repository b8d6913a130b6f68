"""Which picture belongs to a text, and which text to a picture, among all of a split?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmjax.batch import Image, Text
from mmjax.evals import heldout, reconstruction
from mmjax.evals.value import Value, proportion
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained

RANKS = (1, 5, 10)
BASE = 5000  # training records the baseline learns from
BINS = 4  # of each colour channel
SHOWN = 24  # rows of the contact sheet
BEST = 4  # pictures shown of each


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Recall on each held-out split; writes `retrieved_<split>.png`.

    `image_at_<k>`: share of texts whose picture is among the k nearest of all n; `text_at_<k>`: of
    pictures whose text is. Pictures with equal texts belong to each of them. Ties count as lost.
    `_colours`: by a linear map from words to the histogram of a picture's colours, learnt from
    training pairs; `_chance`: by any order drawn at random.
    """
    base = heldout.draw(trained, "train", BASE, seed)
    values: dict[str, Value] = {}
    for split, suffix in heldout.splits(trained).items():
        count = trained.run.experiment.evals.documents
        records = heldout.draw(trained, split, count, seed)
        texts = [r.caption for r in records]
        vectors = [
            trained.embed(documents)
            for documents in ([[Image(r.image)] for r in records], [[Text(t)] for t in texts])
        ]
        ours = vectors[1] @ vectors[0].T
        shown = reconstruction.pictures(trained, records)
        known = reconstruction.pictures(trained, base)
        other = by_colours([r.caption for r in base], known, texts, shown)
        for who, score in (("", ours), ("_colours", other)):
            for name, hits in recalls(score, texts).items():
                values[f"{name}{who}{suffix}"] = proportion(hits, seed)
        for name, chance in chances(texts).items():
            values[f"{name}_chance{suffix}"] = Value(chance, len(texts), seed, chance, chance)
        order = np.argsort(-ours[:SHOWN], axis=1, kind="stable")[:, :BEST]
        cells = [Cell(list(shown[best]), [t]) for best, t in zip(order, texts, strict=False)]
        sheet(cells, out / f"retrieved_{split}.png", f"{split}: the nearest pictures to a text")
    return values


def ranks(score: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[n] int: how many others lie before the best of each row's own columns, equals included.

    score: [n, n], larger is nearer; what is no number lies before all, so that vectors of a model
    that came to nothing find nothing. names: of rows and columns; equal ones belong together.
    """
    number = np.unique(list(names), return_inverse=True)[1]
    own = number[:, None] == number[None]
    best = np.where(own, score, -np.inf).max(1, keepdims=True)
    return (~(score < best) & ~own).sum(1)


def recalls(score: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """[n] bool each; score [n, n] of texts (rows) and pictures."""
    found = {"image": ranks(score, names), "text": ranks(score.T, names)}
    return {f"{what}_at_{k}": rank < k for k in RANKS for what, rank in found.items()}


def chances(names: Sequence[str]) -> dict[str, float]:
    """The same of an order drawn at random: of n, with m of their own, none is among the first k
    with chance C(n - m, k) / C(n, k).
    """
    n, (_, number, count) = len(names), np.unique(list(names), False, True, True)
    own = count[number]
    found: dict[str, float] = {}
    for k in RANKS:
        missed = np.ones(n)
        for i in range(k):
            missed *= np.maximum(n - own - i, 0) / max(n - i, 1)
        found |= dict.fromkeys((f"image_at_{k}", f"text_at_{k}"), float(1 - missed.mean()))
    return found


def colours(pictures: np.ndarray) -> np.ndarray:
    """[n, h, w, 3] uint8 -> [n, bins^3]: share of pixels of each colour, its root."""
    bins = pictures.astype(int) * BINS // 256
    flat = (bins[..., 0] * BINS + bins[..., 1]) * BINS + bins[..., 2]
    flat = flat.reshape(len(pictures), -1)
    counts = np.stack([np.bincount(row, minlength=BINS**3) for row in flat])
    return np.sqrt(counts / flat.shape[1])


def by_colours(words, known: np.ndarray, texts, shown: np.ndarray) -> np.ndarray:
    """[n, n] similarity of texts to pictures by their colours alone.

    words, known: captions and pictures to learn from. texts, shown: those to compare.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    bag = TfidfVectorizer(token_pattern=r"\w+")
    told = Ridge().fit(bag.fit_transform(words), colours(known)).predict(bag.transform(texts))
    seen = colours(shown)
    told, seen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (told, seen))
    return told @ seen.T
