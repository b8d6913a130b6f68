"""Tokenizers beside weights of others: what they put around a text, and whether they fit."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

from mmjax.batch import Vocabulary
from mmjax.data import tokenizer as bpe
from mmjax.data.plain import plain
from mmjax.data.store import TOKENIZER
from mmjax.data.transform import VICUNA
from mmjax.error import UserError

CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"


def read(beside: Mapping[str, bytes], path: Path) -> Tokenizer | None:
    """The tokenizer among files, None if there is none.

    Raises:
        UserError: if it is damaged.
    """
    if TOKENIZER not in beside:
        return None
    try:
        found = Tokenizer.from_str(beside[TOKENIZER].decode())
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{path / TOKENIZER} is damaged: {error}; fetch it anew") from error
    found.no_padding()
    found.no_truncation()
    return found


def settings(beside: Mapping[str, bytes], path: Path) -> dict[str, Any]:
    """What files beside a tokenizer say of it; empty if there are none.

    Raises:
        UserError: if one is damaged.
    """
    told: dict[str, Any] = {}
    for name in (SPECIAL, CONFIG):
        try:
            found = json.loads(beside.get(name, b"{}"))
        except ValueError as error:
            raise UserError(f"{path / name} is damaged: {error}; fetch it anew") from error
        if not isinstance(found, dict):
            raise UserError(f"{path / name} holds a {type(found).__name__}; fetch it anew")
        told |= {k: x for k, x in found.items() if x is not None}
    return told


def names(told: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by what they are for: "bos_token" -> "<s>"."""
    found = {}
    for name, token in told.items():
        text = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


def put_around(tokenizer: Tokenizer, told: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer's own post-processing puts before and behind a text.

    told: see `settings`. Where it says `add_bos_token` or `add_eos_token`, they decide.
    """
    flags = [told.get(f"add_{end}_token") for end in ("bos", "eos")]
    if flags != [None, None]:
        ids = [tokenizer.token_to_id(names(told).get(f"{e}_token", "")) for e in ("bos", "eos")]
        before, behind = (
            [i] if on and i is not None else [] for on, i in zip(flags, ids, strict=True)
        )
        return before, behind
    if tokenizer.post_processor is None:
        return [], []
    made = tokenizer.encode("a")
    own = [n for n, is_special in enumerate(made.special_tokens_mask) if not is_special]
    first, last = (own[0], own[-1]) if own else (len(made.ids), len(made.ids))
    return made.ids[:first], made.ids[last + 1 :]


def processed(v: Vocabulary, beside: Mapping[str, bytes], path: Path) -> Vocabulary:
    """Ids whose texts begin and end as the tokenizer among files has them, if there is one."""
    tokenizer = read(beside, path)
    if tokenizer is None:
        return v
    before, behind = put_around(tokenizer, settings(beside, path))
    bos = before[0] if before else -1
    return replace(v, bos=bos, opening=tuple(before[1:]), closing=tuple(behind))


def check(v: Vocabulary, beside: Mapping[str, bytes], path: Path) -> None:
    """Checks that every id that a text can have has a row in the table.

    Raises:
        UserError: if not.
    """
    tokenizer = read(beside, path)
    if tokenizer is None:
        return
    never = plain(tokenizer, v, bpe.NAMES).never
    if beyond := sorted(
        i for i in tokenizer.get_vocab().values() if i >= v.size and i not in never
    ):
        word = tokenizer.id_to_token(beyond[0])
        raise UserError(
            f"{path / TOKENIZER} has {beyond[-1] + 1} ids, but the table of these weights has "
            f"{v.size} rows, so {len(beyond)} words such as {word!r} have none; fetch the "
            f"tokenizer of this model, or resize its embeddings to {beyond[-1] + 1}"
        )


# How a model that was trained here is asked, for `transformers`: see `data.transform.conversation`.
_SAID = (
    "{% for p in ([{'type': 'text', 'text': m.content}] if m.content is string else m.content) %}"
    "{% if p.type == 'image' %}{{ '<image>' }}"
    "{% else %}{{ '' if p.text[:1] == ' ' else ' ' }}{{ p.text }}{% endif %}{% endfor %}"
)
CHATS = {
    "sep": "{{ bos_token }}{% for m in messages %}" + _SAID + "{% if m.role != 'system' %}"
    "{{ '<sep>' }}{% endif %}{% endfor %}",
    "vicuna": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' or (m.role == 'user' "
    "and (loop.first or messages[loop.index0 - 1].role != 'system')) %}"
    f'{{{{ " {VICUNA} USER:" if loop.first else " USER:" }}}}{{% endif %}}' + _SAID
    + "{% if m.role == 'user' %}{{ ' ASSISTANT:' }}{% elif m.role == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}",
}  # fmt: skip


def sent(tokenizer: Tokenizer, v: Vocabulary, template: str) -> dict[str, bytes]:
    """A tokenizer that was trained here as files for `transformers`, name -> content.

    It puts BOS before texts, as rows here have it. template: of conversations, or ""; of a
    tokenizer that begins texts otherwise than ours it is left out, as ids would differ.
    """
    told: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    ids = {"bos_token": v.bos, "eos_token": v.eos, "pad_token": v.pad}
    spelled = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i >= 0}
    told |= {name: token for name, token in spelled.items() if token}
    step = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    if template in CHATS and step.get("type") == "ByteLevel" and step.get("add_prefix_space"):
        told["chat_template"] = CHATS[template]
    whole = Tokenizer.from_str(tokenizer.to_str())
    if whole.post_processor is None and "bos_token" in told:
        bos = told["bos_token"]
        whole.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, v.bos)]
        )
    return {TOKENIZER: whole.to_str(True).encode(), CONFIG: json.dumps(told, indent=2).encode()}
