"""First-fit packing of documents into rows, as a grain iterator whose state is a few bytes."""

import itertools
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from mmjax.batch import Batch
from mmjax.error import UserError

Piece = dict[str, np.ndarray]  # a laid-out document: 1-D arrays and "pixels" [k, h, w, 3]


def first_fit(lengths: Sequence[int], slots: Sequence[int], length: int, images: int):
    """Puts each document into the first row with room for it, opening rows as needed.

    Args:
        lengths: positions of each document.
        slots: pictures of each document.
        length: positions a row. images: image slots a row.

    Returns:
        Rows, each a list of document numbers in the order they came.
    """
    rows: list[list[int]] = []
    free = np.zeros(len(lengths), np.int64)
    room = np.zeros(len(lengths), np.int64)
    for i, (n, k) in enumerate(zip(lengths, slots, strict=True)):
        fits = (free[: len(rows)] >= n) & (room[: len(rows)] >= k)
        r = int(fits.argmax()) if fits.any() else len(rows)
        if r == len(rows):
            rows.append([])
            free[r], room[r] = length, images
        rows[r].append(i)
        free[r] -= n
        room[r] -= k
    return rows


def empty_row(length: int, images: int, size: int) -> Batch:
    """One row of padding, without a batch axis."""
    tokens, modality, segment, position, image = (np.zeros(length, np.int32) for _ in range(5))
    weight = np.zeros(length, np.float32)
    pixels = np.zeros((images, size, size, 3), np.uint8)
    return Batch(tokens, modality, segment, position, image, weight, pixels)


def join(pieces: Sequence[Piece], length: int, images: int, size: int) -> Batch:
    """Lays documents side by side in one row; they must fit."""
    row = empty_row(length, images, size)
    at = slot = 0
    for number, piece in enumerate(pieces, start=1):
        n = len(piece["tokens"])
        span = slice(at, at + n)
        row.tokens[span] = piece["tokens"]
        row.modality[span] = piece["modality"]
        row.segment[span] = number
        row.position[span] = piece["position"]
        row.image[span] = np.where(piece["image"] > 0, piece["image"] + slot, 0)
        row.weight[span] = piece["weight"]
        count = len(piece["pixels"])
        row.pixels[slot : slot + count] = piece["pixels"]
        at, slot = at + n, slot + count
    return row


class PackIterDataset(grain.IterDataset):
    """Packs windows of `window` documents; each window is packed on its own and used up whole.

    Documents larger than a row are left out; a window of nothing else raises UserError.

    The state is the parent's state at the window's first document and the number of rows given out
    since, so it restores bit-exactly by packing that one window again.
    """

    def __init__(self, parent: grain.IterDataset, window: int, length: int, images: int, size: int):
        """`length`, `images`: positions and image slots a row; `size`: side of a picture."""
        super().__init__(parent)
        self.window, self.shape = window, (length, images, size)

    def __iter__(self) -> "PackIterator":
        return PackIterator(iter(self._parent), self.window, self.shape)


class PackIterator(grain.DatasetIterator):
    """Iterator of PackIterDataset; see there."""

    def __init__(self, parent: grain.DatasetIterator, window: int, shape: tuple[int, int, int]):
        super().__init__(parent)
        self._window, self._shape = window, shape
        self._start = parent.get_state()
        self._row = 0
        self._rows: list[Batch] | None = None

    def _fill(self) -> None:
        """Packs the window that begins at the parent's present position."""
        length, images, _ = self._shape
        read = list(itertools.islice(self._parent, self._window))
        pieces = [p for p in read if len(p["tokens"]) <= length and len(p["pixels"]) <= images]
        if read and not pieces:
            raise UserError(
                f"none of {len(read)} documents fits into a row; raise data.length={length} or "
                f"data.images={images}"
            )
        lengths = [len(p["tokens"]) for p in pieces]
        slots = [len(p["pixels"]) for p in pieces]
        plan = first_fit(lengths, slots, length, images)
        self._rows = [join([pieces[i] for i in row], *self._shape) for row in plan]

    def __next__(self) -> Batch:
        if self._rows is None:
            self._fill()
        if self._rows and self._row == len(self._rows):
            self._start, self._row = self._parent.get_state(), 0
            self._fill()
        if not self._rows:
            raise StopIteration
        self._row += 1
        return self._rows[self._row - 1]

    def get_state(self) -> dict[str, Any]:
        """See PackIterDataset."""
        return {"window": self._start, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was taken."""
        self._parent.set_state(state["window"])
        self._start, self._row, self._rows = state["window"], state["row"], None


def fill(batch: Batch) -> float:
    """Share of a batch's positions that hold a document."""
    return float((np.asarray(batch.segment) > 0).mean())
