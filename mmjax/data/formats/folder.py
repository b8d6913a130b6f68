"""A folder of images with captions beside them.

birds/owl.png, birds/owl.txt            a picture and its caption, or
birds/owl.png, birds/captions.jsonl     {"file": "owl.png", "caption": "an owl"}, a record a line
train/, validation/, test/              as first-level folders, the splits
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from mmjax.data.formats.caption import Entry, pair, rows
from mmjax.data.formats.files import (
    Tree,
    composed,
    damaged,
    existing,
    label,
    rest,
    split_of,
    there_is,
    utf8,
    walk,
)
from mmjax.data.formats.picture import ENDINGS, UNREAD
from mmjax.data.record import Item, Record
from mmjax.data.source import content
from mmjax.error import UserError

TABLE = "captions.jsonl"


def items(path: Path, follow_links: bool = False) -> Iterator[Item]:
    """Images in the order of their paths; one of several captions gives several records.

    A table's captions go before NAME.txt. What is wrong with a table's lines comes next, and last
    what else lies there. Names are matched however letters with accents are spelled.

    Args:
        path: the folder. follow_links: also to files and folders outside of it.

    Raises:
        UserError: if path is no folder, or holds no images.
    """
    tree = walk(existing(path, folder=True), follow_links)
    images = [file for file in tree.files if file.name.lower().endswith((*ENDINGS, *UNREAD))]
    if not images:
        endings = " ".join(ENDINGS)
        raise UserError(f"no images in {path} ({endings}){there_is(tree)}; name another folder")
    return _items(tree, images, [file for file in tree.files if file.name == TABLE])


def _items(tree: Tree, images: list[Path], tables: list[Path]) -> Iterator[Item]:
    root = tree.root
    captions: dict[Path, list[Entry]] = {image: [] for image in images}
    spelled = {composed(image): image for image in images}
    texts = {composed(f.with_suffix("")): f for f in tree.files if f.suffix.lower() == ".txt"}
    bad, used = [], {*images, *tables}
    for table in tables:
        for entry in rows(table, "caption"):
            file = Path(os.path.normpath(table.parent / entry.file))
            file = file if file in captions else spelled.get(composed(file), file)
            if entry.reason:
                bad.append((table, entry.line, entry.reason))
            elif file not in captions:
                bad.append((table, entry.line, f"no image {entry.file}"))
            else:
                captions[file].append(entry)
    for image, entries in captions.items():
        name, beside = label(image, root), _beside(image, texts)
        used |= set() if entries else {beside}
        for number, one in enumerate(entries or [None], 1):
            id = name if number == 1 else f"{name}:{number}"
            read = partial(_record, id, image, one.caption if one else None, beside, tree.roots)
            yield Item(name, read, split_of(image, root))
    for table, line, reason in bad:
        yield damaged(f"{label(table, root)}:{line}", reason)
    yield from rest(tree, used)


def _beside(image: Path, texts: Mapping[str, Path]) -> Path:
    """The text file that differs from an image in its ending alone; as it should be called."""
    return texts.get(composed(image.with_suffix("")), image.with_suffix(".txt"))


def _record(
    id: str, image: Path, caption: str | None, beside: Path, roots: tuple[Path, ...]
) -> Record:
    """An image with this caption, or without one that of the text file beside it."""
    if caption is None:
        if not beside.is_file():
            raise ValueError(f"no caption: write {beside.name} beside it, or a line of {TABLE}")
        caption = utf8(content(beside, *roots))
    return pair(id, caption, content(image, *roots))
