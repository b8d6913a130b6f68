"""Tensors of the files that `torch.save` writes, without torch and without running what they hold.

Such a file is a zip: `data.pkl` says which tensors there are, and each one's numbers lie in a
record of their own, so that one can be read without the others. Of the objects a pickle could make
only those are made that describe tensors.
"""

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


def _tensor(storage, offset, shape, stride, *_) -> Stored:
    return Stored(storage, int(offset), tuple(shape), tuple(stride))


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
        _, dtype, record, _, count = pid
        return Storage(str(record), np.dtype(dtype), int(count))


def contents(path: Path) -> Any:
    """What a file holds, tensors as `Stored`.

    Raises:
        UserError: if it is absent, damaged, or holds more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as file, file.open(_home(file) + "data.pkl") as held:
            return Reader(held).load()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; fetch it") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, KeyError) as error:
        raise UserError(
            f"{path} is not as `torch.save` writes tensors: {error}; fetch it anew, or save what "
            f"torch loads of it once more"
        ) from error


def numbers(path: Path, stored: Stored) -> np.ndarray:
    """A tensor as f32; only its own numbers are read.

    Raises:
        UserError: if they are not there.
    """
    dtype, offset = stored.storage.dtype, stored.offset
    reach = sum((n - 1) * s for n, s in zip(stored.shape, stored.stride, strict=True)) + 1
    reach = reach if all(stored.shape) else 0
    try:
        with zipfile.ZipFile(path) as file:
            with file.open(f"{_home(file)}data/{stored.storage.record}") as held:
                held.seek(offset * dtype.itemsize)
                flat = np.frombuffer(held.read(reach * dtype.itemsize), dtype)
    except (zipfile.BadZipFile, OSError, KeyError) as error:
        raise UserError(
            f"{path}, record {stored.storage.record}: {error}; fetch it anew"
        ) from error
    if len(flat) != reach or offset + reach > stored.storage.total:
        raise UserError(f"{path}, record {stored.storage.record} is cut short; fetch it anew")
    steps = tuple(s * dtype.itemsize for s in stored.stride)
    whole = np.lib.stride_tricks.as_strided(flat, stored.shape, steps, writeable=False)
    return whole.astype(np.float32)


def _home(file: zipfile.ZipFile) -> str:
    """The folder in the zip, whose name is free."""
    found = [name for name in file.namelist() if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise zipfile.BadZipFile("no data.pkl in it")
    return found[0][: -len("data.pkl")]
