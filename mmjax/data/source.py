"""What is read of files that others made: regular files below a directory, of bounded size."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

BYTES = 512 << 20  # most of a file, or of a member of an archive, that is read whole
LINE = 64 << 20  # most bytes of a line


def within(file: Path, *roots: Path) -> None:
    """Checks that a file, once links are resolved, lies below one of the directories.

    Raises:
        ValueError: if it does not.
    """
    found = os.path.realpath(file)
    if not any(Path(found).is_relative_to(os.path.realpath(root)) for root in roots):
        raise ValueError(f"{file.name} lies outside {roots[0]}, and only files below it are read")


def content(file: Path, *roots: Path) -> bytes:
    """What is in a regular file of at most BYTES, below one of the directories if some are given.

    Raises:
        ValueError: if it lies elsewhere, is no regular file, or is larger.
        OSError: saying no more than what is wrong and the file's name.
    """
    if roots:
        within(file, *roots)
    try:
        with opened(file) as raw:
            data = raw.read(BYTES + 1)
    except OSError as error:
        raise type(error)(f"{file.name}: {(error.strerror or 'cannot be read').lower()}") from error
    if len(data) > BYTES:
        raise ValueError(f"{file.name} has more than {BYTES:,} bytes")
    return data


def opened(file: Path) -> BinaryIO:
    """A regular file, opened to read its bytes; a pipe or a device would wait or never end.

    Raises:
        ValueError: if it is none. OSError: if it cannot be opened.
    """
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{file.name} is {kind}, not a regular file")
    return file.open("rb")


def lines(stream: Any) -> Iterator[bytes | None]:
    r"""The lines of a binary stream, which end in "\n"; None for one of more than LINE bytes."""
    while line := stream.readline(LINE + 1):
        if len(line) <= LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield None


def too_long() -> str:
    """The reason of what `lines` left out."""
    return f"line of more than {LINE:,} bytes"
