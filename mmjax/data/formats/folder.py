"""A folder of pictures with captions beside them.

birds/owl.png, birds/owl.txt            a picture and its caption, or
birds/owl.png, birds/captions.jsonl     {"file": "owl.png", "caption": "an owl"}, a record a line
train/, validation/, test/              as first-level folders, the splits
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mmjax.data.formats.caption import Entry, pair, rows, text_beside
from mmjax.data.formats.files import (
    content,
    damaged,
    existing,
    label,
    split_of,
    visible,
)
from mmjax.data.formats.picture import ENDINGS
from mmjax.data.record import Item, Record
from mmjax.error import UserError

TABLE = "captions.jsonl"


def items(path: Path) -> Iterator[Item]:
    """Pictures in the order of their paths; one of several captions gives several records.

    A table's captions go before NAME.txt. What is wrong with a table's lines comes last.

    Raises:
        UserError: if path is no folder, or holds no pictures.
    """
    files = visible(existing(path, folder=True))
    pictures = [file for file in files if file.name.lower().endswith(ENDINGS)]
    if not pictures:
        raise UserError(f"no pictures in {path} ({' '.join(ENDINGS)}); name another folder")
    return _items(path, pictures, [file for file in files if file.name == TABLE])


def _items(root: Path, pictures: list[Path], tables: list[Path]) -> Iterator[Item]:
    captions: dict[Path, list[Entry]] = {picture: [] for picture in pictures}
    bad = []
    for table in tables:
        for entry in rows(table, "caption"):
            file = Path(os.path.normpath(table.parent / entry.file))
            if entry.reason:
                bad.append((table, entry.line, entry.reason))
            elif file not in captions:
                bad.append((table, entry.line, f"no picture {entry.file}"))
            else:
                captions[file].append(entry)
    for picture, entries in captions.items():
        name = label(picture, root)
        for number, one in enumerate(entries or [None], 1):
            id = name if number == 1 else f"{name}:{number}"
            read = partial(_record, id, picture, one.caption if one else None)
            yield Item(name, read, split_of(picture, root))
    for table, line, reason in bad:
        yield damaged(f"{label(table, root)}:{line}", reason)


def _record(id: str, picture: Path, caption: str | None) -> Record:
    """A picture with this caption, or without one that of the text file beside it."""
    caption = text_beside(picture, "caption", TABLE) if caption is None else caption
    return pair(id, caption, content(picture))
