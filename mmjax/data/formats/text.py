"""Plain text and Markdown."""

import codecs
import itertools
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path

from mmjax.batch import Text
from mmjax.data.formats.caption import worded
from mmjax.data.formats.files import damaged, label, listed, rest, split_of
from mmjax.data.record import Item, Record
from mmjax.data.source import opened

ENDINGS = (".txt", ".md")
LONGEST = 2000  # characters of a document
PIECE = 1 << 16  # bytes of a line that are read at a time


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
    """Paragraphs of at most LONGEST characters; of a line of any length only a piece is held.

    Raises:
        ValueError: at a line that is not UTF-8.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    number, blank, pending = 1, True, ""
    with opened(file) as raw:
        while piece := raw.readline(PIECE):
            try:
                text = decode(piece)
            except UnicodeDecodeError as error:
                why = f"line {number}: not UTF-8 at byte {error.start}"
                raise ValueError(f"{why}; save the file as UTF-8") from error
            blank, ends = blank and not text.strip(), piece.endswith(b"\n")
            pending += text
            if ends and not blank:
                pending = pending.rstrip() + "\n"
            start = yield from _cut(pending)
            pending = pending[start:]
            if ends and blank:
                yield from _rest(pending)
                pending = ""
            number, blank = number + ends, blank or ends
    yield from _rest(pending)


def _rest(text: str) -> Iterator[str]:
    if text.strip():
        yield text.rstrip()


def _cut(text: str) -> Generator[str, None, int]:
    """Pieces of at most LONGEST characters, cut at white space where there is some.

    Returns:
        Where what is left begins, which is no longer than that.
    """
    start = 0
    while len(text) - start > LONGEST:
        last = start + LONGEST
        end = max(text.rfind(space, start + 1, last + 1) for space in " \n")
        end = end if end > start else last
        if piece := text[start:end].strip():
            yield piece
        start = end
    return start


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
