"""Tensors of the files that `torch.save` writes, without torch and without running what they hold.

Such a file is a zip: `data.pkl` says which tensors there are, and each one's numbers lie in a
record of their own, so that one can be read without the others. Of the objects a pickle could make
only those are made that describe tensors.
"""

import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mmjax.error import UserError

DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


PICKLE = 64 << 20  # most bytes of `data.pkl`, which names tensors and holds none


class Storage(NamedTuple):
    """A record of numbers: its name in the zip, of which type, how many in all."""

    record: str
    dtype: Any
    total: int


class Stored(NamedTuple):
    """Where a tensor's numbers lie: from `offset` on, `stride` of them apart along each axis."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def reach(self) -> int:
        """How many numbers of the storage it spans, from `offset` on."""
        if not all(self.shape):
            return 0
        return sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True)) + 1


def _tensor(storage, offset, shape, stride, *_) -> Stored:
    """A tensor, if it lies within its storage; so a view of that never leaves it.

    Raises:
        pickle.UnpicklingError: if it does not, or shows more numbers than there are.
    """
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor has no storage")
    whole = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)
    if not whole or not all(_counts(n) for n in (offset, *shape, *stride)):
        raise pickle.UnpicklingError(
            f"a tensor has offset {offset!r}, shape {shape!r} and stride {stride!r}"[:300]
        )
    found = Stored(storage, offset, shape, stride)
    if offset + found.reach > storage.total or math.prod(shape) > storage.total:
        raise pickle.UnpicklingError(
            f"a tensor of shape {shape} with stride {stride} from {offset} on leaves its record "
            f"{storage.record!r} of {storage.total}"[:300]
        )
    return found


def _counts(n: Any) -> bool:
    return type(n) is int and 0 <= n < 1 << 62


KNOWN: dict[tuple[str, str], Callable] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


class Reader(pickle.Unpickler):
    """Reads `data.pkl`; tensors become `Stored`."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle may name: how tensors are put together, and nothing else."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) not in KNOWN:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is no tensor")
        return KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        """A record: ("storage", type, its name, device, how many numbers)."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise pickle.UnpicklingError("it refers to what is no record of numbers")
        _, dtype, record, _, count = pid
        known = any(dtype is one for one in DTYPES.values())
        if not (known and isinstance(record, str) and _counts(count)):
            raise pickle.UnpicklingError(f"its record {record!r} has type {dtype!r}"[:300])
        return Storage(record, np.dtype(dtype), count)


def contents(path: Path) -> Any:
    """What a file holds, tensors as `Stored`.

    Raises:
        UserError: if it is absent, damaged, or holds more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as file:
            held = _home(file) + "data.pkl"
            if _plain(file, held).file_size > PICKLE:
                raise pickle.UnpicklingError(f"its data.pkl has more than {PICKLE:,} bytes")
            with file.open(held) as raw:
                return Reader(raw).load()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; fetch it") from error
    except Exception as error:  # a pickle can make known functions raise whatever they do
        raise UserError(
            f"{path} is not as `torch.save` writes tensors: {error}; fetch it anew, or save what "
            f"torch loads of it once more"
        ) from error


def tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, those under "state_dict" where there is such a name.

    Raises:
        UserError: as `contents`, or if it is no table of names.
    """
    found = contents(path)
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{path} holds no tensors by name; save a state_dict of them")
    return {name: stored for name, stored in found.items() if isinstance(stored, Stored)}


def numbers(path: Path, stored: Stored) -> np.ndarray:
    """A tensor as f32; only its own numbers are read.

    Raises:
        UserError: if they are not there.
    """
    dtype, offset = stored.storage.dtype, stored.offset
    try:
        _tensor(*stored)
        with zipfile.ZipFile(path) as file:
            held = _plain(file, f"{_home(file)}data/{stored.storage.record}")
            if held.file_size < (offset + stored.reach) * dtype.itemsize:
                raise EOFError("it is cut short")
            with file.open(held) as raw:
                raw.seek(offset * dtype.itemsize)
                flat = np.frombuffer(raw.read(stored.reach * dtype.itemsize), dtype)
            if len(flat) != stored.reach:
                raise EOFError("it is cut short")
    except Exception as error:  # of damaged zip files several libraries say so
        raise UserError(
            f"{path}, record {stored.storage.record}: {error}; fetch it anew"
        ) from error
    steps = tuple(s * dtype.itemsize for s in stored.stride)
    whole = np.lib.stride_tricks.as_strided(flat, stored.shape, steps, writeable=False)
    return whole.astype(np.float32)


def _plain(file: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """What is known of a file in the zip that is not compressed, and so no larger than the zip."""
    found = file.getinfo(name)
    if found.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile("it is compressed, as torch never writes it")
    return found


def _home(file: zipfile.ZipFile) -> str:
    """The folder in the zip, whose name is free."""
    found = [name for name in file.namelist() if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise zipfile.BadZipFile("no data.pkl in it")
    return found[0][: -len("data.pkl")]
