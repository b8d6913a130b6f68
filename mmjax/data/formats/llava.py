"""Conversations about pictures, as LLaVA's instruction data has them.

[{"id", "image"?: path or [path, ...],
  "conversations": [{"from": "human" | "gpt" | "system", "value": "<image>\\nWhat is it?"}, ...]}]
"""

import itertools
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mmjax import paths
from mmjax.batch import Document, Image, Text
from mmjax.data.formats.array import Bad, elements
from mmjax.data.formats.caption import worded, writable
from mmjax.data.formats.files import damaged, existing
from mmjax.data.formats.picture import checked
from mmjax.data.record import Item, Record
from mmjax.data.source import Places, named
from mmjax.data.transform import check
from mmjax.error import UserError

ROLES = ("human", "gpt", "system")
MARK = "<image>"


def items(path: Path, images: str = "", follow_links: bool = False) -> Iterator[Item]:
    """The conversations of a JSON file, their images beside it or in `images/` beside it.

    Turns stay as they are, with no template around them: each is a Text, divided where an image
    stands. `facts["roles"]` tells for every part, images too, whose turn it is in. Only what gpt
    says has loss.

    Args:
        path: the file. images: directory below which images lie instead.
        follow_links: also to images outside of the file's directory and of `images`.

    Raises:
        UserError: if path is not a JSON file that holds a list.
    """
    if existing(path).is_dir():
        raise UserError(f"{path} is a folder; name the JSON file in it")
    further = (existing(paths.near(paths.of(images)), folder=True),) if images else ()
    bases = (*further, path.parent, path.parent / "images")
    places = Places(bases, (path.parent, *further), follow_links)
    entries = elements(path)
    try:
        first = [*itertools.islice(entries, 2)]
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); repair the file") from error
    if not first:
        raise UserError(f"{path} holds no list of conversations; see LLaVA's format")
    return _items(path.name, itertools.chain(first, entries), places)


def _items(name: str, entries: Iterator[Any], places: Places) -> Iterator[Item]:
    number = 0
    try:
        for number, entry in enumerate(entries, 1):
            source = f"{name}:{number}"
            if isinstance(entry, Bad):
                yield damaged(source, str(entry))
            else:
                yield Item(source, partial(_record, source, entry, places))
    except (ValueError, OSError) as error:
        yield damaged(f"{name}:{number + 1}", f"cannot be read from here on: {error}")


def _record(source: str, entry: Any, places: Places) -> Record:
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    id = worded(str(entry["id"]), "id") if entry.get("id") is not None else source
    names = entry.get("image") or []
    names = [names] if isinstance(names, str) else names
    turns = entry.get("conversations")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("image is neither a path nor a list of paths")
    if not isinstance(turns, list):
        raise ValueError("no list of conversations")
    texts = [_turn(turn, number) for number, turn in enumerate(turns, 1)]
    if not any(role == "gpt" for role, _ in texts):
        raise ValueError("no turn of gpt's")
    marks = sum(text.count(MARK) for _, text in texts)
    if marks != len(names):
        raise ValueError(f"{marks} {MARK} but {len(names)} pictures")
    pictures = [checked(named(name, places)) for name in names]
    document, roles = _parts(texts, pictures)
    record = Record(id, document, {"roles": roles})
    check(record)
    return record


def _turn(turn: Any, number: int) -> tuple[str, str]:
    """One turn -> whose it is, and what is said."""
    role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES:
        raise ValueError(f"turn {number}: {str(role)[:40]!r} is none of {', '.join(ROLES)}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"turn {number}: empty")
    return role, writable(text, f"turn {number}")


def _parts(texts: list[tuple[str, str]], pictures: list[bytes]) -> tuple[Document, list[str]]:
    """Turns -> parts, and whose turn each is in."""
    document: list[Text | Image] = []
    roles = []
    rest = iter(pictures)
    for role, text in texts:
        for piece in re.split(f"({MARK})", text):
            if piece == MARK:
                document.append(Image(next(rest), loss=False))
            elif piece:
                document.append(Text(piece, loss=role == "gpt"))
            else:
                continue
            roles.append(role)
    return tuple(document), roles
