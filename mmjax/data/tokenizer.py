"""Byte-level BPE, and documents as positions of one id space `text | sentinels | image codes`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmjax import paths
from mmjax.batch import TEXT, Document, Image, Sentinel, Text, Vocabulary
from mmjax.data import plain
from mmjax.error import UserError

MASKS = 8  # most spans CM3 may move in one document
# Only vocabularies of runs that use them have registers; see `mmjax.batch.unparted`.
REGISTERS = tuple(f"<register:{i}>" for i in range(16))
SENTINELS = (
    "<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", "<sep>", "<eoss>",
    *(f"<mask:{i}>" for i in range(MASKS)),
)  # fmt: skip

# What tokenizers from elsewhere call them.
ALIASES = {
    "<bos>": ("<s>", "<|begin_of_text|>", "<|startoftext|>"),
    "<eos>": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}
NAMES = frozenset([*SENTINELS, *REGISTERS, *(name for some in ALIASES.values() for name in some)])


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """Trains a byte-level BPE of at most `size` ids, sentinels included, on texts.

    Raises:
        UserError: if `size` leaves no room for the 256 bytes and the sentinels.
    """
    least = 256 + len(SENTINELS)
    if size < least:
        raise UserError(f"a vocabulary of {size} ids is too small; give at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SENTINELS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return with_sentinels(tokenizer)


def with_sentinels(tokenizer: Tokenizer) -> Tokenizer:
    """Adds the sentinels it lacks, by their names and ALIASES, behind its last id."""
    tokenizer.add_special_tokens([s for s in SENTINELS if id_of(tokenizer, s) is None])
    return tokenizer


def id_of(tokenizer: Tokenizer, sentinel: str) -> int | None:
    """A sentinel's id, by its own name or else by one of ALIASES; None if it has none."""
    named = (tokenizer.token_to_id(name) for name in (sentinel, *ALIASES.get(sentinel, ())))
    return next((found for found in named if found is not None), None)


def with_registers(tokenizer: Tokenizer) -> Tokenizer:
    """Adds the registers it lacks behind its last id."""
    tokenizer.add_special_tokens([r for r in REGISTERS if tokenizer.token_to_id(r) is None])
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """Reads a tokenizer.json; one from elsewhere gets our sentinels behind its ids.

    Raises:
        UserError: if it is absent or damaged.
    """
    file = paths.of(path)
    if not file.is_file():
        raise UserError(
            f"tokenizer {path} does not exist; `mmjax data build` writes one, beside imported "
            f"weights save that of their model"
        )
    try:
        text = file.read_bytes().decode()
        tokenizer = Tokenizer.from_str(text)
        whole = plain.without_holes(text)
        tokenizer = tokenizer if whole is None else Tokenizer.from_str(whole)
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"tokenizer {path} is damaged: {error}; build it again") from error
    return with_sentinels(tokenizer)


def vocabulary(tokenizer: Tokenizer, codes: int = 0, least: int = 0) -> Vocabulary:
    """The id space of a tokenizer with the sentinels, and of `codes` image codes behind it.

    It has registers where the tokenizer has them. least: of ids for text, with those that are
    nothing's: imported tables may have more rows than their tokenizer has ids.
    """
    ids = [int(id_of(tokenizer, s)) for s in SENTINELS]  # type: ignore[arg-type]
    pad, bos, eos, boi, eoi, sep, eoss = ids[:7]
    size = max(tokenizer.get_vocab_size(), least)
    found = (tokenizer.token_to_id(r) for r in REGISTERS)
    registers = tuple(i for i in found if i is not None)
    return Vocabulary(
        size + codes, pad, bos, eos, boi, eoi, sep, eoss, tuple(ids[7:]), size, codes, registers
    )


def chameleon_vocabulary() -> Vocabulary:
    """Chameleon's layout of 65,536 ids with 8,192 image codes from id 4 on (section 2.1).

    Its end of turn is `<reserved08706>`, id 8,710. CM3's sentinels, which it has no use for, take
    eight ids reserved behind that.
    """
    return Vocabulary(
        65536, pad=1, bos=0, eos=2, boi=8197, eoi=8196, sep=8710, eoss=8711,
        masks=tuple(range(8712, 8712 + MASKS)), codes=4, code_count=8192,
    )  # fmt: skip


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Text -> ids, without sentinels: their names are text like any other."""
    return encode_all(tokenizer, [text])[0]


def encode_all(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    vocab: Vocabulary | None = None,
    later: Sequence[bool] = (),
) -> list[list[int]]:
    """Texts -> ids; many at a time are faster than one by one.

    No text has an id with a meaning of its own, whatever it says and whatever the tokenizer is.

    Args:
        tokenizer, texts: what is encoded by what.
        vocab: of the model, which may give further ids a meaning.
        later: of each text, whether it stands behind something else, such as a picture.

    Raises:
        UserError: for a text that is no Unicode, such as half of a surrogate pair.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text {text[:40]!r} cannot be encoded: {error.reason}") from error
    return plain.encode(plain.plain(tokenizer, vocab, NAMES), texts, later)


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids -> text, without sentinels and without white space around it."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def lay_out(
    document: Document,
    tokenizer: Tokenizer,
    vocab: Vocabulary,
    patches: int | Sequence[int],
    shared_position: bool,
    end: bool = True,
    ends: int = 1,
) -> dict[str, Any]:
    """Writes one document out as positions; see `lay_out_all`."""
    return lay_out_all([document], tokenizer, vocab, patches, shared_position, end, ends)[0]


