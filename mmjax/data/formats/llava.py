"""Conversations about pictures, as LLaVA's instruction data has them.

[{"id", "image"?: path or [path, ...],
  "conversations": [{"from": "human" | "gpt" | "system", "value": "<image>\\nWhat is it?"}, ...]}]
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mmjax.batch import Document, Image, Text
from mmjax.data.formats.caption import parsed, worded, writable
from mmjax.data.formats.files import content, existing
from mmjax.data.formats.picture import checked
from mmjax.data.record import Item, Record
from mmjax.error import UserError

ROLES = ("human", "gpt", "system")
MARK = "<image>"


def items(path: Path) -> Iterator[Item]:
    """The conversations of a JSON file, their pictures beside it or in `images/` beside it.

    Turns stay as they are, with no template around them: each is a Text, divided where a picture
    stands. `facts["roles"]` tells for every part, pictures too, whose turn it is in. Only what gpt
    says has loss.

    Raises:
        UserError: if path is not a JSON file that holds a list.
    """
    if existing(path).is_dir():
        raise UserError(f"{path} is a folder; name the JSON file in it")
    try:
        found = parsed(content(path))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); repair the file") from error
    if not isinstance(found, list) or not found:
        raise UserError(f"{path} holds no list of conversations; see LLaVA's format")
    return _items(path, found)


def _items(path: Path, found: list[Any]) -> Iterator[Item]:
    for number, entry in enumerate(found, 1):
        source = f"{path.name}:{number}"
        yield Item(source, partial(_record, source, entry, path.parent))


def _record(source: str, entry: Any, folder: Path) -> Record:
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
    pictures = [checked(_picture(name, folder)) for name in names]
    document, roles = _parts(texts, pictures)
    return Record(id, document, {"roles": roles})


def _turn(turn: Any, number: int) -> tuple[str, str]:
    """One turn -> whose it is, and what is said."""
    role, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
    if role not in ROLES:
        raise ValueError(f"turn {number}: {str(role)[:40]!r} is none of {', '.join(ROLES)}")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"turn {number}: empty")
    return role, writable(text, f"turn {number}")


def _picture(name: str, folder: Path) -> bytes:
    beside, below = folder / name, folder / "images" / name
    return content(below if below.is_file() and not beside.is_file() else beside)


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
