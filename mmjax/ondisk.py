"""How orbax is used: its settings, its noise, and what of its errors is damage."""

import contextlib
import functools
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from mmjax import leaf

CHUNK = 2**26  # bytes read or written at a time
TEMPORARY = re.compile(r"\d+\.orbax-checkpoint-tmp.*")  # a step that is being written
_ORBAX = "/orbax/checkpoint/"


class Damage(Exception):
    """Why a step cannot be trusted: the leaf or file, and what is wrong with it."""


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
