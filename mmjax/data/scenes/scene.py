"""What a scene is, and how scenes are drawn at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 0),
    "yellow": (247, 220, 45),
    "green": (34, 139, 60),
    "blue": (40, 90, 215),
    "purple": (130, 50, 170),
    "pink": (255, 130, 200),
    "brown": (120, 70, 30),
}
SIZES = {"small": 0.12, "medium": 0.18, "large": 0.26}  # half the width, of a picture of side 1
# Colours at the top and at the bottom.
BACKGROUNDS = {
    "white": ((255, 255, 255), (255, 255, 255)),
    "grey": ((190, 190, 190), (190, 190, 190)),
    "black": ((15, 15, 15), (15, 15, 15)),
    "fading": ((255, 255, 255), (150, 155, 165)),
}
MOST = 5  # objects of a scene
GAP = 0.03  # between two objects that do not overlap, and to the edge


@dataclass(frozen=True)
class Thing:
    """An object: x to the right and y downwards from the top left corner, both in [0, 1]."""

    shape: str
    colour: str
    size: str
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Half its width."""
        return SIZES[self.size]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        r = self.radius
        return self.x - r, self.y - r, self.x + r, self.y + r


@dataclass(frozen=True)
class Scene:
    """Objects, later ones in front, on a background."""

    things: tuple[Thing, ...]
    background: str


def held_pairs(seed: int) -> frozenset[tuple[str, str]]:
    """(shape, colour) pairs kept from training: each shape and each colour once, by the seed.

    So every shape, and every colour, stays equally frequent in training.
    """
    colours = np.random.default_rng((seed, 1)).permutation(list(COLOURS)).tolist()
    return frozenset(zip(SHAPES, colours, strict=True))


def sample(
    rng: np.random.Generator,
    counts: Sequence[int],
    pairs: Sequence[tuple[str, str]],
    overlap: float,
    must: Sequence[tuple[str, str]] = (),
) -> Scene:
    """Draws a scene.

    Args:
        rng: decides. counts: numbers of objects, equally likely.
        pairs: (shape, colour) of its objects, equally likely.
        overlap: two objects may come closer by this share of the distance at which they touch.
        must: one object is one of these instead.
    """
    while True:
        count = int(rng.choice(list(counts)))
        kinds = [pairs[i] for i in rng.integers(len(pairs), size=count)]
        if must:
            kinds[int(rng.integers(count))] = must[int(rng.integers(len(must)))]
        things = _place(rng, kinds, overlap)
        if things is not None:
            return Scene(things, str(rng.choice(list(BACKGROUNDS))))


def _place(rng: np.random.Generator, kinds, overlap: float) -> tuple[Thing, ...] | None:
    """Gives every object a size and a free place; None if that fails."""
    things: list[Thing] = []
    for shape, colour in kinds:
        for _ in range(30):
            size = str(rng.choice(list(SIZES)))
            low = SIZES[size] + GAP
            x, y = rng.uniform(low, 1 - low, 2)
            new = Thing(shape, colour, size, round(float(x), 4), round(float(y), 4))
            if all(_apart(new, other, overlap) for other in things):
                things.append(new)
                break
        else:
            return None
    return tuple(things)


def _apart(a: Thing, b: Thing, overlap: float) -> bool:
    """Whether two objects are far enough from each other, by the boxes around them."""
    need = (a.radius + b.radius + GAP) * (1 - overlap)
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= need
