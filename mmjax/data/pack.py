"""First-fit packing of documents into rows, and of rows into batches, exact on resume."""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from mmjax.batch import Batch
from mmjax.error import UserError

# A laid-out document: 1-D arrays of one length, and under "pictures" what is in its image slots.
Piece = dict[str, Any]


class Shape(NamedTuple):
    """Of a packed row: positions, image slots, and a slot: [size, size, channels] of `dtype`.

    With kinds of pictures a slot is [*canvas, channels], and pieces say theirs under "kinds".
    """

    length: int
    images: int
    size: int
    channels: int = 3
    dtype: str = "uint8"
    canvas: tuple[int, int] | None = None


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
    free: list[int] = []
    room: list[int] = []
    # Rows only ever fill up, so where one document of a size had to stop, the next one may start.
    begin: dict[tuple[int, int], int] = {}
    for i, size in enumerate(zip(lengths, slots, strict=True)):
        n, k = size
        r, last = begin.get(size, 0), len(rows)
        while r < last and (free[r] < n or room[r] < k):
            r += 1
        if r == last:
            rows.append([])
            free.append(length)
            room.append(images)
        begin[size] = r
        rows[r].append(i)
        free[r] -= n
        room[r] -= k
    return rows


def empty_rows(count: int, shape: Shape, pad: int) -> Batch:
    """`count` rows of padding."""
    flat = (count, shape.length)
    modality, segment, position, image = (np.zeros(flat, np.int32) for _ in range(4))
    tokens, weight = np.full(flat, pad, np.int32), np.zeros(flat, np.float32)
    slot = (*(shape.canvas or (shape.size, shape.size)), shape.channels)
    pixels = np.zeros((count, shape.images, *slot), shape.dtype)
    kind = np.zeros((count, shape.images), np.int32)
    return Batch(tokens, modality, segment, position, image, weight, pixels, kind)


