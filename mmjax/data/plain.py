"""What users type, as ids: never one with a meaning of its own, whatever tokenizer was brought.

A tokenizer from elsewhere may hold special strings among its ordinary pieces (`</s>` in a Unigram
or WordLevel model), or as added tokens that are not marked special (`<image>`, `<|user|>`). Text is
encoded by a copy of it in which no text can spell them; other texts have the ids they had.
"""

import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from mmjax.batch import Vocabulary

# A noncharacter of Unicode: what it begins is no text's.
HIDDEN = "\U0010fffe"
# Pieces that are special wherever they stand, though a tokenizer may not say so.
NAMED = frozenset(
    (
        "<pad>", "<s>", "</s>", "<bos>", "<eos>", "<unk>", "<mask>", "<cls>", "<sep>", "<image>",
        "[PAD]", "[BOS]", "[EOS]", "[UNK]", "[MASK]", "[CLS]", "[SEP]",
    )
)  # fmt: skip
_PIPES = re.compile(r"<\|[^|<>\s]+\|>")  # <|endoftext|>, <|user|>
_TAG = re.compile(
    r"<[^<>\s]+>|\[/?[A-Z][A-Z0-9_]*\]"
)  # <image>, [INST]; words where they are learnt
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # what stands for a byte where no piece has its character
_SIGNS = frozenset('<>[]{}|_#@$*=~^`"/\\:')
_SPACES = "▁Ġ"  # how pieces write a space


class Plain(NamedTuple):
    """A tokenizer for text alone.

    Attributes:
        first: of a text that begins a document. later: of one behind a picture or another token.
        never: ids that no text has.
    """

    first: Tokenizer
    later: Tokenizer
    never: frozenset[int]


def encode(plain: Plain, texts: Sequence[str], later: Sequence[bool] = ()) -> list[list[int]]:
    """Texts -> ids. later: of which texts something stands before; without it of none."""
    if plain.first is plain.later or not any(later):
        return _encode(plain.first, plain.never, texts)
    which = {False: plain.first, True: plain.later}
    found = {
        side: iter(
            _encode(used, plain.never, [t for t, s in zip(texts, later, strict=True) if s is side])
        )
        for side, used in which.items()
    }
    return [next(found[side]) for side in later]


def _encode(tokenizer: Tokenizer, never: frozenset[int], texts: Sequence[str]) -> list[list[int]]:
    # Set at every call because neither a tokenizer.json nor a pickle keeps it.
    tokenizer.encode_special_tokens = True
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [
        ids if never.isdisjoint(ids) else _without(tokenizer, never, text)
        for ids, text in zip((one.ids for one in found), texts, strict=True)
    ]


def _without(tokenizer: Tokenizer, never: frozenset[int], text: str) -> list[int]:
    """The ids of a text that spells a hidden piece, or whose unknown character is a sentinel's."""
    ids = tokenizer.encode(text.replace(HIDDEN, "\ufffd"), add_special_tokens=False).ids
    return [i for i in ids if i not in never]


def is_word(piece: str) -> bool:
    """Whether a piece is a word or white space rather than markup such as `<image>` or `[INST]`."""
    text = unicodedata.normalize("NFKC", piece)
    marks = ("Ps", "Pe", "Pi", "Pf", "Pc", "Cn", "Co")
    return not any(x in _SIGNS or unicodedata.category(x) in marks for x in text)


@functools.lru_cache(maxsize=16)
def plain(tokenizer: Tokenizer, vocab: Vocabulary | None, named: frozenset[str]) -> Plain:
    """A tokenizer's own text encoder, and the tokenizer itself where it needs no other.

    vocab: of the model, if it is known. named: further pieces that are special.
    """
    about = json.loads(tokenizer.to_str())
    pieces = tokenizer.get_vocab()
    added = tokenizer.get_added_tokens_decoder()
    meant = {i for i, token in added.items() if token.special or not is_word(token.content)}
    meant |= {pieces[piece] for piece in _special(about["model"]) | (named & pieces.keys())}
    meant |= told(vocab, {i: p for p, i in pieces.items()}) if vocab else set()
    unknown = _unknown(about["model"])
    sentinels = {vocab.bos, vocab.eos, vocab.sep, *vocab.stops} if vocab else set()
    sentinels |= {pieces[piece] for piece in named & pieces.keys()}
    changed = _hide(about["model"], meant)
    for token in about["added_tokens"]:  # those that are special are passed over in a text
        changed |= token["id"] in meant and not token["special"]
        token["special"] |= token["id"] in meant
    changed |= _no_typed_bytes(about) or bool(about["padding"] or about["truncation"])
    about |= {"padding": None, "truncation": None}
    first = Tokenizer.from_str(json.dumps(about)) if changed else tokenizer
    later = Tokenizer.from_str(json.dumps(about)) if _unprefixed(about["pre_tokenizer"]) else first
    return Plain(first, later, frozenset(meant - ({unknown} - sentinels)))