def lay_out_all(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    vocab: Vocabulary,
    patches: int | Sequence[int],
    shared_position: bool,
    end: bool = True,
    ends: int = 1,
    begin: bool | Sequence[bool] = True,
) -> list[dict[str, Any]]:
    """Writes documents out as positions.

    Args:
        documents: each parts, in order.
        tokenizer: theirs.
        vocab: its sentinel ids.
        patches: positions a picture takes, p; or those of each kind.
        shared_position: all patches of a picture share one position id.
        end: close with EOS; a prompt that is to be continued does not.
        ends: what the length of a last text and its EOS is a multiple of; EOS fill it up.
        begin: open with BOS, or which do, and close prompts as a tokenizer of others does; a
            conversation that a template of theirs wrote out says itself where it begins.

    Returns:
        For each document 1-D arrays of one length n: tokens, modality, image (1, 2, ... within the
        document), position, weight.

    Raises:
        TypeError: for a part that is none of Text, Image and Sentinel.
        UserError: for a sentinel that the vocabulary has not.
    """
    texts = [p.text for d in documents for p in d if isinstance(p, Text)]
    later = [follows(d, at) for d in documents for at, p in enumerate(d) if isinstance(p, Text)]
    ids = iter(encode_all(tokenizer, texts, vocab, later))
    ends *= end
    begins = [begin] * len(documents) if isinstance(begin, bool) else begin
    how = vocab, patches, shared_position, ends
    return [_positions(d, ids, *how, b) for d, b in zip(documents, begins, strict=True)]


def follows(document: Document, at: int) -> bool:
    """Whether a part stands right behind a picture or a further token of the tokenizer.

    There theirs tokenize a text as one that goes on; behind another text, or a sentinel of ours, a
    text begins anew.
    """
    before = document[at - 1] if at else None
    return isinstance(before, Image) or (isinstance(before, Sentinel) and before.id >= 0)


def sentinel_ids(part: Sentinel, vocab: Vocabulary) -> list[int]:
    """The ids that a sentinel stands for.

    Raises:
        UserError: if the vocabulary has none.
    """
    if part.id >= 0:
        return [part.id]
    named = {
        "sep": (vocab.sep,), "eos": (vocab.eos,), "mask": vocab.masks[:1],
        "registers": vocab.registers,
    }  # fmt: skip
    if part.name not in named:
        raise UserError(f"sentinel {part.name!r} is unknown; have: {', '.join(named)}")
    ids = [i for i in named[part.name] if i >= 0]
    lacks = {
        "sep": "ask in the words it was trained on, or by `chat`, which knows them",
        "eos": "leave it out",
        "mask": "train with data.spans above 0 (CM3), or leave the hole out",
        "registers": "train with data.bottleneck='registers', which adds them, or give "
        "data.bottleneck='lowres'",
    }  # fmt: skip
    if not ids:
        raise UserError(f"this model has no {part}; {lacks[part.name]}")
    return ids


def _codes(picture: Image, vocab: Vocabulary, patches: int) -> list[int]:
    """What stands at a picture's positions: its codes where they are known.

    Raises:
        UserError: for another number of codes.
    """
    if picture.coded is None or picture.coded.dtype != "int32":
        return [vocab.pad] * patches
    codes = picture.coded.array()
    if len(codes) != patches:
        raise UserError(
            f"a picture has {len(codes)} codes, but data.image and data.patch say {patches}; give "
            f"them the values `mmjax tokenize` had"
        )
    return (vocab.codes + codes).tolist()


def _positions(document, texts, vocab, patches, shared_position, ends, begin) -> dict[str, Any]:
    """One document, its texts' ids taken from the iterator `texts`; without EOS if ends is 0."""
    tokens: list[int] = []
    modality: list[int] = []
    image: list[int] = []
    position: list[int] = []
    weight: list[float] = []

    def add(ids, kind, slot, loss, step=1):
        tokens.extend(ids)
        modality.extend([kind] * len(ids))
        image.extend([slot] * len(ids))
        start = position[-1] + 1 if position else 0
        position.extend(range(start, start + len(ids)) if step else [start] * len(ids))
        weight.extend([float(loss)] * len(ids))

    if begin:  # imported models may have no BOS
        add([i for i in (vocab.bos, *vocab.opening) if i >= 0], TEXT, 0, False)
    slot = written = 0  # written: length of the last text
    for part in document:
        if isinstance(part, Text | Sentinel):
            ids = next(texts) if isinstance(part, Text) else sentinel_ids(part, vocab)
            add(ids, TEXT, 0, part.loss)
            written = written + len(ids) if part.loss else 0
        elif isinstance(part, Image):
            slot, written = slot + 1, 0
            around = [vocab.boi] if vocab.boi >= 0 else []
            add(around, TEXT, 0, part.loss)
            size = patches if isinstance(patches, int) else patches[part.kind]
            ids = _codes(part, vocab, size)
            add(ids, part.modality, slot, part.loss, step=not shared_position)
            add([vocab.eoi] * len(around), TEXT, 0, part.loss)
        else:
            raise TypeError(f"a document holds Text, Image and Sentinel, not {type(part).__name__}")
    if ends and vocab.eos >= 0:
        add([vocab.eos] * (ends - written % ends if written else 1), TEXT, 0, True)
    if begin and not ends:
        add(vocab.closing, TEXT, 0, False)
    return {
        "tokens": np.array(tokens, np.int32),
        "modality": np.array(modality, np.int32),
        "image": np.array(image, np.int32),
        "position": np.array(position, np.int32),
        "weight": np.array(weight, np.float32),
    }