def join(rows: Sequence[Sequence[Piece]], shape: Shape, pad: int = 0) -> Batch:
    """Lays the documents of each row side by side; they must fit. Pixels stay zero.

    All documents are written at once, field by field: a loop over them costs ten times as much.
    """
    batch = empty_rows(len(rows), shape, pad)
    pieces = [piece for row in rows for piece in row]
    if not pieces:
        return batch
    counts = [len(row) for row in rows]
    lengths = np.array([len(p["tokens"]) for p in pieces])
    pictures = np.array([len(p["pictures"]) for p in pieces])
    row = np.repeat(np.arange(len(rows)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # number of the row's first document
    before, seen = np.cumsum(lengths) - lengths, np.cumsum(pictures) - pictures
    # Where each document's first position lies in the flattened rows, minus its place in `pieces`.
    shift = row * shape.length - before[first]
    at = np.arange(lengths.sum()) + np.repeat(shift, lengths)
    for name in ("tokens", "modality", "position", "weight"):
        getattr(batch, name).reshape(-1)[at] = np.concatenate([p[name] for p in pieces])
    number = np.arange(len(pieces)) - first + 1
    batch.segment.reshape(-1)[at] = np.repeat(number, lengths)
    image = np.concatenate([p["image"] for p in pieces])
    slot = np.repeat(seen - seen[first], lengths)
    batch.image.reshape(-1)[at] = np.where(image > 0, image + slot, 0)
    if shape.canvas is not None:
        for kinds, some in zip(np.asarray(batch.kind), rows, strict=True):
            known = [kind for piece in some for kind in piece["kinds"]]
            kinds[: len(known)] = known
    return batch


def join_pictures(batch: Batch, rows: Sequence[Sequence[Piece]], pictures: Sequence) -> Batch:
    """Fills in the pixels: `pictures`, [h, w, 3] each, are those of all rows in order."""
    left = iter(pictures)
    for pixels, row in zip(batch.pixels, rows, strict=True):
        for slot in range(sum(len(piece["pictures"]) for piece in row)):
            picture = next(left)
            pixels[slot, : picture.shape[0], : picture.shape[1]] = picture
    return batch


class Place(NamedTuple):
    """Where a stream of batches stands; a state is its dict.

    Attributes:
        batch: batches given out.
        window, row: the next row: how many windows lie before its own, and its number there.
        left_out: documents left out so far because they are larger than a row.
    """

    batch: int = 0
    window: int = 0
    row: int = 0
    left_out: int = 0


class Windows:
    """Rows of a stream of documents, window by window, each packed on its own and used up whole.

    What a row holds is a function of its place alone: not of processes, workers or history.
    """

    def __init__(self, documents: Callable[[range], list[Piece]], size: int, shape: Shape):
        """`documents`: numbers -> laid-out documents; `size`: documents a window."""
        self._documents, self._size, self._shape = documents, size, shape
        self._number, self._left_out = -1, 0
        self._rows: list[list[Piece]] = []

    def _open(self, number: int) -> None:
        """Packs a window, unless it is the open one.

        Raises:
            UserError: if none of its documents fits into a row.
        """
        if number == self._number:
            return
        length, images = self._shape[:2]
        read = self._documents(range(number * self._size, (number + 1) * self._size))
        pieces = [p for p in read if len(p["tokens"]) <= length and len(p["pictures"]) <= images]
        if not pieces:
            raise UserError(
                f"none of {len(read)} documents fits into a row; raise data.length={length} or "
                f"data.images={images}"
            )
        lengths = [len(p["tokens"]) for p in pieces]
        plan = first_fit(lengths, [len(p["pictures"]) for p in pieces], length, images)
        self._rows = [[pieces[i] for i in row] for row in plan]
        self._number, self._left_out = number, len(read) - len(pieces)

    def take(self, place: Place, count: int) -> tuple[Place, list[list[Piece]]]:
        """The next `count` rows, as the documents they hold, and the place behind them."""
        batch, window, row, left_out = place
        rows: list[list[Piece]] = []
        while len(rows) < count:
            self._open(window)
            fresh = self._rows[row : row + count - len(rows)]
            left_out += self._left_out if row == 0 else 0
            rows += fresh
            row += len(fresh)
            if row == len(self._rows):
                window, row = window + 1, 0
        return Place(batch + 1, window, row, left_out), rows


class BatchIterDataset(grain.IterDataset):
    """An endless stream of (Place behind it, this process's rows of the batch).

    Every process packs all windows, for which it reads and tokenizes all text, but builds and
    decodes only rows of its own. So the order is the same for any number of them.
    """

    def __init__(
        self,
        streams: Sequence[tuple[int, Callable[[], Callable[[range], list[Piece]]]]],
        window: int,
        shape: Shape,
        build: Callable[[list[list[Piece]]], Callable[[], Batch]],
        rows: int,
        share: slice,
        ahead: int,
        start: Place,
    ):
        """What to read and which part of it.

        Args:
            streams: (first batch, opens the documents) of each stage, in order; the first is 0.
            window: documents a window. shape: of a row.
            build: begins to make a batch of packed rows, and returns a function that ends it.
            rows: of a batch over all processes. share: those of this process.
            ahead: batches begun before the one that is asked for is ended.
            start: where to begin.
        """
        super().__init__()
        self._arguments = streams, window, shape, build, rows, share, ahead, start

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(*self._arguments)


class BatchIterator(grain.DatasetIterator):
    """Iterator of BatchIterDataset; see there."""

    def __init__(self, streams, window, shape, build, rows, share, ahead: int, start: Place):
        super().__init__()
        self._streams, self._window, self._shape = streams, window, shape
        self._build, self._count, self._share, self._ahead = build, rows, share, ahead
        self._place = self._given = start
        self._begun: collections.deque[tuple[Place, Callable[[], Batch]]] = collections.deque()
        self._stage, self._windows = -1, Windows(lambda numbers: [], window, shape)

    def _next(self) -> list[list[Piece]]:
        """Moves on by a batch and returns its rows."""
        stage = sum(first <= self._place.batch for first, _ in self._streams) - 1
        if stage != self._stage:
            first, documents = self._streams[stage]
            self._windows = Windows(documents(), self._window, self._shape)
            self._stage = stage
            if self._place.batch == first:  # a stage begins with its own first window
                self._place = self._place._replace(window=0, row=0)
        self._place, rows = self._windows.take(self._place, self._count)
        return rows

    def __next__(self) -> tuple[Place, Batch]:
        while len(self._begun) <= self._ahead:
            finish = self._build(self._next()[self._share])
            self._begun.append((self._place, finish))
        self._given, finish = self._begun.popleft()
        return self._given, finish()

    def get_state(self) -> dict[str, int]:
        """Where the batches given out end."""
        return self._given._asdict()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to where `state` was taken."""
        self._place = self._given = Place(**state)
        self._begun.clear()
        self._stage = -1


def fill(batch: Batch) -> float:
    """Share of a batch's positions that hold a document."""
    return float((np.asarray(batch.segment) > 0).mean())
