"""Texts, and tables of them: what a caption must be, and files that say which goes where."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.batch import Image, Text
from mmjax.data.formats.files import utf8
from mmjax.data.formats.picture import checked
from mmjax.data.record import Record
from mmjax.data.source import LINE, content, lines, opened, too_long

CELL = 16 << 20  # most characters of a cell of a table


class Entry(NamedTuple):
    """A line of a table of captions; of a damaged one there is only the reason why.

    line: its number from 1 on (of a row of several lines, the last). file: as the line names it.
    """

    line: int
    file: str = ""
    caption: str = ""
    reason: str = ""


def worded(text: Any, what: str = "caption") -> str:
    """A text without white space around it.

    Raises:
        ValueError: if it is not text, blank, or holds what cannot be written as UTF-8.
    """
    if text is None:
        raise ValueError(f"no {what}")
    if not isinstance(text, str):
        raise ValueError(f"{what} is not text but {type(text).__name__}")
    if len(text) > LINE:
        raise ValueError(f"{what} of more than {LINE:,} characters")
    if not text.strip():
        raise ValueError(f"empty {what}")
    return writable(text, what).strip()


def writable(text: str, what: str) -> str:
    r"""The same text; JSON can spell half a character ("\ud800"), which no file can hold.

    Raises:
        ValueError: if it holds one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} holds half a character at {error.start}") from error
    return text


def pair(id: str, caption: Any, image: bytes, facts: Mapping[str, Any] | None = None) -> Record:
    """A caption and the picture it is of.

    Raises:
        ValueError: if one of them is damaged.
    """
    return Record(id, (Text(worded(caption)), Image(checked(image))), facts or {})


def text_beside(picture: Path, what: str, table: str, roots: Sequence[Path]) -> str:
    """The text of the file beside a picture that differs in its ending alone.

    Args:
        picture: its path. what: "caption" or "report". table: where it might have stood instead.
        roots: directories one of which it lies below once links are resolved.

    Raises:
        ValueError: if there is none, or it is not UTF-8.
    """
    beside = picture.with_suffix(".txt")
    if not beside.is_file():
        raise ValueError(f"no {what}: write {beside.name} beside it, or a line of {table}")
    return utf8(content(beside, *roots))


def parsed(data: bytes) -> Any:
    """JSON -> value.

    Raises:
        ValueError: if it is none.
    """
    try:
        return json.loads(utf8(data))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error


def rows(file: Path, field: str) -> Iterator[Entry]:
    """The lines of a JSONL or CSV table with the columns `file` and `field`."""
    if file.suffix.lower() == ".csv":
        yield from _csv(file, field)
        return
    try:
        with opened(file) as raw:
            for number, line in enumerate(lines(raw), 1):
                yield from _line(number, line, field)
    except (OSError, ValueError) as error:
        yield Entry(1, reason=str(error))


def _line(number: int, line: bytes | None, field: str) -> Iterator[Entry]:
    """The entry of a line of JSONL, if it is not blank."""
    try:
        if line is None:
            raise ValueError(too_long())
        if line.strip():
            yield _entry(number, parsed(line), field)
    except ValueError as error:
        yield Entry(number, reason=str(error))


def _csv(file: Path, field: str) -> Iterator[Entry]:
    r"""The rows of a CSV table; only "\n", "\r" and both end a line, and not within quotes."""
    csv.field_size_limit(CELL)  # the library's own is 131,072, and there is one for all tables
    table = None
    try:
        # What is not UTF-8 comes out as half characters, so that the row that has it is told.
        with opened(file) as raw, io.TextIOWrapper(
            raw, "utf-8-sig", errors="surrogateescape", newline=""
        ) as text:  # fmt: skip
            cut: list[int] = []
            table = csv.DictReader(_pieces(text, cut), strict=True)
            while (entry := _row(table, field, cut)) is not None:
                yield entry
    except (OSError, ValueError, csv.Error) as error:
        number = table.line_num if table else 1
        yield Entry(max(number, 1), reason=f"not a CSV table: {error}")


def _row(table: csv.DictReader, field: str, cut: list[int]) -> Entry | None:
    """The next row, None behind the last; `cut` is emptied."""
    heads = table.fieldnames  # of no heads there is no table
    try:
        row = next(table, None) if heads else None
        if row is None:
            return None
        if cut:
            raise ValueError(too_long())
        broken = [text for text in row.values() if isinstance(text, str) and not _is_utf8(text)]
        if broken:
            raise ValueError("not UTF-8")
        return _entry(table.line_num, row, field)
    except (ValueError, csv.Error) as error:
        return Entry(table.line_num, reason=str(error))
    finally:
        cut.clear()


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def _pieces(text: io.TextIOBase, cut: list[int]) -> Iterator[str]:
    """Lines; of one that is too long its beginning, and its length so far is put into `cut`."""
    while line := text.readline(LINE):
        first = line
        while len(line) == LINE and not line.endswith(("\n", "\r")):
            cut.append(LINE)
            line = text.readline(LINE)
        yield first


def _entry(line: int, row: Any, field: str) -> Entry:
    """One row -> entry.

    Raises:
        ValueError: if it lacks a field.
    """
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    for name in ("file", field):
        if not isinstance(row.get(name), str):
            raise ValueError(f"no field {name!r}")
    return Entry(line, row["file"], row[field])
