"""Do drawings show what was asked for, and do captions say what is there? Known exactly on scenes.

On data sets of scenes (`mmjax data build --src=scenes`, captions of level 2 or 3) the oracle looks
at every drawing, and captions are read by the grammar they were written in.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmjax.batch import Image
from mmjax.data import pipeline
from mmjax.data.pixels import decode_image
from mmjax.data.scenes import oracle
from mmjax.data.scenes.oracle import find, side
from mmjax.data.scenes.say import Told, ground, read
from mmjax.data.scenes.scene import Thing
from mmjax.evals import heldout, reconstruction
from mmjax.evals.value import Value, proportion
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained

SPLITS = ("compositional", "test", "counts")
FIELDS = ("shape", "colour", "size", "x", "y")
BESIDE = ("objects", "relations", "background", "all")  # what is also said of other pictures
BASE = 5000  # training scenes the nearest-neighbour baselines know


def things(facts) -> list[Thing]:
    """The objects of a record's facts, in the order its caption names them."""
    return [Thing(*(one[name] for name in FIELDS)) for one in facts["objects"]]


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Scene by scene on each split; writes `scenes_drawn_<split>.png` and `scenes_written_...`.

    `drawn_<what>_<split>`: share of captions whose drawing shows what the caption says, by the
    oracle; <what> is count, colours, shapes, pairs (colour with shape), objects (size too),
    relations (of the captions that tell one), background, all of it, or all of it of the captions
    of so many objects (`all_of_2`); what a caption does not tell holds. `_true`: of the true
    pictures; `_codec`: of their reconstructions, which bounds what a model of codes can do;
    `_nearest`: of the training picture with the likeliest caption by words in common; `_chance`: of
    other captions' drawings.
    `written_<what>_<split>`: of the captions written for true pictures, objects named exactly;
    `_nearest`: the caption of the nearest training picture; `_chance`: another picture's caption.
    """
    data = trained.run.experiment.data
    source = data.sources[heldout.source(trained)]
    count, values = trained.run.experiment.evals.drawings, {}
    base = heldout.draw(trained, "train", BASE, seed)
    for split in (s for s in SPLITS if s in pipeline.splits(source.path)):
        records = heldout.draw(trained, split, count, seed)
        # Of scenes, with captions of level 2 or 3 that are not too long for a row.
        if not records or "objects" not in records[0].facts or read(records[0].caption) is None:
            continue
        for name, hits in drawn(trained, records, base, split, seed, out).items():
            if hits:
                values[f"drawn_{name}_{split}"] = proportion(hits, seed)
        for name, hits in written(trained, records, base, split, seed, out).items():
            values[f"written_{name}_{split}"] = proportion(hits, seed)
    return values


def shows(picture: np.ndarray, caption: str) -> dict[str, bool]:
    """What of a caption of level 2 or 3 a picture [h, w, 3] uint8 shows, by the oracle."""
    told, seen = read(caption) or [], [found.thing for found in find(picture)]
    sized, behind = any(t.size for t in told), ground(caption)

    def same(view: Callable) -> bool:
        return Counter(map(view, told)) == Counter(map(view, seen))

    found = {
        "count": len(told) == len(seen),
        "colours": same(lambda t: t.colour),
        "shapes": same(lambda t: t.shape),
        "pairs": same(lambda t: (t.colour, t.shape)),
        "objects": same(lambda t: (t.colour, t.shape, t.size if sized else "")),
        "relations": placed(told, seen),
        "background": behind is None or behind == oracle.ground(picture),
    }
    return found | {"all": all(found.values())}


def table(pictures, records) -> dict[str, list[bool]]:
    """`shows` for each picture and record, as columns; some are of some records, see `evaluate`."""
    rows = [shows(p, r.caption) for p, r in zip(pictures, records, strict=True)]
    told = [read(r.caption) or [] for r in records]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    tells = [any(one.where for one in ones) for ones in told]
    columns["relations"] = list(itertools.compress(columns["relations"], tells))
    for count in sorted({len(ones) for ones in told}):
        of_it = [len(ones) == count for ones in told]
        columns[f"all_of_{count}"] = list(itertools.compress(columns["all"], of_it))
    return columns


def drawn(trained: Trained, records, base, split: str, seed: int, out: Path):
    """Text to picture; see `evaluate`."""
    count = trained.run.experiment.evals.drawings
    _, made = heldout.drawings(trained, split, count, seed)
    true = reconstruction.pictures(trained, records)
    near = nearest_words([r.caption for r in records], [r.caption for r in base])
    hits = table(made, records)
    others = {
        "true": true,
        "nearest": reconstruction.pictures(trained, [base[i] for i in near]),
        "chance": np.roll(made, 1, axis=0),
    }
    if getattr(trained.run.model.parts, "codec", None) is not None:
        others["codec"] = reconstruction.reconstruct(trained, true)
    for name, pictures in others.items():
        columns = table(pictures, records)
        hits |= {f"{w}_{name}": x for w, x in columns.items() if w.startswith(BESIDE)}
    rows = list(zip(made, true, records, hits["all"], strict=True))[: heldout.SHOWN]
    cells = [Cell([m, t], [("right: " if ok else "wrong: ") + r.caption]) for m, t, r, ok in rows]
    sheet(cells, out / f"scenes_drawn_{split}.png", f"{split}: drawn (left) and true (right)")
    return hits


def said(caption: str, truth: Sequence[Thing]) -> dict[str, bool]:
    """What of a scene a caption says rightly.

    `pairs`: colours with shapes, each as often; `objects`: with sizes, where the caption has any;
    `all`: objects, and no relation that is false.
    """
    told = read(caption)
    if told is None:
        return dict.fromkeys(("pairs", "objects", "all"), False)
    sized = any(thing.size for thing in told)

    def names(ones: Sequence[Told | Thing], size: bool) -> Counter:
        return Counter((t.colour, t.shape, t.size if size else "") for t in ones)

    pairs = names(told, False) == names(truth, False)
    objects = names(told, sized) == names(truth, sized)
    return {"pairs": pairs, "objects": objects, "all": objects and placed(told, truth)}


def placed(told: Sequence[Told], truth: Sequence[Thing]) -> bool:
    """Whether every relation a caption tells holds for some objects of those names."""
    for before, thing in itertools.pairwise(told):
        if thing.where is None:
            continue
        a = [t for t in truth if (t.colour, t.shape) == (thing.colour, thing.shape)]
        b = [t for t in truth if (t.colour, t.shape) == (before.colour, before.shape)]
        if not any(side(x, y, thing.where) for x in a for y in b if x is not y):
            return False
    return True


def written(trained: Trained, records, base, split: str, seed: int, out: Path):
    """Picture to text; see `evaluate`."""
    made = trained.write([[Image(r.image)] for r in records], seed)
    c = trained.run.experiment.data
    true = reconstruction.pictures(trained, records)
    near = nearest_pictures(true, reconstruction.pictures(trained, base))
    captions = [r.caption for r in records]
    guesses = {
        "": made,
        "_nearest": [base[i].caption for i in near],
        "_chance": captions[1:] + captions[:1],
    }
    hits: dict[str, list[bool]] = {}
    for name, texts in guesses.items():
        rows = [said(t, things(r.facts)) for t, r in zip(texts, records, strict=True)]
        hits |= {f"{what}{name}": [row[what] for row in rows] for what in rows[0]}
    shown = list(zip(records, made, hits["all"], strict=True))[: heldout.SHOWN]
    cells = [
        Cell([decode_image(r.image, c.image, c.resize)], [("right: " if ok else "wrong: ") + text])
        for r, text, ok in shown
    ]
    sheet(cells, out / f"scenes_written_{split}.png", f"{split}: captions written")
    return hits


def nearest_words(captions: Sequence[str], base: Sequence[str]) -> np.ndarray:
    """[n] int: for each caption the one of `base` nearest by tf-idf of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    found = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    known = found.fit_transform(base)
    return np.asarray((found.transform(captions) @ known.T).argmax(axis=1)).ravel()


def nearest_pictures(pictures: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[n] int: for each picture the one of `base` at least squared distance."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (pictures, base))
    return ((b * b).sum(1)[None] - 2 * a @ b.T).argmin(1)
