"""What a user asks for, as parts in a row: what is given, and what is to be made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmjax.batch import SEP, Document, Image, Sentinel, Text
from mmjax.data.pixels import encode, is_image
from mmjax.error import UserError


class Slot:
    """The type of `mmjax.IMAGE` and `mmjax.TEXT`: something to be made."""

    def __init__(self, name: str):
        self._name = name

    def __repr__(self) -> str:
        return f"mmjax.{self._name}"


IMAGE, TEXT = Slot("IMAGE"), Slot("TEXT")


@dataclass(frozen=True)
class Request:
    """A prompt, parsed.

    Attributes:
        document: what is given; of an infilling with its mask where the hole is and at the end.
        draw: a picture is asked for, else text. infill: it goes into a hole, not behind the end.
        answer: the prompt ends in the separator, as prompts of instruction-tuned models do.
        begin: BOS is put before it. stops: further ids that end the answer.
    """

    document: Document
    draw: bool
    infill: bool
    answer: bool
    begin: bool = True
    stops: tuple[int, ...] = ()


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
    slot before other parts is a hole, which a model trained on CM3's objective can fill. A Request
    stays as it is.

    Raises:
        UserError: for a second slot, a picture that is not there, or what is no part or prompt.
    """
    if isinstance(parts, Request):
        return parts
    if isinstance(parts, Slot | Text | Image | Sentinel | str) or is_image(parts):
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
    mask = Sentinel("mask")
    given = [mask if isinstance(part, Slot) else part for part in document]
    if infill:
        given.append(mask)
    elif slots:
        given.pop()
    answer = bool(given) and is_sep(given[-1])
    return Request(given, draw, infill, answer)


def turns(request: Request) -> Document:
    """Its document; of a conversation, prompts and the separators behind them without loss.

    So they are in training, and where masked tokens see each other both ways, those without loss
    are read from left to right.
    """
    turn, out = 0, []
    for part in request.document if request.answer else ():
        out.append(replace(part, loss=turn % 2 == 1))
        turn += is_sep(part)
    return out or request.document


def is_sep(part) -> bool:
    """Whether a part is the separator, with or without loss."""
    return isinstance(part, Sentinel) and part.name == SEP.name


def as_part(part) -> Text | Image | Sentinel:
    """One part of a prompt: text, or a picture in any of the forms that `pixels.encode` takes.

    A string is text whatever it says; sentinels are `mmjax.SEP` and `mmjax.EOS`.

    Raises:
        UserError: for a picture that is not there, or what is no part.
    """
    if isinstance(part, Text | Image | Sentinel):
        return part
    if isinstance(part, str):
        return Text(part)
    if not is_image(part):
        raise UserError(f"a prompt holds text, pictures and a slot, not {type(part).__name__}")
    return Image(encode(part))
