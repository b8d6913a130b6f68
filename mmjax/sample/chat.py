"""Conversations, asked as a model was trained to be: by its data's template or its tokenizer's."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mmjax.batch import Image, Sentinel, Text
from mmjax.convert import hub, words
from mmjax.data.pixels import is_image
from mmjax.data.plain import plain
from mmjax.data.record import Record
from mmjax.data.store import TOKENIZER
from mmjax.data.tokenizer import NAMES
from mmjax.data.transform import ASKED, conversation
from mmjax.error import UserError
from mmjax.run import GIVEN, Run
from mmjax.sample.rendered import Message, Template, end_of, write
from mmjax.sample.request import IMAGE, Request, Slot, as_part, is_sep

ROLES = ("system", "user", "assistant")
PROCESSED = ("llava", "chameleon")  # whose processors put BOS before what a template wrote
# Where a chat_template may lie: as a file of its own, or under that name in one of these.
JINJA, HOLDERS = "chat_template.jinja", ("chat_template.json", hub.PROCESSOR, words.CONFIG)


def ask(run: Run, home: Path | None, turns, where: str = "a conversation") -> Request:
    """A conversation that is to be answered -> Request; `where` begins its errors.

    Args:
        run: of the model. home: its workdir. turns: see `Trained.chat`.

    Raises:
        UserError: for what is no conversation, or a model that has no template.
    """
    messages, draw = read(turns, where)
    template = template_of(run, home)
    if isinstance(template, str):
        with _named(where):
            document = _by_words(template, messages)
        return Request(document, draw, False, is_sep(document[-1]))
    size = run.model.parts.vocabulary.size
    with _named(where):
        if draw:
            raise UserError(f"{template.where} asks for words, not for a picture; use `generate`")
        document, begin = write(template, messages)
        if lost := [p for p in document if isinstance(p, Sentinel) and p.id >= size]:
            raise UserError(
                f"{template.where} writes {lost[0]}, for which the table has no row; use `generate`"
            )
    return Request(document, False, False, False, begin, end_of(template, messages))


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Puts a place before what is said of a mistake."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def read(turns, where: str = "a conversation") -> tuple[list[Message], bool]:
    """Turns -> messages, and whether the answer is to be a picture; `where` begins its errors.

    Raises:
        UserError: for turns that are none, in the wrong order, or not to be answered.
    """
    with _named(where):
        return _read(turns)


def _read(turns) -> tuple[list[Message], bool]:
    if isinstance(turns, str | Text | Image) or is_image(turns):
        turns = [turns]
    if not isinstance(turns, Sequence) or not turns:
        raise UserError(
            f"a conversation is a list of turns, the user's first, not {turns!r:.40}; give "
            f'[["a question", picture], "its answer", "another question"]'
        )
    told = [turn for turn in turns if isinstance(turn, Mapping)]
    if told and len(told) < len(turns):
        raise UserError("turns are all {'role', 'content'}, or none")
    messages, draw = [], False
    for number, turn in enumerate(turns, start=1):
        role = "assistant" if number % 2 == 0 else "user"
        if isinstance(turn, Mapping):
            if set(turn) != {"role", "content"} or turn["role"] not in ROLES:
                raise UserError(
                    f"turn {number} must be {{'role': one of {', '.join(ROLES)}, 'content': text "
                    f"and pictures}}, not {dict(turn)!r:.80}"
                )
            role, turn = turn["role"], turn["content"]
        one = isinstance(turn, str | Text | Image | Slot) or is_image(turn)
        parts = list([turn] if one else turn) if one or isinstance(turn, Sequence) else [turn]
        if number == len(turns) and parts and parts[-1] is IMAGE:
            parts, draw = parts[:-1], True
        messages.append(Message(role, [_spoken(part, number) for part in parts]))
    _check_order([m.role for m in messages])
    if not messages[-1].parts:
        raise UserError(f"turn {len(messages)} is empty; ask something")
    return messages, draw


def _spoken(part, number: int) -> Text | Image:
    """A part of a turn; only text and pictures are."""
    try:
        found = None if isinstance(part, Slot) else as_part(part)
    except UserError as error:
        raise UserError(f"turn {number}: {error}") from error
    if not isinstance(found, Text | Image):
        raise UserError(
            f"turn {number} holds {part!r}, but turns hold text and pictures, and mmjax.IMAGE at "
            f"the end of the last; the template writes what stands between them"
        )
    return replace(found, loss=True)


def _check_order(roles: Sequence[str]) -> None:
    """Checks that a system's turn comes first, and then user and assistant by turns."""
    spoken = roles[1:] if roles[0] == "system" else roles
    wanted = ["user", "assistant"] * len(spoken)
    if list(spoken) != wanted[: len(spoken)] or len(spoken) % 2 == 0:
        raise UserError(
            f"turns are those of {', '.join(roles)}; the user's and the assistant's take turns, "
            f"and the last is the user's (of one turn with several parts, give a list in a list)"
        )


