"""Arrays of a checkpoint a chunk at a time: orbax would hold each whole, and twice.

Stacks, arrays of three axes or more, lie there a layer a chunk, whether trained or imported.
"""

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from mmjax import paths
from mmjax.checksum import digits, sums
from mmjax.error import UserError

Read = Callable[[str, Any], np.ndarray]  # name of a leaf, index of a part -> its numbers
WAITING = 2**26  # bytes of dropped arrays whose memory is then given back


class Leaf:
    """Numbers on disk: an array (`np.asarray`), or that array layer by layer (`for x in leaf`).

    Either way, damage is a UserError; the last layer comes before the checksum of all of them is
    looked at, so nothing of them may be kept before the loop has ended.

    Args:
        step: directory of a checkpoint. name: of a leaf there that has elements, `params/w`.
        checksum: what was written down for it.
    """

    def __init__(self, step: Path, name: str, checksum: str):
        self.step, self.name, self.checksum = step, name, checksum

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with self._damage():
            found = opened(self.step, self.name).read().result()
        self._check(sums(found))
        return np.asarray(found, dtype)

    def __iter__(self) -> Iterator[np.ndarray]:
        total, first = np.zeros(2, np.uint32), 0
        with self._damage():
            array = opened(self.step, self.name)
        chunk: Any = array.chunk_layout.read_chunk.shape
        count, each = array.shape[0], chunk[0]  # of less, a chunk would be decoded again
        for n in range(0, count, each):
            with self._damage():
                found = array[n : min(n + each, count)].read().result()
            total += sums(found, first)
            first += found.size
            yield from found
        self._check(total)

    def _check(self, total: np.ndarray) -> None:
        if digits(total) != self.checksum:
            raise self._error("checksum differs")

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, IndexError, OSError) as e:  # what tensorstore makes of its statuses
            raise self._error(" ".join(str(e).split())[:200]) from e

    def _error(self, why: str) -> UserError:
        if vanishes(self.step):
            return UserError(
                f"checkpoint {self.step} was removed while it was read, as a run that trains there "
                f"does with older ones; try again"
            )
        others = sorted(
            int(p.name) for p in self.step.parent.glob("*") if p.name.isdecimal() and p != self.step
        )
        what = (
            f"rename that directory to use checkpoint {others[-1]}" if others else "make it again"
        )
        return UserError(f"checkpoint {self.step} is damaged, leaf {self.name}: {why}; {what}")


def vanishes(directory: Path) -> bool:
    """Whether a directory is gone or on its way: its files get fewer while one looks."""
    if paths.is_remote(directory):
        return not directory.exists()
    while True:
        before = sum(len(files) for _, _, files in os.walk(directory))
        time.sleep(0.05)
        if not directory.exists():
            return True
        if sum(len(files) for _, _, files in os.walk(directory)) >= before:
            return False


def opened(step: Path, name: str) -> ts.TensorStore:
    """A leaf as orbax keeps it: zarr 3, in a database of all leaves."""
    database = _database(step / "state")
    store = {"driver": "ocdbt", "base": database, "path": f"{name}/"}
    return ts.open({"driver": "zarr3", "kvstore": store}, open=True).result()


def _database(place: Path) -> dict[str, str]:
    """Where a database lies, as tensorstore has it; of stores it is gs:// that orbax writes to."""
    if not paths.is_remote(place):
        return {"driver": "file", "path": f"{place}/"}
    _, _, bucket, *inner = place.parts
    return {"driver": "gcs", "bucket": bucket, "path": f"{'/'.join(inner)}/"}


def is_stack(x: Any) -> bool:
    """Whether x, anything with axes, is kept layer by layer."""
    return x.ndim > 2


def parts(x: Any) -> list[Any]:
    """Indices of what is written of x at a time: its layers, or all of it."""
    return [slice(n, n + 1) for n in range(x.shape[0])] if is_stack(x) and x.size else [...]


def together(like: Mapping[str, Any], most: int) -> Iterator[list[str]]:
    """Leaves in their order, as many at a time as have first `parts` of `most` bytes, or one.

    The first layer of a stack tells orbax of the rest; leaves without elements it refuses.
    """
    names: list[str] = []
    held = 0
    for name, x in like.items():
        if not x.size:
            continue
        size = x.size * x.dtype.itemsize // len(parts(x))
        if names and held + size > most:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    if names:
        yield names


def fill(step: Path, name: str, x: Any, read: Read) -> str:
    """Writes what a leaf like x lacks, the first of its `parts` being there; -> its checksum."""
    total, first, array = np.zeros(2, np.uint32), 0, None
    for n, index in enumerate(parts(x)):
        found = read(name, index)
        if n == 1:
            array = opened(step, name).resize(exclusive_max=x.shape).result()
        if array is not None:
            array[index].write(found).result()
        total += sums(found, first)
        first += found.size
    return digits(total)


def give_back(waiting: int) -> int:
    """Returns freed memory to the system, if so many bytes are worth it; -> how many still wait.

    Orbax leaves cycles, and glibc keeps what threads had. To look for cycles takes seconds in a
    large process: not for every small array.
    """
    if waiting < WAITING:
        return waiting
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return 0
