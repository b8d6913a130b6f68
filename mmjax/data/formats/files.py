"""Files of a data set: which there are, what they are called, what they say."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmjax.data.record import Item, Record
from mmjax.error import UserError

SPLITS = ("train", "validation", "test")


def visible(root: Path) -> list[Path]:
    """Files below a folder in sorted order, none hidden or in a hidden folder."""
    return sorted(
        file
        for file in root.rglob("*")
        if not any(part.startswith(".") for part in file.relative_to(root).parts) and file.is_file()
    )


def existing(path: Path, folder: bool = False) -> Path:
    """The path, if there is something.

    Raises:
        UserError: if there is not, or with `folder` if it is not a folder.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if folder and not path.is_dir():
        raise UserError(f"{path} is a file; name the folder it lies in")
    return path


def listed(path: Path, endings: Sequence[str]) -> tuple[Path, list[Path]]:
    """A file, or those below a folder whose names end so -> their folder and the files, sorted.

    Raises:
        UserError: if there is nothing, or nothing in it.
    """
    existing(path)
    if path.is_file():
        root, files = path.parent, [path]
    else:
        named = tuple(endings)
        root, files = path, [f for f in visible(path) if f.name.lower().endswith(named)]
    if not files:
        raise UserError(f"no file in {path} ends in {' '.join(endings)}; name another folder")
    if not any(file.stat().st_size for file in files):
        raise UserError(f"{path} is empty; name a file with data")
    return root, files


def label(file: Path, root: Path) -> str:
    """Its path below root, with "/"; what is not UTF-8 in a file name is replaced."""
    return os.fsencode(file.relative_to(root).as_posix()).decode(errors="replace")


def split_of(file: Path, root: Path) -> str | None:
    """The first folder below root on the way to the file, if it is named as a split is."""
    first, *rest = file.relative_to(root).parts
    return first if rest and first in SPLITS else None


def content(file: Path) -> bytes:
    """What is in a file.

    Raises:
        OSError: saying no more than what is wrong and the file's name.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise type(error)(f"{file.name}: {(error.strerror or 'cannot be read').lower()}") from error


def utf8(data: bytes) -> str:
    """Bytes -> text, without a byte order mark.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error


def damaged(source: str, reason: str) -> Item:
    """An item that cannot be read, for a reason known before it is."""

    def read() -> Record:
        raise ValueError(reason)

    return Item(source, read)
