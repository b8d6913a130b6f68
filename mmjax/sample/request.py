"""What a user asks for, as parts in a row: what is given, and what is to be made."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image

from mmjax.batch import Document, Image, Text
from mmjax.data.pixels import size_of
from mmjax.data.tokenizer import MASK, SEPARATOR
from mmjax.error import UserError


class Slot:
    """The type of `mmjax.IMAGE` and `mmjax.TEXT`: something to be made."""

    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return f"mmjax.{self._name}"


IMAGE, TEXT = Slot("IMAGE"), Slot("TEXT")
PICTURES = bytes | Path | np.ndarray | PIL.Image.Image  # besides `Image`


@dataclass(frozen=True)
class Request:
    """A prompt, parsed.

    Attributes:
        document: what is given; of an infilling with its mask where the hole is and at the end.
        draw: a picture is asked for, else text. infill: it goes into a hole, not behind the end.
        answer: the prompt ends in the separator, as prompts of instruction-tuned models do.
    """

    document: Document
    draw: bool
    infill: bool
    answer: bool


def parse_all(prompts, called: str = "prompt") -> list[Request]:
    """Prompts, see `parse`; in errors they are `called` so, and numbered.

    Raises:
        UserError: for one that is none, or a prompt where a list of them is asked for.
    """
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        raise UserError(
            f"give a list of prompts, such as [[text, mmjax.IMAGE]], not a {type(prompts).__name__}"
        )
    return [parse(parts, f"{called} {number}") for number, parts in enumerate(prompts, start=1)]


def parse(parts, where: str = "a prompt") -> Request:
    """Text, pictures (see `as_part`) and at most one slot -> Request; `where` begins its errors.

    A prompt that ends in IMAGE asks for a picture; one that ends otherwise, or in TEXT, for text. A
    slot before other parts is a hole, which a model trained on CM3's objective can fill.

    Raises:
        UserError: for a second slot, a picture that is not there, or what is no part or prompt.
    """
    if isinstance(parts, Slot | Text | Image | PICTURES | str):
        parts = [parts]
    if not isinstance(parts, Sequence):
        raise UserError(
            f"{where} must be a list of text, pictures and a slot, or one of them, not a "
            f"{type(parts).__name__}"
        )
    try:
        document = [part if isinstance(part, Slot) else as_part(part) for part in parts]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    slots = [i for i, part in enumerate(document) if isinstance(part, Slot)]
    if len(slots) > 1:
        raise UserError(
            f"{where} may hold one slot, but parts {slots[0] + 1} and {slots[1] + 1} are "
            f"{document[slots[0]]!r} and {document[slots[1]]!r}; ask for one at a time, or give "
            f"pictures=N for free interleaving"
        )
    draw = bool(slots) and document[slots[0]] is IMAGE
    infill = bool(slots) and slots[0] < len(document) - 1
    given = [Text(MASK) if isinstance(part, Slot) else part for part in document]
    if infill:
        given.append(Text(MASK))
    elif slots:
        given.pop()
    answer = bool(given) and isinstance(given[-1], Text) and given[-1].text == SEPARATOR
    return Request(given, draw, infill, answer)


def turns(request: Request) -> Document:
    """Its document; of a conversation, prompts and the separators behind them without loss.

    So they are in training, and where masked tokens see each other both ways, those without loss
    are read from left to right.
    """
    turn, out = 0, []
    for part in request.document if request.answer else ():
        out.append(replace(part, loss=turn % 2 == 1))
        turn += isinstance(part, Text) and part.text == SEPARATOR
    return out or request.document


def as_part(part) -> Text | Image:
    """One part of a prompt: text, or a picture as a file's path, as its bytes or as its pixels.

    Pixels are a PIL.Image, or uint8 [h, w, 3], which `generate` returns.

    Raises:
        UserError: for a picture that is not there, or what is no part.
    """
    if isinstance(part, Text | Image):
        return part
    if isinstance(part, bytes):
        return Image(part)
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, Path):
        return Image(read(part))
    if isinstance(part, np.ndarray):
        if part.dtype != np.uint8 or part.ndim != 3 or part.shape[2] != 3 or not part.size:
            raise UserError(
                f"a picture's pixels are uint8 [h, w, 3], not {part.dtype} {list(part.shape)}"
            )
        part = PIL.Image.fromarray(part)
    if not isinstance(part, PIL.Image.Image):
        raise UserError(f"a prompt holds text, pictures and a slot, not {type(part).__name__}")
    file = io.BytesIO()
    part.save(file, "PNG")
    return Image(file.getvalue())


def read(path: Path) -> bytes:
    """A picture's file.

    Raises:
        UserError: if it is not there, cannot be read, or is no picture.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"picture {path} does not exist") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"picture {path} cannot be read: {why}") from error
    try:
        size_of(data)
    except UserError as error:
        raise UserError(f"picture {path}: {error}") from error
    return data
