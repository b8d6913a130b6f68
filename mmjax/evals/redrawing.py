"""Does a model draw what it reads? The reconstruction-alignment score of what is really drawn.

As `alignment`, with the error of drawn pictures in place of likelihoods: a model reads a picture
and draws it again, and the drawing is compared with what it draws after another picture (`shuf`)
and after none (`prior`), all of them with the same noise, against the same true picture. What its
codec alone would lose is taken off every error: 1 is as near as the codec comes. It draws without
guidance, which leads away from what it draws behind nothing, and that not every model has learnt.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmjax.codecs import efficientnet
from mmjax.data.tokenizer import encode
from mmjax.evals import heldout, reconstruction
from mmjax.evals.alignment import (
    CHOSEN,
    Layout,
    derangement,
    distinct,
    document,
    layout_of,
    score,
    strata,
)
from mmjax.evals.frechet import features
from mmjax.evals.heldout import Pair
from mmjax.evals.value import Value
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained

DRAWS = 4  # of each picture in each condition, whose errors are averaged


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """`ras_drawn_...` on each held-out split, for the first CHOSEN pictures.

    `pixels`: of mean squared errors of pixels; `features`: of 1 - the cosine of the features of
    EfficientNet-Lite0, where it is installed. As in `alignment`, names end in the bottleneck, and a
    run that was never trained to reconstruct has no `prior`. Writes `redrawn_<split>.png`.
    """
    layout = layout_of(trained)
    values: dict[str, Value] = {}
    if layout is None:
        return values
    for split, suffix in heldout.splits(trained).items():
        records = distinct(heldout.draw(trained, split, CHOSEN, seed))
        if len(records) < 2:
            continue
        lengths = [len(encode(trained.run.tokenizer, r.caption)) for r in records]
        other = derangement(strata(lengths), seed)
        true = reconstruction.pictures(trained, records)
        made = redrawn(trained, layout, records, other, seed)
        shown = zip(records, true, made["true"][0], true[other], made["shuf"][0], strict=True)
        cells = [Cell(pictures, [r.caption]) for r, *pictures in shown]
        title = f"{split}: true, drawn after it, another, drawn after that one"
        sheet(cells[: heldout.SHOWN], out / f"redrawn_{split}.png", title)
        for name, errors in errors_of(trained, true, made).items():
            found = score(errors["true"], errors["shuf"], errors.get("prior"), seed)
            ending = f"drawn_{name}_{layout.bottleneck}{suffix}"
            values |= {f"{which}_{ending}": value for which, value in found.items()}
    return values


def errors_of(
    trained: Trained, true: np.ndarray, made: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, dict[str, np.ndarray]]:
    """Distance -> condition -> [n]: beyond what the codec loses, averaged over draws.

    true: uint8 [n, h, w, 3]. made: see `redrawn`.
    """
    coded = getattr(trained.run.model.parts, "codec", None) is not None
    out = {}
    for name, distance in distances(true).items():
        least = distance(reconstruction.reconstruct(trained, true)) if coded else 0.0
        out[name] = {w: np.mean([distance(x) for x in some], 0) - least for w, some in made.items()}
    return out


def redrawn(
    trained: Trained, layout: Layout, records: Sequence[Pair], other: np.ndarray, seed: int
) -> dict[str, list[np.ndarray]]:
    """Condition -> uint8 [n, h, w, 3] DRAWS times: what is drawn after a picture, or none."""
    read: dict[str, Sequence[Pair | None]] = {
        "true": records,
        "shuf": [records[n] for n in other],
    }
    if layout.told:
        read["prior"] = [None] * len(records)
    asked = {
        name: [document(layout, r, own)[:-1] for r, own in zip(some, records, strict=True)]
        for name, some in read.items()
    }
    return {
        name: [trained.draw(documents, seed * DRAWS + n, guidance=1.0) for n in range(DRAWS)]
        for name, documents in asked.items()
    }


def distances(true: np.ndarray) -> dict[str, Callable]:
    """Name -> a function of uint8 [n, h, w, 3] -> [n] f64: how far it is from the true ones."""

    def pixels(drawn: np.ndarray) -> np.ndarray:
        return ((drawn.astype(np.float64) - true) ** 2).mean((1, 2, 3))

    if not efficientnet.installed():
        return {"pixels": pixels}
    network = efficientnet.load()

    def directions(pictures: np.ndarray) -> np.ndarray:
        found = features(network, pictures)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    own = directions(true)
    return {"pixels": pixels, "features": lambda drawn: 1.0 - (directions(drawn) * own).sum(1)}
