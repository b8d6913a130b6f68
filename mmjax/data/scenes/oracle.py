"""Which objects a picture shows, and where: knows how scenes are drawn, but not the scene.

1. The background is a plane fitted to the picture's border.
2. Each pixel is a mixture of the background and one of the palette's colours, b + a (c - b); the
   colour that explains it best, and its share a, undo the anti-aliasing.
3. Connected pixels of one colour are an object, if they are enough.
4. Its shape is the one whose template, drawn as large, overlaps it best.
Scenes with overlapping objects, tiny pictures and strong noise are where it fails; how often is
measured by `benchmarks/scenes_oracle.py`.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from mmjax.data.scenes.draw import cover
from mmjax.data.scenes.say import relation
from mmjax.data.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Thing

PALETTE = np.array(list(COLOURS.values()), np.float32)
MEDIAN = 48  # side from which single noisy pixels can be told from objects
FAINT = 0.4  # share of an object's colour below which a pixel is background
DOUBT = 25.0  # levels of colour that a whole share outweighs
STRANGE = 110.0  # levels of colour that no mixture may leave unexplained
SMALLEST = 0.25  # area of an object, as a share of the smallest circle's
LEAST_IOU = 0.5  # overlap with the best template below which nothing is reported
STEPS = 4  # places of a template a pixel
NEAR = 15.0  # levels of colour to a background; two of them are 30 apart and more


@dataclass(frozen=True)
class Found:
    """An object the oracle sees.

    thing: what and where. confidence: overlap with its template, 0 to 1.
    """

    thing: Thing
    confidence: float


def find(pixels: np.ndarray) -> list[Found]:
    """Objects in a picture, [n, n, 3] uint8, from left to right; none where nothing is clear."""
    size = len(pixels)
    values = pixels.astype(np.float32)
    if size >= MEDIAN:
        values = ndimage.median_filter(values, size=(3, 3, 1), mode="nearest")
    label, share = _unmix(values, _background(values))
    least = SMALLEST * np.pi * (SIZES["small"] * size) ** 2
    found = []
    for number, name in enumerate(COLOURS):
        mask = label == number
        regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
        areas = ndimage.sum_labels(mask, regions, np.arange(1, count + 1))
        for k in np.flatnonzero(areas >= least) + 1:
            around = ndimage.binary_dilation(regions == k, structure=np.ones((3, 3)))
            around &= (regions == k) | (label < 0)  # the faint pixels of its edge, no other object
            one = _object(np.where(around, share[..., number], 0.0), name)
            if one is not None:
                found.append(one)
    return sorted(found, key=lambda f: f.thing.x)


def ground(pixels: np.ndarray) -> str:
    """The background of a picture, [n, n, 3] uint8, by its name; "" if it is like none."""
    plane = _background(pixels.astype(np.float32))[:, 0]
    top_to_bottom = (np.arange(len(plane), dtype=np.float32)[:, None] + 0.5) / len(plane)
    off = {
        name: float(abs(plane - (np.array(a) + (np.array(b) - a) * top_to_bottom)).mean())
        for name, (a, b) in BACKGROUNDS.items()
    }
    nearest = min(off, key=lambda name: off[name])
    return nearest if off[nearest] < NEAR else ""


def _background(values: np.ndarray) -> np.ndarray:
    """[n, n, 3]: a colour that changes linearly from top to bottom, fitted to the border.

    Each border row's and side pixel's median is taken, so that an object at the edge does not
    count.
    """
    n = len(values)
    sides = np.concatenate([values[:, :1], values[:, -1:]], axis=1)
    at = np.arange(n, dtype=np.float32)
    rows = sides.mean(1)
    rows[0], rows[-1] = np.median(values[0], 0), np.median(values[-1], 0)
    centre = np.median(rows, 0)
    slope = np.median((rows[n // 2 :] - rows[: n - n // 2]) / (n // 2), 0)
    plane = centre + (at[:, None] - (n - 1) / 2) * slope
    return np.broadcast_to(plane[:, None], values.shape)


def _unmix(values: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each pixel is made of, [n, n] and [n, n, colours].

    Returns:
        The number of the palette's colour that explains it best, -1 for background and for what no
        colour explains; and for each colour how much of it there would be.
    """
    way = PALETTE - ground[..., None, :]
    off = (values - ground)[..., None, :]
    share = np.clip((way * off).sum(-1) / np.maximum((way**2).sum(-1), 1.0), 0, 1)
    rest = np.linalg.norm(off - share[..., None] * way, axis=-1)
    # Of two explanations as good, the one with more of its colour: brown rather than half orange.
    label = (rest + DOUBT * (1 - share)).argmin(-1)
    best, left = (np.take_along_axis(x, label[..., None], -1)[..., 0] for x in (share, rest))
    return np.where((best > FAINT) & (left < STRANGE), label, -1), share


