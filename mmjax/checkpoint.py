"""Training states on disk: saved in the background, checked bit for bit when they are read again.

A step is a directory `<directory>/<step>/` with the arrays in `state/` and, in `about/data.json`,
the caller's `meta`, the loss, and the shape, dtype and checksum of every leaf. Orbax writes under
a temporary name and renames at the end, so a step is there entirely or not at all; but it loads
flipped bits without complaint, hence the checksums. Readers take the directory and never change
it; a writer holds `Checkpoints`. `ondisk` says how orbax is used, `leaf` knows where arrays lie.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from mmjax import leaf, ondisk, paths
from mmjax.checksum import checksums, named_leaves, spec
from mmjax.error import UserError
from mmjax.leaf import vanishes
from mmjax.ondisk import CHUNK, Damage, as_damage, chunks, errno_of, hush, settings, step_of

Directory = str | os.PathLike[str]
Warn = Callable[[str], object]


class Restored(NamedTuple):
    """What `restore` read: the step, the arrays, and the `meta` given to `save`."""

    step: int
    state: Any
    meta: dict


@dataclasses.dataclass
class Checkpoints:
    """A directory opened for writing, from `open_checkpoints`."""

    directory: Path
    manager: ocp.training.Checkpointer
    keep: "_Keep"
    last: int | None  # the step on disk that the caller's next state continues from
    pending: tuple[int, ocp.AsyncResponse] | None = None  # the step being written
    failed: bool = False  # whether a save ever failed


@dataclasses.dataclass(frozen=True)
class _Keep:
    """Preserves the newest step, the one before in case it is damaged, and the best."""

    best: bool
    losses: dict[int, float | None]

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        have = sorted(c.step for c in checkpoints)
        ranked = [(loss, s) for s in have if (loss := self.losses.get(s)) is not None]
        keep = {*have[-2:], *(step for _, step in sorted(ranked)[: self.best])}
        return [c.step in keep for c in checkpoints]


@contextlib.contextmanager
def open_checkpoints(
    directory: Directory, resumed: int | None = None, keep_best: bool = True
) -> Iterator[Checkpoints]:
    """Makes the directory if needed, clears what killed saves left, and waits at the end.

    Args:
        directory: local or in gs://; it must have no other writer.
        resumed: the step that `restore` returned, None for a new start. Later steps (damaged, or
            of a past that was left) are renamed to `<step>.abandoned`: not lost, not in the way.
        keep_best: keep the step of lowest loss beside the two newest.

    Raises:
        UserError: the directory cannot be made or read, or the last save failed (see `wait`).
    """
    hush()
    losses, unwanted = {}, []
    for step in steps(directory):
        try:
            losses[step] = _about(directory, step)["loss"]
        except Damage:
            unwanted.append(step)  # orbax may refuse to open the directory because of it
    unwanted += [step for step in losses if resumed is None or step > resumed]
    keep = _Keep(keep_best, losses)
    try:
        path = paths.of(directory)
        ondisk.check_writable(path)
        paths.make(path)
        _clear(directory)
        _set_aside(directory, unwanted)
        checkpoints = Checkpoints(path, _manager(directory, keep), keep, resumed)
    except OSError as e:
        why = e.strerror or e
        raise UserError(f"checkpoints in {directory}: {why}; choose another place") from e
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: _clear(directory, late=checkpoints.failed))
        stack.callback(lambda: checkpoints.manager.close())  # a failed save replaces the manager
        stack.callback(wait, checkpoints)
        yield checkpoints


def _manager(directory: Directory, keep: _Keep) -> ocp.training.Checkpointer:
    return ocp.training.Checkpointer(
        ondisk.absolute(directory),
        context=settings(),
        preservation_policy=keep,
        cleanup_tmp_directories=True,
    )


def save(
    checkpoints: Checkpoints, step: int, state: Any, meta: dict, loss: float | None = None
) -> None:
    """Starts to write `state` and returns once it is copied: the caller may donate it at once.

    Waits for the save before.

    Args:
        checkpoints: from `open_checkpoints`.
        step: must not fall; if it is the step saved last, or `resumed`, nothing is written.
        state: a pytree of jax arrays, sharded or not.
        meta: anything JSON can hold; taken as it is now.
        loss: ranks the step, if finite.

    Raises:
        UserError: the save before, or this one, failed; see `wait`.
        TypeError: `meta` is not JSON.
    """
    wait(checkpoints)
    if step == checkpoints.last:
        return
    if step < (checkpoints.last or 0):
        raise ValueError(f"step {step} after step {checkpoints.last}")
    loss = float(loss) if loss is not None and math.isfinite(loss) else None
    leaves, sums = named_leaves(state), checksums(state)
    described = {name: [spec(x), sums[name]] for name, x in leaves.items()}
    about = _describe(meta, loss, described)
    checkpoints.keep.losses[step] = loss
    try:
        nonempty = {name: x for name, x in leaves.items() if x.size}  # orbax refuses the others
        response = checkpoints.manager.save_checkpointables_async(
            step,
            {"state": nonempty, "about": about},
            force=True,  # past orbax's own policy of when to save
        )
    except (OSError, ValueError) as e:
        raise _failure(checkpoints, step, e) from e
    checkpoints.pending = (step, response)


def write(
    directory: Directory, step: int, like: Mapping[str, Any], read: leaf.Read, meta: dict
) -> None:
    """Writes a step that may be larger than memory, in a directory without others.

    Args:
        like: path, `params/w` -> shape and dtype. read: path, index of a part -> its numbers.
        meta: anything JSON can hold.

    Raises:
        OSError: on a full disk.
    """
    hush()
    path, described = step_of(directory, step), {}
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = False  # saves a twelfth, and is held twice
    context.array.saving.scoped_storage_options_creator = chunks
    try:
        with context:
            for names in leaf.together(like, CHUNK):  # each save takes orbax a walk over all before
                ocp.partial.save(path, {n: read(n, leaf.parts(like[n])[0]) for n in names})
                leaf.give_back(CHUNK)
            ocp.partial.finalize(path)
        for name, x in like.items():
            described[name] = [spec(x), leaf.fill(path, name, x, read)]
    except ValueError as e:
        raise (OSError(code, os.strerror(code)) if (code := errno_of(e)) else e) from e
    (path / "about").mkdir()
    (path / "about" / "data.json").write_text(json.dumps(_describe(meta, None, described)))
    for place in (path, path / "state"):  # what orbax looks for in a store it may be copied to
        (place / ondisk.COMMITTED).write_text("")


def wait(checkpoints: Checkpoints) -> None:
    """Blocks until the last `save` is on disk.

    Raises:
        UserError: it could not be written (full disk, permission): which step, why, and the last
            good one. What was half written is removed, and `save` may be called again.
    """
    if checkpoints.pending is None:
        return
    (step, response), checkpoints.pending = checkpoints.pending, None
    try:
        response.result()
    except (OSError, ValueError) as e:
        raise _failure(checkpoints, step, e) from e
    checkpoints.last = step


def _failure(checkpoints: Checkpoints, step: int, error: Exception) -> Exception:
    """Opens the directory anew, which removes what was half written; returns what to raise."""
    with contextlib.suppress(OSError, ValueError):
        checkpoints.manager.wait()  # raises `error` once more, in this thread
    checkpoints.manager.close()
    checkpoints.failed, directory = True, checkpoints.directory
    _clear(directory)
    checkpoints.manager = _manager(directory, checkpoints.keep)
    if not (code := errno_of(error)):
        return error
    return UserError(
        f"checkpoint {step} not written to {directory}: {os.strerror(code)}; make room and write "
        f"access there or choose another place; last good checkpoint: {latest(directory)}"
    )


def _clear(directory: Directory, late: bool = False) -> None:
    """Removes steps that were half written by a save that failed or was killed.

    late: for a second, as some of orbax's threads go on writing for a while.
    """
    for attempt in range(10 if late else 1):
        time.sleep(0.1 * (attempt > 0))
        if jax.process_index() == 0:
            for name in ondisk.unfinished(paths.of(directory)):
                paths.remove(paths.of(directory) / name)


def set_aside(checkpoints: Checkpoints, first: int) -> list[tuple[int, str]]:
    """Renames the steps from `first` on, once the last save is done: not lost, and never read.

    Returns:
        Each such step and its new name, the newest last.
    """
    wait(checkpoints)
    unwanted = [step for step in steps(checkpoints.directory) if step >= first]
    return _set_aside(checkpoints.directory, unwanted)


def _set_aside(directory: Directory, unwanted: list[int]) -> list[tuple[int, str]]:
    renamed, place = [], paths.of(directory)
    for step in unwanted:
        free = (f"{step}.abandoned{i or ''}" for i in itertools.count())
        renamed.append((step, next(n for n in free if not (place / n).exists())))
    multihost_utils.sync_global_devices("mmjax.checkpoint: names of unwanted steps found")
    if jax.process_index() == 0:
        for step, name in renamed:
            (place / str(step)).rename(place / name)
    multihost_utils.sync_global_devices("mmjax.checkpoint: unwanted steps set aside")
    return renamed


def steps(directory: Directory) -> list[int]:
    """The steps on disk, ascending; those being written or abandoned are not among them."""
    return sorted(map(int, ondisk.names(paths.of(directory))))


def latest(directory: Directory) -> int | None:
    """The newest step on disk, or None."""
    return max(steps(directory), default=None)


def read_meta(directory: Directory, step: int | None = None, warn: Warn = print) -> dict | None:
    """The `meta` of a step, as `restore` finds it but without looking at arrays or devices."""
    found = _newest(directory, step, warn, lambda n: _about(directory, n)["meta"])
    return found and found[1]


def restore(
    directory: Directory, like: Any, step: int | None = None, warn: Warn = print, part: bool = False
) -> Restored | None:
    """Reads the newest step that is whole, onto the shardings of `like`; None if there is no step.

    Args:
        like: a pytree of `jax.ShapeDtypeStruct` with shardings, on any mesh. Leaves are found by
            path, so a dict `{"ema": ...}` reads the `ema` of a NamedTuple.
        step: read this step or none.
        warn: called with one line for every step refused because an array does not match its
            checksum, or a file is missing or unreadable.
        part: leaves of the checkpoint that `like` lacks are not read (else they are an error).

    Raises:
        UserError: no step is whole, `step` does not exist, or the checkpoint is of another model:
            the first leaf that differs, with both shapes.
        ValueError: a leaf of `like` has no sharding.
    """
    found = _newest(directory, step, warn, lambda n: _read(directory, n, like, part))
    return found and Restored(found[0], *found[1])


def _newest(
    directory: Directory, step: int | None, warn: Warn, read: Callable[[int], Any]
) -> tuple[int, Any] | None:
    hush()
    damaged: list[int] = []
    for _ in range(100):  # as often as a run that trains there may remove what is being read
        have = steps(directory)
        if step is not None and step not in have:
            raise UserError(f"no checkpoint {step} in {directory}; there are {have}")
        wanted = [n for n in have[::-1] if n not in damaged] if step is None else [step]
        try:
            found = _first_whole(directory, wanted, damaged, warn, read)
        except FileNotFoundError as e:
            if step is None:
                continue
            raise UserError(
                f"checkpoint {step} in {directory} was removed while it was read, as a run that "
                f"trains there does with older ones; there are {steps(directory)}: take another"
            ) from e
        if found is None and damaged:
            raise UserError(f"no checkpoint in {directory} is whole; damaged: {damaged}")
        return found
    raise UserError(f"checkpoints in {directory} are removed faster than they are read; try again")


def _first_whole(
    directory: Directory, wanted: list[int], damaged: list[int], warn: Warn, read: Callable
) -> tuple[int, Any] | None:
    """The first step that can be read; others are noted as damaged.

    Raises:
        FileNotFoundError: if one is removed meanwhile.
    """
    for number in wanted:
        try:
            return number, read(number)
        except Damage as e:
            if vanishes(step_of(directory, number)):
                raise FileNotFoundError(f"{directory}/{number}") from e
            damaged.append(number)
            warn(f"checkpoint {number} in {directory} is damaged and not used: {e}")
    return None


def _about(directory: Directory, step: int) -> dict:
    with as_damage("about"), settings():
        about = ocp.load_checkpointables(step_of(directory, step), {"about": None})["about"]
        crc32 = about.pop("crc32")
    if _crc32(about) != crc32:
        raise Damage("about: checksum differs")
    return about


def _describe(meta: dict, loss: float | None, leaves: dict) -> dict:
    about = json.loads(json.dumps({"meta": meta, "loss": loss, "leaves": leaves}))
    return about | {"crc32": _crc32(about)}


def _crc32(about: dict) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _read(directory: Directory, step: int, like: Any, part: bool) -> tuple[Any, dict]:
    about, named = _about(directory, step), named_leaves(like)
    _compare(directory, step, about["leaves"], named, part)
    with as_damage("arrays"), settings():
        nonempty = {name: x for name, x in named.items() if x.size}
        state = ocp.load_checkpointables(step_of(directory, step), {"state": nonempty})["state"]
        for name, x in nonempty.items():  # of damaged metadata orbax makes what it can
            found = state.get(name)
            if not isinstance(found, jax.Array) or spec(found) != spec(x):
                raise Damage(f"leaf {name}: it is {found!r:.100}")
    for name, x in named.items():
        if not x.size:
            state[name] = jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding)
    for name, value in checksums(state).items():
        if value != about["leaves"][name][1]:
            raise Damage(f"leaf {name}: checksum differs")
    leaves = [state[name] for name in named]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), about["meta"]


def _compare(
    directory: Directory, step: int, there: dict, named: Mapping[str, Any], part: bool
) -> None:
    for name in sorted(named.keys() | there.keys()):
        theirs, _ = there.get(name, ("absent", ""))
        ours = spec(named[name]) if name in named else "absent"
        if theirs != ours and not (part and name not in named):
            raise UserError(
                f"checkpoint {step} in {directory} is of another model: leaf {name} is {theirs} "
                f"there, {ours} here; use its config or another place"
            )


def leaves(directory: Directory, step: int, like: Mapping[str, Any]) -> dict[str, leaf.Leaf]:
    """Leaves with elements by path, none read yet; for arguments and errors see `restore`."""

    def read(number: int) -> dict[str, leaf.Leaf]:
        there = _about(directory, number)["leaves"]
        _compare(directory, number, there, like, part=True)
        return {name: leaf.Leaf(step_of(directory, number), name, there[name][1]) for name in like}

    found = _newest(directory, step, print, read)
    assert found is not None  # the step is there, or that was an error
    return found[1]