def _special(model: dict) -> set[str]:
    """Pieces of a model that are special by their names.

    A tag such as `<br>` is one too, but for those that merges make, which are learnt from texts.
    """
    listed = isinstance(model["vocab"], list)
    pieces = {piece for piece, _ in model["vocab"]} if listed else set(model["vocab"])
    tags = {p for p in pieces if _TAG.fullmatch(p) and not _BYTE.fullmatch(p)}
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in model.get("merges", ()) if tags else ():
        left, right = _pair(merge)
        tags.discard(left + right.removeprefix(prefix))
    return tags | (pieces & NAMED) | {p for p in pieces if _PIPES.fullmatch(p)}


def told(vocab: Vocabulary, pieces: dict[int, str]) -> set[int]:
    """Ids with a meaning by a model's vocabulary; not single characters, which configurations of
    theirs name by mistake (the first CLIPs have `#` as EOS), nor words that also pad or stop.
    """
    codes = range(vocab.codes, vocab.codes + vocab.code_count)
    soft = {vocab.pad, *vocab.stops}
    found = {*vocab.sentinels, *vocab.barred, *codes}
    spelled = {i: pieces[i] for i in found if i in pieces}
    return {
        i
        for i, piece in spelled.items()
        if len(piece.strip(_SPACES)) > 1
        and not _BYTE.fullmatch(piece)
        and not (i in soft and is_word(piece))
    }


def _unknown(model: dict) -> int:
    """The id of what a model has no piece for; -1 if it has none."""
    if isinstance(model["vocab"], list):
        return -1 if model.get("unk_id") is None else model["unk_id"]
    return model["vocab"].get(model.get("unk_token"), -1)


def _hide(model: dict, ids: Iterable[int]) -> bool:
    """Gives pieces names that no text spells; -> whether there were any."""
    if isinstance(model["vocab"], list):
        gone = [i for i in ids if i < len(model["vocab"])]
        for i in gone:
            model["vocab"][i][0] = f"{HIDDEN}{i}"
        return bool(gone)
    hidden = set(ids)
    names = {piece: f"{HIDDEN}{i}" for piece, i in model["vocab"].items() if i in hidden}
    model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if names and "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        kept = []
        for left, right in map(_pair, model["merges"]):
            if names.keys().isdisjoint((left, right, left + right.removeprefix(prefix))):
                kept.append([left, right])
        model["merges"] = kept
    return bool(names)


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    """The two pieces of a merge, which older files have in one string."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _no_typed_bytes(about: dict) -> bool:
    """Parts `<0x41>` that was typed, so that it does not become the byte's piece.

    Only Unigram models and those that look whole words up could.
    """
    model = about["model"]
    if not model.get("byte_fallback") or not ("merges" not in model or model.get("ignore_merges")):
        return False
    pattern = {"Regex": "<(?=0x[0-9A-Fa-f]{2}>)"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    before = about["pre_tokenizer"]
    steps = [split] if before is None else [before, split]
    about["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return True


def _unprefixed(step: dict | None) -> bool:
    """Changes what puts a space before a document's first text alone; -> whether anything does."""
    if step is None:
        return False
    if step["type"] == "Sequence":
        return any([_unprefixed(one) for one in step["pretokenizers"]])
    found = step.get("prepend_scheme") == "first"
    if found:
        step["prepend_scheme"] = "never"
    return found


def without_holes(text: str) -> str | None:
    """A tokenizer.json in which every id up to the highest has a piece; None if it is so already.

    The library counts pieces to find the next free id, and would give ours ids that are taken.
    """
    about = json.loads(text)
    vocab = about["model"]["vocab"]
    if isinstance(vocab, list):
        return None
    used = {i: piece for piece, i in vocab.items()}
    size, added = max(used, default=-1) + 1, {t["id"]: t for t in about.get("added_tokens") or []}
    lacks = [i for i in range(size) if i not in used]
    behind = [i for i in range(size, max(added, default=-1)) if i not in added]
    if not lacks and not behind:
        return None
    for i in lacks:
        name = added[i]["content"] if i in added else f"{HIDDEN}{i}"
        vocab[name if name not in vocab else f"{HIDDEN}{i}"] = i
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fill = [{"id": i, "content": f"{HIDDEN}{i}", **flags, "special": True} for i in behind]
    about["added_tokens"] = sorted([*added.values(), *fill], key=lambda token: token["id"])
    return json.dumps(about)
