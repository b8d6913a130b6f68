"""Caption to picture: is the drawn picture nearest to its own truth, and what does it look like?"""

from pathlib import Path

import numpy as np

from mmjax.data.pixels import decode_image
from mmjax.evals import heldout
from mmjax.evals.value import Value, proportion
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Draws held-out captions of each split; writes `drawn_<split>.png`.

    `drawn_choice_among_10`: the drawn picture is nearer, in mean squared error of pixels, to its
    own true picture than to nine others drawn at random from the same split (chance 0.10). Of k
    pictures, fewer than ten, `drawn_choice_among_k` (chance 1/k). Where there are kinds of
    pictures, each is drawn: `drawn_<kind>_...` and `drawn_<kind>_<split>.png`.
    """
    values: dict[str, Value] = {}
    for number, kind in enumerate(heldout.names(trained)):
        name = f"drawn_{kind}" if number else "drawn"
        for split, suffix in heldout.splits(trained, number).items():
            hits = drawn_well(trained, split, seed, number, out / f"{name}_{split}.png")
            among = heldout.choices(range(len(hits)))
            values[f"{name}_choice_among_{among}{suffix}"] = proportion(hits, seed)
    return values


def drawn_well(trained: Trained, split: str, seed: int, kind: int, file: Path) -> np.ndarray:
    """[n] bool: the drawing of a caption is nearest to its own picture; writes a sheet of them."""
    e = trained.run.experiment
    size = e.data.sizes[kind] if kind else e.data.image
    records, drawn = heldout.drawings(trained, split, e.evals.drawings, seed, kind)
    true = np.stack([decode_image(r.image, size, e.data.resize) for r in records])
    rows = list(zip(drawn, true, records, strict=True))[: heldout.SHOWN]
    cells = [Cell([d, t], [r.caption]) for d, t, r in rows]
    sheet(cells, file, f"{split}: drawn (left) and true (right)")
    numbers = range(len(records))
    return nearest_is_own(drawn, true, heldout.others(numbers, heldout.choices(numbers), seed))


def nearest_is_own(drawn: np.ndarray, true: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[n] bool: of the true pictures `table` [n, k] names, the first is nearest to the drawn one.

    drawn, true: [n, h, w, 3] uint8.
    """
    a, b = drawn.astype(np.float32), true.astype(np.float32)
    distance = ((a[:, None] - b[table]) ** 2).mean(axis=(2, 3, 4))
    return distance.argmin(1) == 0
