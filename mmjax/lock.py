"""One writer a directory: a file that names host and process, and is worth nothing without them.

Readers take no lock. A lock whose process is gone is taken over: of this machine's processes that
is known at once, of others' by the time since their last sign of life. In a store nothing is locked
while it is looked at: an object is made only where there is none, and of two processes that take
over one lock at the same moment the first sees at its next `check` that it has lost it.
"""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from mmjax import paths
from mmjax.error import UserError

LOCK = "lock.json"  # in the directory it is for
BEAT, STALE = 15.0, 300.0  # seconds between signs of life; after so many without one, gone


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        host, pid: where it runs, and as which process. start: of the process, in the kernel's
            ticks, by which a number that was given again is told; "" where the kernel does not say.
        kernel: the boot of the machine and its table of processes, within which a pid has a
            meaning: containers of one machine may share a host name.
        command: what runs. since: local time.
    """

    host: str
    pid: int
    start: str
    kernel: str
    command: str
    since: str


def started(pid: int) -> str | None:
    """When a process of this machine began, as `Owner.start` has it; None if it is not there."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # its name may hold anything
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def kernel() -> str:
    """See `Owner.kernel`; the host's name where the kernel does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def this_process() -> Owner:
    """The owner that this process is."""
    pid = os.getpid()
    name = Path(sys.argv[0]).name.replace("__main__.py", "mmjax") or "python"
    command = shlex.join([name, *sys.argv[1:]])[:100]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return Owner(socket.gethostname(), pid, started(pid) or "", kernel(), command, since)


@contextlib.contextmanager
def held(file: Path) -> Iterator[Callable[[], None]]:
    """Holds a lock file while the block runs, and removes it then.

    Directories that are missing are made, and those that are still empty at the end removed.

    Yields:
        A function that raises UserError if the lock was lost meanwhile, to be called before what
        is written must not meet another writer.

    Raises:
        UserError: if a living process holds it: which, since when, and what to do.
        OSError: if nothing can be written there.
    """
    remote = paths.is_remote(file)
    above = () if remote else (file.parent, *file.parent.parents)
    absent = [p for p in above if not p.exists()]
    me, ended, lost = this_process(), threading.Event(), threading.Event()
    try:
        paths.make(file.parent)
        (_take_object if remote else _take)(file, me)
        threading.Thread(target=_beat, args=(file, me, ended, lost), daemon=True).start()

        def check() -> None:
            if lost.is_set() or not _holds(file, me):
                raise UserError(
                    f"{file} is no longer this process's: another one took the directory over, or "
                    f"the file was removed; end the other, then run the same command again"
                )

        try:
            yield check
        finally:
            ended.set()
            _release(file, me)
    finally:
        for directory in absent:
            with contextlib.suppress(OSError):
                directory.rmdir()  # refused where something lies in it


@contextlib.contextmanager
def _alone(file: Path, flags: int) -> Iterator[IO[str]]:
    """The open file while no other process looks at it or changes it."""
    while True:
        with open(os.open(file, flags, 0o644), "r+", errors="replace") as opened:
            with contextlib.suppress(OSError):  # a file system without such locks
                fcntl.flock(opened, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(opened.fileno()), os.stat(file))
            except FileNotFoundError:
                same = False
            if same:  # else it was removed between opening and locking
                yield opened
                return


def _owner(text: str) -> Owner | None:
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):
        return None  # cut by a kill or a full disk


def _holds(file: Path, me: Owner) -> bool:
    """Whether the lock is still this owner's, as far as can be seen."""
    try:
        return _owner(file.read_bytes().decode(errors="replace")) == me
    except FileNotFoundError:
        return False
    except OSError:  # a file system that is away for a while
        return True


def _take(file: Path, me: Owner) -> None:
    with _alone(file, os.O_RDWR | os.O_CREAT) as opened:
        if (there := _owner(opened.read())) is not None:
            _refuse_if_alive(file, there)
        try:
            opened.seek(0)
            opened.truncate()
            opened.write(json.dumps(asdict(me)) + "\n")
            opened.flush()
        except OSError as error:  # a full disk
            error.filename = str(file)
            file.unlink(missing_ok=True)
            raise


def _take_object(file: Path, me: Owner) -> None:
    for _ in range(3):
        store, name = paths.store_of(file)
        if file.exists():
            if (there := _owner(file.read_bytes().decode(errors="replace"))) is not None:
                _refuse_if_alive(file, there)
            file.unlink(missing_ok=True)
        try:
            store.pipe_file(name, _told(me), mode="create")  # refused where there is one
        except FileExistsError:
            continue
        if _holds(file, me):
            return
    raise UserError(f"{file.parent} is taken by another process at this moment; try again")


def _told(me: Owner) -> bytes:
    return (json.dumps(asdict(me)) + "\n").encode()


def _age(file: Path) -> float:
    """Seconds since the last sign of life by the clock of the file system, not by this host's."""
    if paths.is_remote(file):
        probe = file.with_name(f"{file.name}.{os.getpid()}")
        probe.write_bytes(b"")
        age = paths.written(probe) - paths.written(file)
        probe.unlink()
        return age
    with tempfile.TemporaryFile(dir=file.parent) as now:
        return os.fstat(now.fileno()).st_mtime - file.stat().st_mtime


def _refuse_if_alive(file: Path, there: Owner) -> None:
    """Raises a UserError if the process is, or on another machine may be, still running."""
    who = f"process {there.pid} on {there.host}, since {there.since}: `{there.command}`"
    if there.kernel == kernel():
        if started(there.pid) == there.start:
            raise UserError(
                f"{file.parent} is being written by {who}; wait for it or end it (kill "
                f"{there.pid}), or choose another place"
            )
    elif (age := _age(file)) < STALE:
        raise UserError(
            f"{file.parent} is being written by {who}, last sign of life {max(age, 0):.0f} s ago; "
            f"wait for it or end it, or choose another place; if it is gone, remove {file} or wait "
            f"until that is {STALE:.0f} s ago"
        )


def _beat(file: Path, me: Owner, ended: threading.Event, lost: threading.Event) -> None:
    """Gives signs of life until the lock is given back or lost."""
    while not ended.wait(BEAT):
        if not _holds(file, me):
            lost.set()
            return
        with contextlib.suppress(OSError):
            if paths.is_remote(file):
                file.write_bytes(_told(me))
            else:
                os.utime(file)


def _release(file: Path, me: Owner) -> None:
    if paths.is_remote(file):
        if _holds(file, me):
            file.unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError), _alone(file, os.O_RDWR) as opened:
        if _owner(opened.read()) == me:
            file.unlink(missing_ok=True)