def _object(share: np.ndarray, colour: str) -> Found | None:
    """One object from the share of its colour in each pixel; None if it looks like no shape.

    Its centre follows from its centroid, so that for each shape and size there is one place where
    a template can lie; what counts is how much of the two together they have in common.
    """
    size, mass = len(share), float(share.sum())
    middle = np.array([share.sum(1) @ np.arange(size), share.sum(0) @ np.arange(size)]) / mass + 0.5
    best, most = None, LEAST_IOU
    for shape in SHAPES:
        for name, half in SIZES.items():
            radius = half * size
            centre = middle - np.array(_centroid(shape)) * radius
            low = np.floor(centre - radius).astype(int) - 1
            steps = np.round((centre - low) * STEPS).astype(int)
            template = _template(shape, radius, *steps.tolist())
            common = float(np.minimum(template, _window(share, low, len(template))).sum())
            iou = common / (mass + float(template.sum()) - common)
            if iou > most:
                y, x = (centre / size).round(4).tolist()
                best, most = Thing(shape, colour, name, x, y), iou
    return None if best is None else Found(best, round(most, 3))


def _window(share: np.ndarray, low: np.ndarray, side: int) -> np.ndarray:
    """A square of side `side` whose first pixel is `low`; zero beyond the picture."""
    out = np.zeros((side, side), share.dtype)
    begin, end = np.clip(low, 0, len(share)), np.clip(low + side, 0, len(share))
    (top, left), (bottom, right) = begin - low, end - low
    out[top:bottom, left:right] = share[begin[0] : end[0], begin[1] : end[1]]
    return out


@lru_cache(maxsize=8192)
def _template(shape: str, radius: float, row: int, column: int) -> np.ndarray:
    """A shape around a point, given in pixels times STEPS, on the smallest square it fits."""
    side = 2 * int(np.ceil(radius)) + 4
    return cover(shape, column / STEPS, row / STEPS, radius, side)


@lru_cache(maxsize=16)
def _centroid(shape: str) -> tuple[float, float]:
    """Of a shape of radius 1 around the origin: row and column."""
    drawn, at = cover(shape, 100.0, 100.0, 90.0, 200), np.arange(200) + 0.5
    mass = drawn.sum()
    return float(drawn.sum(1) @ at / mass - 100) / 90, float(drawn.sum(0) @ at / mass - 100) / 90


def agreement(truth: Sequence[Thing], found: Sequence[Found]) -> dict[str, bool]:
    """What of a scene a picture shows: a truth value for each kind of statement.

    `count`: as many objects. `colours`, `shapes`, `pairs` (colour with shape), `objects` (with
    size): the same ones, as often. `relations`: every relation beyond doubt between two of the
    true objects whose colour and shape are unique holds between those seen. `all`: all of it.
    """
    seen = [f.thing for f in found]
    views = {
        "count": lambda t: None,
        "colours": lambda t: t.colour,
        "shapes": lambda t: t.shape,
        "pairs": lambda t: (t.colour, t.shape),
        "objects": lambda t: (t.colour, t.shape, t.size),
    }
    result = {
        name: Counter(map(view, truth)) == Counter(map(view, seen)) for name, view in views.items()
    }
    result["relations"] = _relations_hold(truth, seen)
    return result | {"all": all(result.values())}


def _relations_hold(truth: Sequence[Thing], seen: Sequence[Thing]) -> bool:
    names = Counter((t.colour, t.shape) for t in truth)
    where = {(t.colour, t.shape): t for t in seen}
    unique = [t for t in truth if names[t.colour, t.shape] == 1]
    for a, b in itertools.permutations(unique, 2):
        told = relation(a, b)
        if told is None:
            continue
        x, y = where.get((a.colour, a.shape)), where.get((b.colour, b.shape))
        if x is None or y is None or not side(x, y, told):
            return False
    return True


def side(a: Thing, b: Thing, told: str) -> bool:
    """Whether a lies on that side of b at all, by their centres."""
    return {
        "to the left of": a.x < b.x,
        "to the right of": a.x > b.x,
        "above": a.y < b.y,
        "below": a.y > b.y,
    }[told]
