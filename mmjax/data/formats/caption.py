"""Texts, and tables of them: what a caption must be, and files that say which goes where."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmjax.batch import Image, Text
from mmjax.data.formats.files import content, utf8
from mmjax.data.formats.picture import checked
from mmjax.data.record import Record


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


def text_beside(picture: Path, what: str, table: str) -> str:
    """The text of the file beside a picture that differs in its ending alone.

    Args:
        picture: its path. what: "caption" or "report". table: where it might have stood instead.

    Raises:
        ValueError: if there is none, or it is not UTF-8.
    """
    beside = picture.with_suffix(".txt")
    if not beside.is_file():
        raise ValueError(f"no {what}: write {beside.name} beside it, or a line of {table}")
    return utf8(content(beside))


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
        lines = content(file).split(b"\n")
    except OSError as error:
        yield Entry(1, reason=str(error))
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield _entry(number, parsed(line), field)
            except ValueError as error:
                yield Entry(number, reason=str(error))


def _csv(file: Path, field: str) -> Iterator[Entry]:
    number = 1
    try:
        table = csv.DictReader(utf8(content(file)).splitlines(keepends=True), strict=True)
        for row in table:
            number = table.line_num
            try:
                entry = _entry(number, row, field)
            except ValueError as error:
                entry = Entry(number, reason=str(error))
            yield entry
    except (OSError, ValueError, csv.Error) as error:
        yield Entry(number, reason=f"not a CSV table: {error}")


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
