"""Mean and deviation of what a model denoises: `model.signal_mean` and `model.signal_std`."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.batch import Coded, Image
from mmjax.data import pipeline
from mmjax.data.pixels import decode_image
from mmjax.data.record import Record
from mmjax.error import UserError

MOST = 10_000  # records that are read, spread evenly over all
RESIZE = "pil_box"  # which the experiments use unless they say otherwise


class Signal(NamedTuple):
    """mean, std: over all numbers of all images. images: how many. latents: whether they are."""

    mean: float
    std: float
    images: int
    latents: bool

    def line(self) -> str:
        """The fields of an experiment, and what they were measured on."""
        what = "latents" if self.latents else "images"
        fields = f"model.signal_mean={self.mean:.4f} model.signal_std={self.std:.4f}"
        return f"{fields} (of {self.images:,} {what})"


def measure(path: str | Path, size: int | None = None, resize: str = "") -> Signal | None:
    """The signal of a data set's training images, as `models.signal` standardises it, if any.

    Of images it is their pixels in [-1, 1], of a set that `mmjax tokenize` wrote its latents.

    Args:
        path: of the set. size: `data.image` of the experiment. resize: its `data.resize`.

    Raises:
        UserError: for a set of codes, and for images without a size.
    """
    total, squares, count, images, coded = 0.0, 0.0, 0, 0, False
    for x, latents in _arrays(path, size, resize or RESIZE):
        coded = latents
        total += float(x.sum(dtype=np.float64))
        squares += float(np.square(x, dtype=np.float64).sum())
        count, images = count + x.size, images + 1
    if not count:
        return None
    mean = total / count
    return Signal(mean, float(np.sqrt(max(squares / count - mean**2, 0.0))), images, coded)


def _arrays(path: str | Path, size: int | None, resize: str) -> Iterator[tuple[np.ndarray, bool]]:
    """Each image's numbers, and whether they are latents."""
    records = pipeline.open_split(path, "train")
    picks = np.unique(np.linspace(0, len(records) - 1, min(len(records), MOST)).astype(int))
    for number in picks:
        for part in _images(records[int(number)]):
            if part.coded is not None:
                yield _latents(part.coded, path), True
            elif size is None:
                raise UserError("--size is missing; give data.image of the experiment")
            else:
                yield decode_image(part.data, size, resize).astype(np.float32) / 127.5 - 1.0, False


def _images(record: Record) -> list[Image]:
    return [part for part in record.document if isinstance(part, Image)]


def _latents(coded: Coded, path: str | Path) -> np.ndarray:
    if coded.dtype == "int32":
        raise UserError(f"{path} holds codes, which are not denoised; a signal is of latents")
    return np.frombuffer(coded.data, coded.dtype).astype(np.float32)
