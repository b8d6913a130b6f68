"""Encoded pictures to pixels. Worker processes import this, so it needs little and no JAX."""

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from mmjax.data.resize import RESIZE, Size, pil_bilinear_aa, pil_box
from mmjax.error import UserError

UNREADABLE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)


class Encoded(NamedTuple):
    """An encoded picture and how it is to be read, see `decode_image`."""

    data: bytes
    size: Size
    resize: str
    shrink: int = 1


def unreadable(data: bytes, error: Exception) -> UserError:
    """What to raise where Pillow does not read some bytes."""
    why = str(error)
    if isinstance(error, PIL.UnidentifiedImageError):  # it would name an object in memory
        why = "it is no PNG, JPEG or other format that Pillow reads; convert it"
    return UserError(f"a picture of {len(data)} bytes cannot be decoded: {why}")


def size_of(data: bytes) -> tuple[int, int]:
    """(Height, width) of an encoded picture the right way up; only its header is read.

    Raises:
        UserError: if the bytes are no readable picture.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
            turned = opened.getexif().get(PIL.ExifTags.Base.Orientation, 1) >= 5
    except UNREADABLE as error:
        raise unreadable(data, error) from error
    return (width, height) if turned else (height, width)


def decode_image(data: bytes, size: Size, resize: str, shrink: int = 1) -> np.ndarray:
    """Encoded picture -> [size, size, 3] uint8, by a mode of RESIZE; the centre is kept.

    `size` may be (height, width). With `shrink` > 1, which divides size, what the picture shows is
    what is left of it when each square of shrink x shrink pixels has become one: their mean, and
    bilinear between the means.

    Raises:
        UserError: if the bytes are no readable picture.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            picture = flatten(opened)
    except UNREADABLE as error:
        raise unreadable(data, error) from error
    pixels = RESIZE[resize](np.asarray(picture, np.uint8), size)
    if shrink == 1:
        return pixels
    if not isinstance(size, int):
        raise TypeError("only squares are read as if they had fewer pixels")
    return pil_bilinear_aa(pil_box(pixels, size // shrink), size)


def check_depth(picture: PIL.Image.Image) -> None:
    """Refuses numbers of 32 bits: convert() would clip them to 0 ... 255, so to white or black.

    Raises:
        ValueError: if they are.
    """
    if picture.mode in ("I", "F"):
        raise ValueError(
            "it has numbers of 32 bits, which do not say what is white; save it with 8 or 16 bits"
        )


def flatten(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Any picture of at most 16 bits -> RGB the right way up (EXIF), transparency laid on white."""
    check_depth(picture)
    picture = PIL.ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):  # 16 bits of grey, which convert() would clip to white
        picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        ground = PIL.Image.new("RGBA", picture.size, "white")
        return PIL.Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def decode_all(pictures: Sequence[Encoded | np.ndarray]) -> list[np.ndarray]:
    """Encoded pictures -> [size, size, 3] uint8 each, see `decode_image`; latents as they are."""
    return [p if isinstance(p, np.ndarray) else decode_image(*p) for p in pictures]


def start_worker() -> None:
    """Makes a worker process leave with its parent, however that ends, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
