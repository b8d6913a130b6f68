"""One row a weight: its path here, its name there, and how one becomes the other.

Theirs keep matrices as [out, in], ours as [in, out]; theirs a tensor a layer, ours all layers on
axis 0. A row says both, and both directions follow from it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from mmjax.error import UserError, some


class Row(NamedTuple):
    """A weight here and there.

    Attributes:
        ours: path "a/b" in params. theirs: its name, with "{}" for the layer's number.
        shape: ours, of one layer. layers: how many; 0 if it belongs to none.
        kind: "same" (but for the shape), "matrix" (turned round; the axes of `shape` that come in
            are `into`), "patch" (a convolution [d, 3, p, p] -> [p p 3, d]), or "conv" ([d, c, p, p]
            -> [p, p, c, d]).
        into: see `kind`. part: which of three, where theirs keeps q, k and v in one.
        was: their shape, where only axes of size 1 tell it from ours.
        order: number there of each of our rows, where they stand in another order.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    layers: int = 0
    kind: str = "same"
    into: int = 1
    part: int | None = None
    was: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    @property
    def names(self) -> list[str]:
        """Theirs, one a layer."""
        return [self.theirs.format(n) for n in range(self.layers)] or [self.theirs]

    @property
    def foreign(self) -> tuple[int, ...]:
        """The shape of one of theirs."""
        if self.kind == "matrix":
            rows = int(np.prod(self.shape[self.into :]))
            return rows, int(np.prod(self.shape[: self.into]))
        if self.kind == "patch":
            side = round((self.shape[0] // 3) ** 0.5)
            return self.shape[1], 3, side, side
        if self.kind == "conv":
            p, _, c, d = self.shape
            return d, c, p, p
        return self.shape if self.was is None else self.was

    def here(self, x: np.ndarray) -> np.ndarray:
        """One of theirs as it lies here."""
        if self.part is not None:
            x = np.split(x, 3)[self.part]
        if self.kind == "matrix":
            x = x.reshape(self.foreign).T
        elif self.kind in ("patch", "conv"):
            x = x.transpose(2, 3, 1, 0)
        elif self.order is not None:
            x = x[np.array(self.order)]
        return x.reshape(self.shape)

    def there(self, x: np.ndarray) -> np.ndarray:
        """The reverse of `here`, of a row that is no part."""
        if self.kind == "matrix":
            return x.reshape(self.foreign[::-1]).T
        if self.kind == "patch":
            d, c, p, _ = self.foreign
            return x.reshape(p, p, c, d).transpose(3, 2, 0, 1)
        if self.kind == "conv":
            return x.transpose(3, 2, 0, 1)
        if self.order is not None:
            x = x.reshape(self.foreign)[np.argsort(self.order)]
        if x.size < int(np.prod(self.foreign)):  # one for all heads here, one for each there
            x = np.broadcast_to(x, self.foreign)
        return x.reshape(self.foreign)


def wanted(row: Row) -> tuple[int, ...]:
    """The shape of a tensor of theirs as it lies in their file."""
    shape = row.foreign
    return shape if row.part is None else (3 * shape[0], *shape[1:])


def check(rows: Sequence[Row], shapes: Mapping[str, tuple[int, ...]], ignored=()) -> None:
    """Holds a checkpoint's names and shapes against those wanted.

    shapes: of all its tensors. ignored: parts of names that are no weights.

    Raises:
        UserError: naming what is missing, unknown or of another shape.
    """
    want = {name: wanted(row) for row in rows for name in row.names}
    known = {n: s for n, s in shapes.items() if not any(part in n for part in ignored)}
    wrong = {n: f"{known[n]} for {want[n]}" for n in want if n in known and known[n] != want[n]}
    said = {
        "missing": sorted(set(want) - set(known), key=by_number),
        "unknown": sorted(set(known) - set(want), key=by_number),
        "of another shape": [f"{n} {wrong[n]}" for n in sorted(wrong, key=by_number)],
    }
    if any(said.values()):
        told = "; ".join(f"{len(x):,} {what}: {some(x)}" for what, x in said.items() if x)
        raise UserError(f"these weights are not those of this configuration: {told}")


def by_number(name: str) -> list:
    """Sorts layer 2 before layer 10."""
    return [part.zfill(9) for part in re.split(r"(\d+)", name)]


def stacked(row: Row, get: Callable[[str], np.ndarray], path: Path) -> None:
    """Writes a weight of ours to a .npy file, holding one of theirs at a time."""
    shape = (row.layers, *row.shape) if row.layers else row.shape
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for name in row.names:
            one = row.here(np.asarray(get(name), np.float32))
            file.write(np.ascontiguousarray(one, "<f4").data)


def from_theirs(rows: Sequence[Row], get: Callable[[str], np.ndarray]):
    """Params, nested, from theirs one tensor at a time. get: name -> its numbers."""
    flat = {}
    for row in rows:
        some = [row.here(np.asarray(get(name), np.float32)) for name in row.names]
        flat[row.ours] = np.stack(some) if row.layers else some[0]
    return unflatten_dict(flat, sep="/")


def to_theirs(rows: Sequence[Row], get: Callable[[str], Iterable[np.ndarray]]):
    """(name, numbers) of all of theirs, one by one. get: path here -> an array, or its layers."""
    parts: dict[str, list[np.ndarray]] = {}
    for row in rows:
        whole = get(row.ours)
        for name, x in zip(row.names, whole if row.layers else [whole], strict=True):
            one = row.there(np.asarray(x, np.float32))
            if row.part is None:
                yield name, one
                continue
            parts.setdefault(name, []).append(one)
            if len(parts[name]) == 3:  # q, k and v follow one another
                yield name, np.concatenate(parts.pop(name))
        del whole, x, one  # before the next is read
