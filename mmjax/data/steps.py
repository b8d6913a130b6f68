"""Resizing as the image processors of `transformers` do it: whole pixels, then a crop.

`data.resize` names a mode of `data.resize`, or says in words what is done, step after step:

    pad=122,116,104 shortest=336 kernel=bicubic crop=336x336

pad: the picture in the middle of a square of that colour. shortest: both sides are scaled so that
the shorter has so many pixels, the longer is rounded down (shortest_rounded: to the nearest, as the
release of Chameleon does); or size=HEIGHTxWIDTH, whatever the aspect. kernel: Pillow's, applied to
the whole picture. crop=HEIGHTxWIDTH: the middle; where the picture is smaller, black around it. Any
may be left out, as long as all pictures come out in one size. What comes out is equal, pixel by
pixel, to that of their processors on Pillow (backend="pil"); torchvision's round otherwise.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from PIL.Image import Resampling

from mmjax.data.resize import RESIZE, Size
from mmjax.error import UserError

KERNELS = {
    "nearest": Resampling.NEAREST, "lanczos": Resampling.LANCZOS, "bilinear": Resampling.BILINEAR,
    "bicubic": Resampling.BICUBIC, "box": Resampling.BOX, "hamming": Resampling.HAMMING,
}  # fmt: skip
MOST = 2**26  # pixels that are held at once; of larger ones only what is shown is made


@dataclass(frozen=True)
class Steps:
    """What is done with a picture, see the module; 0 or () leaves a step out.

    Attributes:
        pad: colour. shortest: pixels; rounded: whether the longer side is rounded to the nearest.
        size, crop: (height, width).
    """

    pad: tuple[int, ...] = ()
    shortest: int = 0
    rounded: bool = False
    size: tuple[int, ...] = ()
    kernel: str = "bicubic"
    crop: tuple[int, ...] = ()

    @property
    def made(self) -> tuple[int, ...]:
        """(Height, width) of what comes out, () if that depends on the picture."""
        square = (self.shortest, self.shortest) if self.pad and self.shortest else ()
        return self.crop or self.size or square

    def __str__(self) -> str:
        longer = "shortest_rounded" if self.rounded else "shortest"
        told = {
            "pad": ",".join(map(str, self.pad)),
            longer: str(self.shortest or ""),
            "size": "x".join(map(str, self.size)),
            "kernel": self.kernel if self.shortest or self.size else "",
            "crop": "x".join(map(str, self.crop)),
        }
        return " ".join(f"{name}={value}" for name, value in told.items() if value)


@functools.lru_cache
def parse(text: str, field: str = "data.resize") -> Steps:
    """Steps of their words; field: where they stand, for messages.

    Raises:
        UserError: for words that are none, or steps that leave pictures of several sizes.
    """
    readers: dict[str, tuple[str, Callable[[str], Any]]] = {
        "pad": ("pad", lambda x: _numbers(x, ",", 3, 0, 255)),
        "shortest": ("shortest", lambda x: _numbers(x, ",", 1)[0]),
        "shortest_rounded": ("shortest", lambda x: _numbers(x, ",", 1)[0]),
        "size": ("size", lambda x: _numbers(x, "x", 2)),
        "crop": ("crop", lambda x: _numbers(x, "x", 2)),
        "kernel": ("kernel", lambda x: x if x in KERNELS else _no(", ".join(KERNELS))),
    }
    found: dict[str, Any] = {}
    for word in text.split():
        name, equal, value = word.partition("=")
        if name not in readers or not equal:
            raise UserError(
                f"{field}={text!r} is unknown; have: {', '.join(RESIZE)}, or steps, as "
                f"'shortest=224 kernel=bicubic crop=224x224', of {', '.join(readers)}"
            )
        part, read = readers[name]
        try:
            new = read(value)
        except ValueError as error:
            raise UserError(f"{field}={text!r}: {name} must be {error}") from error
        if part in found:
            raise UserError(f"{field}={text!r} says {part} twice")
        found |= {part: new} | ({"rounded": True} if name == "shortest_rounded" else {})
    steps = Steps(**found)
    if steps.size and steps.shortest:
        raise UserError(f"{field}={text!r} has size and shortest; give one")
    if not steps.made:
        raise UserError(f"{field}={text!r} leaves pictures of several sizes; add crop=")
    return steps


def _no(have: str):
    raise ValueError(f"one of {have}")


def _numbers(text: str, mark: str, count: int, least: int = 1, most: int = 1 << 15):
    parts = text.split(mark)
    if len(parts) != count or not all(p.isascii() and p.isdigit() for p in parts):
        raise ValueError(f"{count} whole number{'s' * (count > 1)}, as {mark.join(['1'] * count)}")
    if not all(least <= int(p) <= most for p in parts):
        raise ValueError(f"between {least} and {most}")
    return tuple(map(int, parts))


def check(how: str, size: Size, field: str = "data.resize") -> None:
    """Checks that a mode or steps are known and make pictures of a size.

    Raises:
        UserError: if not; field: where they stand.
    """
    if how not in RESIZE and (made := parse(how, field).made) != _pair(size):
        raise UserError(
            f"{field}={how!r} makes pictures of {made[0]} x {made[1]}, but they are read at "
            f"{_pair(size)[0]} x {_pair(size)[1]}; change both together"
        )


def to_size(pixels: np.ndarray, size: Size, how: str) -> np.ndarray:
    """[h, w, 3] uint8 -> [height, width, 3] uint8, by a mode or by steps.

    Raises:
        UserError: see `check`.
    """
    if how in RESIZE:
        return RESIZE[how](pixels, size)
    check(how, size)
    return apply(parse(how), pixels)


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def apply(steps: Steps, pixels: np.ndarray) -> np.ndarray:
    """[h, w, 3] uint8 -> the same, every step done."""
    kernel = KERNELS[steps.kernel]
    if steps.pad:
        pixels = _square(pixels, steps.pad, steps.size or steps.shortest, kernel)
    size = steps.size or _shortest(steps, *pixels.shape[:2])
    if size[0] * size[1] > MOST and steps.crop:
        return _crop(_window(pixels, size, steps.crop, kernel), steps.crop)
    return _crop(_resized(pixels, size, kernel), steps.crop)


def _shortest(steps: Steps, high: int, wide: int) -> tuple[int, ...]:
    """(Height, width) of a picture whose shorter side is brought to size."""
    side = steps.shortest
    if not side:
        return high, wide
    if steps.rounded:  # as written there: the factor first, half to even
        scale = side / min(high, wide)
        return round(scale * high), round(scale * wide)
    longer = int(side * max(high, wide) / min(high, wide))
    return (longer, side) if wide <= high else (side, longer)


def _resized(pixels: np.ndarray, size: tuple[int, ...], kernel: Resampling) -> np.ndarray:
    return np.asarray(PIL.Image.fromarray(pixels).resize((size[1], size[0]), kernel))


def _crop(pixels: np.ndarray, crop: tuple[int, ...]) -> np.ndarray:
    """The middle; before an odd number of pixels too many or too few, one fewer or more."""
    if not crop:
        return pixels
    found = np.zeros((*crop, 3), np.uint8)
    theirs, ours = [], []
    for side, wanted in zip(pixels.shape[:2], crop, strict=True):
        first = (side - wanted) // 2
        theirs.append(slice(max(first, 0), max(first, 0) + min(side, wanted)))
        ours.append(slice(max(-first, 0), max(-first, 0) + min(side, wanted)))
    found[ours[0], ours[1]] = pixels[theirs[0], theirs[1]]
    return found


def _window(pixels, size, crop, kernel: Resampling) -> np.ndarray:
    """The middle of a very long picture; where it begins is exact to a float's precision."""
    box, made = [], []
    for side, whole, wanted in zip(pixels.shape[:2], size, crop, strict=True):
        kept = min(whole, wanted)
        first = (whole - kept) // 2
        box.append((first * side / whole, (first + kept) * side / whole))
        made.append(kept)
    (top, low), (left, right) = box
    picture = PIL.Image.fromarray(pixels)
    return np.asarray(picture.resize((made[1], made[0]), kernel, (left, top, right, low)))


