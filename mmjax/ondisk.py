"""How orbax is used: its settings, its noise, and what of its errors is damage."""

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mmjax import leaf, paths
from mmjax.error import UserError

CHUNK = 2**26  # bytes read or written at a time
TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp.*")  # a step that is being written
STEP = re.compile(r"0|[1-9]\d*")
COMMITTED = "commit_success.txt"  # in a store, which renames nothing, whole steps have it
_ORBAX = "/orbax/checkpoint/"


class Damage(Exception):
    """Why a step cannot be trusted: the leaf or file, and what is wrong with it."""


def check_writable(directory: Path) -> None:
    """Checks that checkpoints can be written to such a place.

    Raises:
        UserError: for a store that orbax cannot write to.
    """
    if paths.is_remote(directory) and not str(directory).startswith("gs://"):
        raise UserError(
            f"checkpoints cannot be written to {directory}: orbax writes to local file systems and "
            f"to gs://; give a local --workdir and copy it there"
        )


def absolute(directory: str | os.PathLike[str]) -> Path:
    """The directory as orbax takes it, which takes no relative path."""
    place = paths.of(directory)
    return place if paths.is_remote(place) else place.absolute()


def step_of(directory: str | os.PathLike[str], step: int) -> Path:
    """Where a step is read; from a store that orbax does not know a local copy of it."""
    place = absolute(directory) / str(step)
    return place if str(place).startswith("gs://") else paths.near(place)


def names(directory: Path) -> list[str]:
    """The steps in a directory by name, whole ones; what else is there is not known as one."""
    if not paths.is_remote(directory):
        there = os.listdir(directory) if os.path.isdir(directory) else []
        return [name for name in there if STEP.fullmatch(name)]
    there = [name for name in paths.names(directory) if STEP.fullmatch(name)]
    return [name for name in there if (directory / name / COMMITTED).exists()]


def unfinished(directory: Path) -> list[str]:
    """Names of what a save left that failed or was killed."""
    if not paths.is_remote(directory):
        there = os.listdir(directory) if os.path.isdir(directory) else []
        return [name for name in there if TEMPORARY.fullmatch(name)]
    whole = names(directory)
    return [n for n in paths.names(directory) if STEP.fullmatch(n) and n not in whole]


def settings() -> ocp.Context:
    """How states are stored."""
    registry = ocp.handlers.local_registry()  # unasked, orbax would store a dict as arrays
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="about")
    context = ocp.Context()
    context.checkpointables.registry = registry
    context.pytree.loading.partial_load = True
    context.array.saving.scoped_storage_options_creator = chunks
    return context


def chunks(path: Any, x: Any) -> Any:
    """Layers of a stack, and parts of what is large, can be read without the rest."""
    axes = (0,) if leaf.is_stack(x) else ()
    return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=axes, chunk_byte_size=CHUNK)


def errno_of(error: Exception) -> int | None:
    """The system's number of an error, also where tensorstore only tells it in words."""
    found = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's form of it
    return int(found[1]) if found else getattr(error, "errno", None)


@functools.cache
def hush() -> None:
    """Keeps off stderr what is raised here in one line.

    Orbax logs the traceback of a failed save from each of a dozen threads, and abandons the reads
    beside one that fails, each of which ends in a page of its own.
    """
    others = sys.unraisablehook

    def hook(event: Any) -> None:
        code = getattr(event.object, "cr_code", None)  # an abandoned coroutine, or its closed loop
        if _ORBAX not in str(code) and "Event loop is closed" not in str(event.exc_value):
            others(event)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", r"coroutine '.*' was never awaited", RuntimeWarning)
    logging.getLogger("asyncio").addFilter(
        lambda record: not any(word in record.getMessage() for word in (_ORBAX, "ocdbt"))
    )
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.WARNING or _ORBAX not in record.pathname
    )


@contextlib.contextmanager
def as_damage(what: str) -> Iterator[None]:
    """Whatever orbax cannot read is damage, but for the device's own troubles such as memory."""
    try:
        yield
    except Exception as e:
        cause: BaseException = e  # orbax wraps it several times
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        if isinstance(cause, jax.errors.JaxRuntimeError):
            raise
        why = " ".join(str(cause).split())[:200]
        raise Damage(f"{what}: {type(cause).__name__}: {why}") from e
