"""What is read of files that others made: regular files below a directory, of bounded size."""

import os
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BYTES = 512 << 20  # most of a file, or of a member of an archive, that is read whole
LINE = 64 << 20  # most bytes of a line
ELSEWHERE = "if images lie elsewhere, --images=DIR names the directory they are read below"


class Places(NamedTuple):
    """Where files that a table names may lie.

    bases: what names are relative to; the first where there is such a file counts.
    roots: directories below which files lie once links are resolved.
    follow_links: links below the roots may lead elsewhere.
    """

    bases: tuple[Path, ...]
    roots: tuple[Path, ...]
    follow_links: bool = False


def within(file: Path, roots: Sequence[Path], follow_links: bool = False) -> bool:
    """Whether a file, with links resolved unless they are followed, lies below a directory."""
    found = Path(os.path.realpath(file))
    if any(found.is_relative_to(os.path.realpath(root)) for root in roots):
        return True
    called = Path(os.path.abspath(file))
    return follow_links and any(called.is_relative_to(os.path.abspath(root)) for root in roots)


def named(name: str, places: Places) -> bytes:
    """What is in a file that a table names.

    Raises:
        ValueError: if there is none, or see `content`. OSError: see there.
    """
    # A letter with an accent may be one character or two; file systems and tables differ in that.
    spelled = dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD"))))
    files = [base / one for base in places.bases for one in spelled]
    file = next((file for file in files if os.path.lexists(file)), None)
    if file is None:
        null = ", its name holds a null" if "\0" in name else ""
        raise ValueError(f"{name}: no such file{null}; {ELSEWHERE}")
    if not within(file, places.roots, places.follow_links):
        raise ValueError(f"{name} lies outside the source's directory; {ELSEWHERE}")
    return content(file)


def content(file: Path, *roots: Path) -> bytes:
    """What is in a regular file of at most BYTES, below one of the directories if some are given.

    Raises:
        ValueError: if it lies elsewhere, is no regular file, or is larger.
        OSError: saying no more than what is wrong and the file's name.
    """
    if roots and not within(file, roots):
        raise ValueError(f"{file.name} leads outside the source's directory, and is not read")
    try:
        with opened(file) as raw:
            size = os.fstat(raw.fileno()).st_size
            data = raw.read(min(size, BYTES) + 1)  # which makes room for so many at once
    except OSError as error:
        raise type(error)(f"{file.name}: {(error.strerror or 'cannot be read').lower()}") from error
    return bounded(data, file.name)


def bounded(data: bytes, name: str) -> bytes:
    """The same bytes.

    Raises:
        ValueError: if there are more than BYTES.
    """
    if len(data) > BYTES:
        raise ValueError(f"{name} has more than {BYTES:,} bytes")
    return data


def opened(file: Path) -> BinaryIO:
    """A regular file, opened to read its bytes; a pipe or a device would wait or never end.

    Raises:
        ValueError: if it is none. OSError: if it cannot be opened.
    """
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{file.name or file} is {kind}, not a regular file")
    return file.open("rb")


def lines(stream: Any) -> Iterator[bytes | None]:
    r"""The lines of a binary stream, which end in "\n"; None for one of more than LINE bytes."""
    while line := stream.readline(LINE + 1):
        if len(line) <= LINE:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 16)
        yield None


def too_long() -> str:
    """The reason of what `lines` left out."""
    return f"line of more than {LINE:,} bytes"