def _square(pixels: np.ndarray, colour: tuple[int, ...], to, kernel: Resampling) -> np.ndarray:
    """A picture in the middle of a square; of a very large one already at the size it will have.

    Where pixels begin is exact to a float's precision, as in `_window`.
    """
    high, wide = pixels.shape[:2]
    side = max(high, wide)
    top, left = (side - high) // 2, (side - wide) // 2
    if side * side <= MOST or not to:
        square = np.empty((side, side, 3), np.uint8)
        square[:] = colour
        square[top : top + high, left : left + wide] = pixels
        return square
    height, width = _pair(to)
    made = np.empty((side, width, 3), np.uint8)  # columns first, as Pillow; then rows
    made[:] = colour
    # Only where a kernel, three pixels of the smaller picture to each side, reaches the picture.
    scale = side / width
    reach = int(3 * max(scale, 1.0)) + 2
    first = max(int((left - reach) / scale), 0)
    last = min(int((left + wide + reach) / scale) + 1, width)
    begin, end = max(int(first * scale) - reach, 0), min(int(last * scale) + reach, side)
    step = max(MOST // side, 1)
    for row in range(0, high, step):
        part = np.empty((min(step, high - row), end - begin, 3), np.uint8)
        part[:] = colour
        part[:, left - begin : left - begin + wide] = pixels[row : row + step]
        box = first * scale - begin, 0, last * scale - begin, len(part)
        some = PIL.Image.fromarray(part).resize((last - first, len(part)), kernel, box)
        made[top + row : top + row + len(part), first:last] = some
    return _resized(made, (height, width), kernel)
