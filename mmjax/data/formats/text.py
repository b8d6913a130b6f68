"""Plain text and Markdown."""

import itertools
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from mmjax.batch import Text
from mmjax.data.formats.caption import worded
from mmjax.data.formats.files import damaged, label, listed, rest, split_of, utf8
from mmjax.data.record import Item, Record

ENDINGS = (".txt", ".md")
LONGEST = 2000  # characters of a document


def items(path: Path, follow_links: bool = False) -> Iterator[Item]:
    """Documents of a file, or of every .txt and .md file below a folder.

    A document is as many whole paragraphs (blank lines divide them) as fit into LONGEST
    characters; a longer paragraph is cut at white space. A line that is not UTF-8 ends its file.
    What else lies in the folder comes last.

    Raises:
        UserError: if there are no files.
    """
    tree, files = listed(path, ENDINGS, follow_links)
    found = (item for file in files for item in _documents(file, tree.root))
    return itertools.chain(found, rest(tree, {*files}))


def _documents(file: Path, root: Path) -> Iterator[Item]:
    name, split = label(file, root), split_of(file, root)
    number = 0
    try:
        for number, text in enumerate(grouped(_paragraphs(file), LONGEST), 1):
            source = f"{name}:{number}"
            yield Item(source, partial(_record, source, text), split)
    except (OSError, ValueError) as error:
        yield damaged(f"{name}:{number + 1}", str(error))


def _record(id: str, text: str) -> Record:
    return Record(id, (Text(worded(text, "text")),))


def _paragraphs(file: Path) -> Iterator[str]:
    """Paragraphs of at most LONGEST characters.

    Raises:
        ValueError: at a line that is not UTF-8.
    """
    lines: list[str] = []
    with file.open("rb") as raw:
        for number, data in enumerate(raw, 1):
            try:
                line = utf8(data).rstrip()
            except ValueError as error:
                raise ValueError(f"line {number}: {error}; save the file as UTF-8") from error
            if line:
                lines.append(line)
            else:
                yield from _cut("\n".join(lines))
                lines = []
    yield from _cut("\n".join(lines))


def _cut(paragraph: str) -> Iterator[str]:
    """Pieces of at most LONGEST characters, cut at white space where there is some."""
    start = 0
    while len(paragraph) - start > LONGEST:
        last = start + LONGEST
        end = max(paragraph.rfind(space, start + 1, last + 1) for space in " \n")
        end = end if end > start else last
        yield paragraph[start:end].strip()
        start = end
    if paragraph[start:].strip():
        yield paragraph[start:].rstrip()


def grouped(paragraphs: Iterable[str], longest: int) -> Iterator[str]:
    """Neighbouring paragraphs together, as long as they come to at most `longest` characters."""
    text = ""
    for paragraph in paragraphs:
        if text and len(text) + 2 + len(paragraph) > longest:
            yield text
            text = ""
        text = f"{text}\n\n{paragraph}" if text else paragraph
    if text:
        yield text