def _by_words(template: str, messages: Sequence[Message]) -> list:
    """The document of training, up to where the answer would stand."""
    parts = [part for m in messages for part in m.parts]
    roles = ["gpt" if m.role == "assistant" else "human" for m in messages for _ in m.parts]
    record = Record("0", (*parts, Text("")), {"roles": [*roles, "gpt"]})
    return [replace(part, loss=True) for part in conversation(record, template)[:-1]]


def template_of(run: Run, home: Path | None) -> str | Template:
    """How a model is asked: the name of its data's template, or a chat_template of theirs.

    Raises:
        UserError: if it has neither, or its sources have several.
    """
    sources = run.experiment.data.sources
    known = {ASKED[s.template]: name for name, s in sources.items() if s.template in ASKED}
    if len(known) > 1:
        raise UserError(
            f"this model was trained on conversations of two templates, {' and '.join(known)}; ask "
            f"with `generate`, in the words of either"
        )
    if known:
        return next(iter(known))
    is_imported = home is not None and (home / GIVEN).is_file()
    found = _theirs(run, home) if home is not None and is_imported else None
    if found is None and is_imported and run.model.parts.vocabulary.sep >= 0:
        return "sep"  # Chameleon's own
    if found is None:
        raise UserError(
            f"{home or 'this model'} was trained on no conversations (no template of data.sources "
            f"is one of {', '.join(ASKED)}) and has no chat_template beside its tokenizer; ask "
            f"with `generate`, in the words it was trained on"
        )
    return found


def _theirs(run: Run, home: Path) -> Template | None:
    """The chat_template among an imported model's files; None if there is none."""
    source, where = _source(home)
    if not source:
        return None
    beside = {
        name: (home / name).read_bytes()
        for name in (TOKENIZER, words.CONFIG, words.SPECIAL)
        if (home / name).is_file()
    }
    tokenizer = words.read(beside, home)
    if tokenizer is None:
        raise UserError(f"{home / TOKENIZER} does not exist; put that of the model there")
    told = words.settings(beside, home)
    names = words.names(told)
    never = plain(tokenizer, run.model.parts.vocabulary, NAMES).never
    added = tokenizer.get_added_tokens_decoder()
    tokens = {i: token for i, token in added.items() if token.special or i in never}
    ids = {tokenizer.token_to_id(name): AddedToken(name) for name in names.values()}
    tokens = {i: token for i, token in ids.items() if i is not None} | tokens
    given = json.loads((home / GIVEN).read_text())
    place = given.get("image_token_id", given.get("image_token_index"))
    spelled = tokenizer.id_to_token(place) if isinstance(place, int) else None
    called = (spelled or "", names.get("image_token", ""))
    image = next((name for name in called if name and name in source), "<image>")
    return Template(source, where, names, tokens, image, run.experiment.family in PROCESSED)


def _source(home: Path) -> tuple[str, str]:
    """A chat_template, "" if there is none, and the file it is in; of several that by default."""
    if (home / JINJA).is_file():
        return (home / JINJA).read_text(encoding="utf-8"), str(home / JINJA)
    for name in HOLDERS:
        found: Any = hub.read_json(home / name) if (home / name).is_file() else {}
        found = found.get("chat_template") or ""
        if isinstance(found, list):
            found = {one["name"]: one["template"] for one in found}
        if isinstance(found, dict):
            if "default" not in found:
                raise UserError(
                    f"{home / name} has chat_templates {', '.join(found)} and none by default; put "
                    f"the one to ask by into {home / JINJA}"
                )
            found = found["default"]
        if found:
            return str(found), str(home / name)
    return "", ""
