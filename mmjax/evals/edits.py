"""Is a picture changed as asked? Picture to picture, for models trained on edits of scenes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mmjax.batch import Image, Text
from mmjax.data import pipeline
from mmjax.data.pixels import decode_image
from mmjax.data.scenes.edit import KINDS
from mmjax.data.scenes.oracle import agreement, find, ground
from mmjax.evals import heldout, reconstruction
from mmjax.evals.scenes import things
from mmjax.evals.value import Value, proportion
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Edits of each held-out split, drawn and judged; writes `edited_<split>.png`.

    `edited_<what>`: share of pictures that show, by the oracle, the changed scene's `colours`, its
    `objects` (with colours and sizes), its `background`, or `all`, every object where it belongs;
    `edited_all_<kind>` by kind of edit. `_copied`: of the pictures before; `_blind`: drawn after
    another picture; `_codec`: of reconstructions of the truth, which bounds what a model of codes
    can do.
    """
    data = replace(trained.run.experiment.data, coded=False)
    splits = {}
    for name, source in data.sources.items():
        if next(iter(pipeline.records(data, name, "train"))).facts.get("edit"):
            splits = {
                s: heldout.SPLITS[s] for s in pipeline.splits(source.path) if s in heldout.SPLITS
            }
            break
    values: dict[str, Value] = {}
    for split, suffix in splits.items():
        held = pipeline.records(data, name, split)
        order = np.random.default_rng(seed).permutation(len(held))
        records = [held[int(i)] for i in order[: trained.run.experiment.evals.drawings]]
        found = edited(trained, records, split, seed, out)
        values |= {f"edited_{n}{suffix}": value for n, value in found.items()}
    return values


def edited(trained: Trained, records, split: str, seed: int, out: Path) -> dict[str, Value]:
    """Records of one split."""
    c = trained.run.experiment.data
    words = [next(p for p in r.document if isinstance(p, Text)) for r in records]
    before, after = (
        np.stack([decode_image(r.images[i], c.image, c.resize) for r in records]) for i in (0, 1)
    )

    def drawn(shift: int) -> np.ndarray:
        given = [Image(r.images[0]) for r in records[shift:] + records[:shift]]
        return trained.draw([[i, w] for i, w in zip(given, words, strict=True)], seed)

    made = drawn(0)
    pictures = {"": made, "_blind": drawn(1), "_copied": before}
    if getattr(trained.run.model.parts, "codec", None) is not None:
        pictures["_codec"] = reconstruction.reconstruct(trained, after)
    hits = {who: judged(shown, records) for who, shown in pictures.items()}
    found = {
        f"{what}{who}": proportion(some, seed)
        for who, columns in hits.items()
        for what, some in columns.items()
    }
    right = hits[""]["all"]
    for kind in KINDS:
        some = [ok for ok, r in zip(right, records, strict=True) if r.facts["edit"] == kind]
        if some:
            found[f"all_{kind}"] = proportion(some, seed)
    rows = list(zip(before, made, after, words, right, strict=True))[: heldout.SHOWN]
    cells = [
        Cell([b, m, a], [("right: " if ok else "wrong: ") + w.text]) for b, m, a, w, ok in rows
    ]
    sheet(cells, out / f"edited_{split}.png", f"{split}: before, drawn, and true")
    return found


def judged(pictures, records) -> dict[str, list[bool]]:
    """What each picture [n, h, w, 3] uint8 shows of its record's changed scene, as columns."""
    columns: dict[str, list[bool]] = {"colours": [], "objects": [], "background": [], "all": []}
    for shown, record in zip(pictures, records, strict=True):
        found = agreement(things(record.facts), find(shown))
        found["background"] = ground(shown) == record.facts["background"]
        found["all"] = found["all"] and found["background"]
        for name, column in columns.items():
            column.append(found[name])
    return columns
