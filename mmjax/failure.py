"""From any exception to one line for the user and an exit code; unforeseen ones to a report.

Exit codes: 2 for what the user can mend, 70 for a fault of mmjax, 130 for Ctrl-C.
"""

import errno
import platform
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from mmjax.error import UserError

USER, BUG, INTERRUPTED = 2, 70, 130
_ROOM = "make room there or choose another place"
_RIGHTS = "ask for access or choose another place"
REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "the limit on the size of files is reached; raise it (`ulimit -f`)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "choose a place that can be written to",
    errno.ENOENT: "check the path, or choose another place",
    errno.ENOTDIR: "a part of the path is a file; choose another place",
    errno.EISDIR: "a directory is where a file should be; choose another place",
    errno.EEXIST: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "close other programs' files",
    errno.EIO: "the device failed; check it, or choose another place",
    errno.ESTALE: "the network file system changed; try again",
    errno.EADDRINUSE: "choose another port",
    errno.ENOMEM: "free memory, or ask for less",
    errno.EAGAIN: "raise the limit on processes (`ulimit -u`)",
}
# Packages by which stores are read and written, whose errors are about names, rights and networks.
STORES = {"gcsfs", "google", "s3fs", "botocore", "aiobotocore", "aiohttp", "requests"}
_LESS = (
    "lower config.batch, raise config.accumulate, give config.model.decoder.remat=True where there "
    "is a decoder, or use more devices"
)


def causes(error: BaseException) -> list[BaseException]:
    """The exception and those it was raised from, on purpose, the outermost first."""
    found = [error]
    while found[-1].__cause__ is not None and found[-1].__cause__ not in found:
        found.append(found[-1].__cause__)
    return found


def explained(error: BaseException) -> str | None:
    """One line on what a user can mend, with the remedy; None for a fault of mmjax."""
    for one in causes(error):
        if isinstance(one, UserError):
            return " ".join(str(one).split())
        if isinstance(one, OSError):
            return _of_system(one)
        words = " ".join(str(one).split())[:300]
        if isinstance(one, MemoryError):
            return f"out of memory{': ' if words else ''}{words}; {_LESS}"
        if "RESOURCE_EXHAUSTED" in words:  # XLA's word for it, whatever class it comes in
            return f"out of memory on the device: {words}; {_LESS}"
        if type(one).__module__.partition(".")[0] in STORES:
            return f"the store refused: {words}; check the name, sign in, or try again"
        if isinstance(one, ModuleNotFoundError) and (one.name or "mmjax")[:5] != "mmjax":
            return f"the package {one.name} is not installed; install it with pip"
    return None


def _of_system(error: OSError) -> str:
    """What the system refused, of which file, and what helps."""
    files = [str(f) for f in (error.filename, error.filename2) if f is not None]
    what = f"{' -> '.join(files)}: " if files else ""
    why = error.strerror or " ".join(str(error).split())[:300] or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0)
    return f"{what}{why}{'; ' if remedy else ''}{remedy or ''}"


def report(verb: str, error: BaseException) -> str:
    """Saves the traceback of a fault of mmjax in a file of its own; -> the line for the user."""
    trace = "".join(traceback.format_exception(error))
    head = f"{' '.join(sys.argv)}\nPython {platform.python_version()}, {platform.platform()}\n"
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    line = f"mmjax {verb}: this is a bug, please report it: {said}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="mmjax-bug-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(f"{head}\n{trace}")
    except OSError:  # the disk may be what is full
        return f"{line}\n{trace}"
    return f"{line}; its traceback is in {file.name}"


def finish(verb: str, error: BaseException) -> int:
    """Says on stderr what ended a verb, in one line; -> the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print(f"mmjax {verb}: interrupted", file=sys.stderr)
        return INTERRUPTED
    line = explained(error)
    print(report(verb, error) if line is None else f"mmjax {verb}: {line}", file=sys.stderr)
    return BUG if line is None else USER


def watch_threads(verb: str) -> None:
    """From now on also an exception that ends a thread is one line."""

    def hook(event: threading.ExceptHookArgs) -> None:
        if event.exc_value is not None and not isinstance(event.exc_value, SystemExit):
            finish(verb, event.exc_value)

    threading.excepthook = hook


def in_file(error: BaseException, file: str) -> str | None:
    """What went wrong in a user's Python file, with the line; None if it was elsewhere."""
    path = Path(file).resolve()
    seen: BaseException | None = error
    while seen is not None:
        if (
            isinstance(seen, SyntaxError)
            and seen.filename
            and Path(seen.filename).resolve() == path
        ):
            return f"{file}, line {seen.lineno}: {type(seen).__name__}: {seen.msg}"
        frames = traceback.extract_tb(seen.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename).resolve() == path]
        if lines:
            return f"{file}, line {lines[-1]}: {type(seen).__name__}: {seen}"
        seen = seen.__cause__ or seen.__context__
    return None
