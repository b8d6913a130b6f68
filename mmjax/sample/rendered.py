"""Conversations in the words of a `chat_template`, as Hugging Face's tokenizers carry one (Jinja).

The template writes one string; in it the tokens that it wrote become ids, a picture's token the
picture, and all that a user said stays text, also where it reads like a token.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from tokenizers import AddedToken

from mmjax.batch import Image, Sentinel, Text
from mmjax.error import UserError

OPEN, CLOSE = "\ue000", "\ue001"  # around the number of a token's name that a user said
_SAID = re.compile(f"{OPEN}([0-9]+){CLOSE}")


@dataclass(frozen=True)
class Template:
    """How theirs write a conversation out.

    Attributes:
        source: in Jinja. where: the file that holds it, in errors.
        names: special tokens by what they are for, as "bos_token".
        tokens: what stands for an id of its own, id -> token. image: a picture's, by its content.
        begins: whether BOS is put before what the template writes, unless it wrote it.
    """

    source: str
    where: str
    names: Mapping[str, str]
    tokens: Mapping[int, AddedToken]
    image: str
    begins: bool


class Written(NamedTuple):
    """A conversation written out.

    Attributes:
        document: its parts. begin: whether BOS is to be put before them.
    """

    document: list[Text | Image | Sentinel]
    begin: bool


class Message(NamedTuple):
    """A turn of a conversation: whose it is, "system", "user" or "assistant", and what is said."""

    role: str
    parts: Sequence[Text | Image]


def write(template: Template, messages: Sequence[Message]) -> Written:
    """Messages, and what opens the answer, as the template has them.

    Raises:
        UserError: for a template that is damaged, refuses the conversation or lacks pictures.
    """
    names = {token.content: i for i, token in template.tokens.items()}
    known = sorted({*names, template.image}, key=len, reverse=True)
    found = re.compile("|".join(map(re.escape, known)))
    said = re.compile("|".join(map(re.escape, [OPEN, *known])))
    kept: list[str] = []

    def hide(match: re.Match) -> str:
        kept.append(match[0])
        return f"{OPEN}{len(kept) - 1}{CLOSE}"

    def show(match: re.Match) -> str:
        return kept[int(match[1])]

    pictures = [part for m in messages for part in m.parts if isinstance(part, Image)]
    text = render(template, messages, lambda one: said.sub(hide, one))
    parts: list[Text | Image | Sentinel] = []
    rest, at, strip = iter(pictures), 0, False
    marks = list(found.finditer(text))
    places = sum(mark[0] == template.image for mark in marks)
    if places != len(pictures):
        raise UserError(
            f"{template.where} writes {places} of {template.image} for {len(pictures)} pictures; "
            f"ask with `generate`, in the words this model was trained on"
        )
    for mark in [*marks, None]:
        piece = text[at : mark.start() if mark else None]
        token = template.tokens.get(names.get(mark[0], -1)) if mark else None
        piece = piece.lstrip() if strip else piece
        piece = piece.rstrip() if token and token.lstrip else piece
        parts += [Text(_SAID.sub(show, piece))] * bool(piece)
        if mark:
            is_image = mark[0] == template.image
            parts.append(next(rest) if is_image else Sentinel(mark[0], id=names[mark[0]]))
            at, strip = mark.end(), bool(token and token.rstrip)
    begin = template.begins and not text.startswith(template.names.get("bos_token") or OPEN)
    return Written(parts, begin)


def end_of(template: Template, messages: Sequence[Message]) -> tuple[int, ...]:
    """The id of the token that the template writes behind an answer, () if it writes none."""
    mark = f"{OPEN}0{CLOSE}"
    try:
        text = render(template, [*messages, Message("assistant", [Text(mark)])], str, answer=True)
    except UserError:  # some refuse a conversation that ends in an answer
        return ()
    behind = text.rpartition(mark)[2].lstrip() if mark in text else ""
    tokens = sorted(template.tokens.items(), key=lambda pair: -len(pair[1].content))
    return next(((i,) for i, token in tokens if behind.startswith(token.content)), ())


def render(
    template: Template,
    messages: Sequence[Message],
    said: Callable[[str], str],
    answer: bool = False,
) -> str:
    """The string that a template makes of messages, whose texts go through `said`.

    answer: they end in an answer; else what opens one is written behind them. Words alone are given
    as strings, but as lists of parts where there are several and the template knows lists, or where
    it leaves strings out.
    """
    import jinja2  # here alone: most commands have no use for it

    wrong = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError)

    def written(listed: bool, text: Callable[[str], str]) -> str:
        told = []
        for m in messages:
            parts = [_part(part, text) for part in m.parts]
            whole = parts if listed else "".join(part["text"] for part in parts)
            told.append({"role": m.role, "content": whole})
        return made.render(
            messages=told, tools=None, documents=None, add_generation_prompt=not answer,
            **template.names,
        )  # fmt: skip

    def tells(listed: bool) -> bool:
        """Whether all texts are written, and no list of them as Python writes one."""
        mark = f"{OPEN}0{CLOSE}"
        try:
            found = written(listed, lambda _: mark)
        except wrong:
            return False
        texts = sum(isinstance(part, Text) for m in messages for part in m.parts)
        return found.count(mark) >= texts and "{'type': 'text'" not in found

    try:
        made = _environment().from_string(template.source)
        pictures = any(isinstance(part, Image) for m in messages for part in m.parts)
        several = any(len(m.parts) > 1 for m in messages)
        return written(pictures or ((several or not tells(False)) and tells(True)), said)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"{template.where} is no chat_template: {error.message}; fetch it anew"
        ) from error
    except wrong as error:
        raise UserError(
            f"{template.where} refuses this conversation: {error}; ask otherwise, or with "
            f"`generate`"
        ) from error


def _part(part: Text | Image, said: Callable[[str], str]) -> dict[str, str]:
    if isinstance(part, Image):
        return {"type": "image"}
    return {"type": "text", "text": said(part.text)}


def _environment():
    """What templates of theirs are written for, in a sandbox: nobody here has read them."""
    import jinja2.ext
    import jinja2.nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` around answers, which marks them for training; here it does not."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: Any) -> None:
        raise jinja2.TemplateError(str(message))

    def tojson(x: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    e = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    e.filters["tojson"] = tojson
    e.globals["raise_exception"] = refuse
    e.globals["strftime_now"] = lambda how: datetime.now().strftime(how)
    return e
