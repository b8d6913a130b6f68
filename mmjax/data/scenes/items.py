"""Scenes as a data set."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from mmjax.batch import Image, Text
from mmjax.data.record import Item, Record
from mmjax.data.scenes.draw import png
from mmjax.data.scenes.edit import edit
from mmjax.data.scenes.say import blur, caption, questions
from mmjax.data.scenes.scene import COLOURS, MOST, SHAPES, Scene, held_pairs, sample
from mmjax.error import UserError

# Share of each split; what is left is train. `compositional` scenes hold at least one pair of
# colour and shape that no other split has; `counts` scenes hold more objects than any other's.
SHARES = {"validation": 0.05, "test": 0.05, "compositional": 0.05, "counts": 0.02}


def items(
    count: int = 20_000,
    size: int = 64,
    level: int = 2,
    information: float = 1.0,
    seed: int = 0,
    overlap: float = 0.0,
    most: int = MOST,
    edits: bool = False,
) -> Iterator[Item]:
    """Scenes; number i is a function of the seed and i alone.

    Args:
        count: how many. size: side of a picture in pixels. level: of the captions, 1 to 3.
        information: probability that a caption's colour, shape or size is the true one rather
            than drawn at random; see `say.mutual_information`.
        seed: of everything random. overlap: see `scene.sample`; 0 keeps objects apart.
        most: objects of the scenes in the split `counts`; all others have fewer.
        edits: each document is a scene, what is to change in it, and the scene changed.

    Raises:
        UserError: for values out of range.
    """
    for name, value, low, high in (
        ("count", count, 1, 10**9),
        ("size", size, 8, 1024),
        ("level", level, 1, 3),
        ("information", information, 0, 1),
        ("overlap", overlap, 0, 0.6),
        ("most", most, 2, MOST),
    ):
        if not low <= value <= high:
            raise UserError(f"--{name}={value} must lie between {low} and {high}")
    if all(split_of(i, seed) != "train" for i in range(min(count, 100))):
        raise UserError(
            f"--count={count} leaves no scene for training with --seed={seed}; give more"
        )
    make = partial(_record, size=size, overlap=overlap, most=most)
    if edits:
        make = partial(make, tell=_edit)
    else:
        make = partial(make, tell=partial(_caption, level=level, information=information))
    return (Item(f"scene {i}", partial(make, i, seed), split_of(i, seed)) for i in range(count))


def split_of(number: int, seed: int) -> str:
    """The split of a scene by its number."""
    draw = np.random.default_rng((seed, 2, number)).random()
    for split, share in SHARES.items():
        if draw < share:
            return split
        draw -= share
    return "train"


def _record(number: int, seed: int, size: int, overlap: float, most: int, tell: Callable) -> Record:
    rng = np.random.default_rng((seed, 3, number))
    split, held = split_of(number, seed), held_pairs(seed)
    pairs = [(s, c) for s in SHAPES for c in COLOURS if (s, c) not in held]
    must = sorted(held) if split == "compositional" else []
    counts = [most] if split == "counts" else range(1, most)
    scene = sample(rng, counts, pairs, overlap, must)
    document, facts = tell(scene, rng, size, [*pairs, *must])
    name = f"scene-{number:09d}"
    return Record(name, document, facts | {"concept": name})


def _seen(scene: Scene) -> dict:
    """What a picture of a scene shows, as facts."""
    objects = [dataclasses.asdict(t) | {"box": list(t.box)} for t in scene.things]
    return {"objects": objects, "background": scene.background}


def _caption(scene: Scene, rng, size: int, pairs, level: int, information: float):
    """A document of a caption and a picture, and its facts."""
    asked = questions(scene, rng)
    told = blur(scene, rng, information)
    true = caption(told, level) == caption(scene, level)
    document = (Text(caption(told, level)), Image(png(scene, size)))
    return document, _seen(scene) | {"questions": asked, "true": true}


def _edit(scene: Scene, rng, size: int, pairs):
    """A document of a picture, what is to change, and the picture changed; facts of the latter."""
    kind, words, changed = edit(scene, rng, pairs)
    document = (Image(png(scene, size)), Text(words), Image(png(changed, size)))
    return document, _seen(changed) | {"edit": kind}
