"""Contact sheets: drawn beside true pictures, written beside true captions."""

from pathlib import Path

from mmjax.batch import Image, Text
from mmjax.data import pipeline
from mmjax.evals import heldout
from mmjax.evals.value import Value
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained

SHOWN = 48


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Writes `drawn_<split>.png` and `written_<split>.png` for each held-out split; no numbers."""
    size = trained.run.experiment.data.image
    for split in heldout.SPLITS:
        records = heldout.draw(trained, split, SHOWN, seed)
        true = [pipeline.decode_image(r["image"], size) for r in records]
        drawn = trained.draw([[Text(r["caption"])] for r in records], seed)
        cells = [
            Cell([d, t], [r["caption"]]) for d, t, r in zip(drawn, true, records, strict=True)
        ]
        sheet(cells, out / f"drawn_{split}.png", f"{split}: drawn (left) and true (right)")
        written = trained.write([[Image(r["image"])] for r in records], seed)
        cells = [
            Cell([t], [w, f"({r['caption']})"])
            for t, w, r in zip(true, written, records, strict=True)
        ]
        sheet(cells, out / f"written_{split}.png", f"{split}: written, and (true)")
    return {}
