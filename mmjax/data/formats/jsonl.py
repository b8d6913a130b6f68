"""JSON Lines: a document a line, text and pictures in any order.

{"id"?, "split"?, "facts"?, "parts": [{"text"} | {"image": path} | {"image_base64"}, ...]}, each
part with an optional "loss"; or short {"text"}, or {"image": path, "caption"}. Paths are relative
to the file, or to --images=DIR, and lead to files below the source or DIR. Fields of other names
are left out.
"""

import base64
import binascii
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgpack

from mmjax import paths
from mmjax.batch import Image, Text
from mmjax.data.formats import picture
from mmjax.data.formats.caption import pair, parsed, worded, writable
from mmjax.data.formats.files import damaged, existing, label, listed, rest, split_of
from mmjax.data.formats.picture import checked
from mmjax.data.record import Item, Record
from mmjax.data.source import Places, lines, named, opened, too_long
from mmjax.data.transform import check

ENDINGS = (".jsonl", ".jsonl.gz")
KINDS = ("text", "image", "image_base64")
# A split's name is part of file names.
_SPLIT = re.compile(r"[a-z][a-z0-9_]{0,39}")


def items(path: Path, images: str = "", follow_links: bool = False) -> Iterator[Item]:
    """The lines of a file, or of every *.jsonl and *.jsonl.gz below a folder.

    Without "id" a document is called by file and line; without "split" the first-level folder
    tells (train, validation, test). What else lies in the folder comes last.

    Args:
        path: the file or folder. images: directory below which images lie too.
        follow_links: also to files and folders outside of both.

    Raises:
        UserError: if there are none.
    """
    tree, files = listed(path, ENDINGS, follow_links)
    further = (existing(paths.near(paths.of(images)), folder=True),) if images else ()
    places = Places(further, (*tree.roots, *further), follow_links)
    found = (item for file in files for item in _lines(file, tree.root, places))
    kinds = {ending: f"{ending}, read where a line names it" for ending in picture.ENDINGS}
    return itertools.chain(found, rest(tree, {*files}, kinds))


def _lines(file: Path, root: Path, places: Places) -> Iterator[Item]:
    name, number = label(file, root), 0
    folder, places = split_of(file, root), places._replace(bases=(*places.bases, file.parent))
    try:
        with opened(file) as raw, gzip.open(raw) if _is_packed(file) else raw as stream:
            for number, line in enumerate(lines(stream), 1):
                source = f"{name}:{number}"
                if line is None:
                    yield damaged(source, too_long())
                elif line.strip():
                    read = partial(_record, source, line, places)
                    yield Item(source, read, _split(line) or folder)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        yield damaged(f"{name}:{number + 1}", f"cannot be read from here on: {error}")


def _is_packed(file: Path) -> bool:
    return file.suffix.lower() == ".gz"


def _split(line: bytes) -> str | None:
    """The split a line names, if it can be one; the line is parsed only if it seems to."""
    if b'"split"' not in line:
        return None
    try:
        found = parsed(line)
        return _split_name(found) if isinstance(found, dict) else None
    except ValueError:
        return None  # reading the item says what is wrong


def _split_name(line: Mapping[str, Any]) -> str | None:
    found = line.get("split")
    if found is not None and not (isinstance(found, str) and _SPLIT.fullmatch(found)):
        raise ValueError(f"split {str(found)[:40]!r} is not of lower-case letters, digits and _")
    return found


def _record(source: str, line: bytes, places: Places) -> Record:
    raw = parsed(line)
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    raw = _told(raw)
    _split_name(raw)
    id = worded(_numbered(raw["id"]), "id") if "id" in raw else source
    facts = _facts(raw.get("facts"))
    if "parts" in raw:
        record = Record(id, _parts(raw["parts"], places), facts)
    elif "image" in raw:
        image = named(worded(raw["image"], "image"), places)
        record = pair(id, raw.get("caption", raw.get("text")), image, facts)
    elif "text" in raw:
        record = Record(id, (Text(worded(raw["text"], "text")),), facts)
    else:
        raise ValueError('neither "parts", nor "text", nor "image" and "caption"')
    check(record)
    return record


def _told(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without those that are null, which writers of tables put where there is nothing."""
    return {name: value for name, value in raw.items() if value is not None}


def _numbered(id: Any) -> Any:
    """An id as text, also where it is a number."""
    return str(id) if isinstance(id, int | float) and not isinstance(id, bool) else id


def _facts(facts: Any) -> Mapping[str, Any]:
    """Facts that can be written, which very large numbers and half characters cannot."""
    if facts is None:
        return {}
    if not isinstance(facts, dict):
        raise ValueError("facts are not a JSON object")
    try:
        msgpack.packb(facts)
    except (OverflowError, ValueError) as error:
        raise ValueError(f"facts cannot be written: {error}") from error
    return facts


def _parts(parts: Any, places: Places) -> tuple[Text | Image, ...]:
    if not isinstance(parts, list) or not parts:
        raise ValueError("parts are not a list, or empty")
    document = []
    for number, part in enumerate(parts, 1):
        try:
            document.append(_part(part, places))
        except (ValueError, OSError) as error:
            raise ValueError(f"part {number}: {error}") from error
    if not any(isinstance(p, Image) or p.text.strip() for p in document):
        raise ValueError("no text but white space, and no picture")
    return tuple(document)


def _part(part: Any, places: Places) -> Text | Image:
    if not isinstance(part, dict):
        raise ValueError("not a JSON object")
    part = _told(part)
    unknown = set(part) - {*KINDS, "loss"}
    if unknown:
        raise ValueError(f"unknown field {min(unknown)!r}; have: {', '.join(KINDS)}, loss")
    kinds = [kind for kind in KINDS if kind in part]
    if len(kinds) != 1:
        raise ValueError(f"needs one of {', '.join(KINDS)}; has {len(kinds)}")
    value, loss = part[kinds[0]], part.get("loss", True)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{kinds[0]} is empty or not text")
    if not isinstance(loss, bool):
        raise ValueError(f"loss {loss!r} is neither true nor false")
    if kinds[0] == "text":
        return Text(writable(value, "text"), loss)
    if kinds[0] == "image":
        return Image(checked(named(value, places)), loss)
    try:
        return Image(checked(base64.b64decode(value, validate=True)), loss)
    except binascii.Error as error:
        raise ValueError(f"image_base64 is not base64: {error}") from error
