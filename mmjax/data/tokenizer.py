"""Byte-level BPE over captions, and documents as positions of one id space.

Ids are `sentinels | text`; the sentinels come first, in the order of `SENTINELS`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mmjax.batch import IMAGE, TEXT, Document, Image, Text, Vocabulary
from mmjax.error import UserError

SENTINELS = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>")


def train(texts: Iterable[str], size: int) -> Tokenizer:
    """Trains a byte-level BPE of at most `size` ids, sentinels included, on texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SENTINELS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(path: str | Path) -> Tokenizer:
    """Reads a tokenizer.json.

    Raises:
        UserError: if it is absent, damaged, or lacks a sentinel.
    """
    if not Path(path).is_file():
        raise UserError(f"tokenizer {path} does not exist; `mmjax data build` writes one")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"tokenizer {path} is damaged: {error}; build it again") from error
    vocabulary(tokenizer)
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Size and sentinel ids of a tokenizer.

    Raises:
        UserError: if a sentinel is missing.
    """
    ids = {s: tokenizer.token_to_id(s) for s in SENTINELS}
    missing = [s for s, i in ids.items() if i is None]
    if missing:
        raise UserError(f"tokenizer lacks {' '.join(missing)}; train it with `mmjax data build`")
    pad, bos, eos, boi, eoi = (int(i) for i in ids.values() if i is not None)
    return Vocabulary(tokenizer.get_vocab_size(), pad, bos, eos, boi, eoi)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Text -> ids, without sentinels (a sentinel's name inside the text is plain text)."""
    # Set at every call because neither a tokenizer.json nor a pickle keeps it.
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids -> text, without sentinels and without white space around it."""
    return tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()


def lay_out(
    document: Document,
    tokenizer: Tokenizer,
    vocab: Vocabulary,
    patches: int,
    shared_position: bool,
    end: bool = True,
) -> dict[str, np.ndarray]:
    """Writes a document out as positions.

    Args:
        document: parts, in order.
        tokenizer: its BPE.
        vocab: its sentinel ids.
        patches: positions a picture takes, p.
        shared_position: all patches of a picture share one position id.
        end: close with EOS; a prompt that is to be continued does not.

    Returns:
        1-D arrays of one length n: tokens, modality, image (1, 2, ... within the document),
        position, weight.
    """
    tokens, modality, image, position, weight = [vocab.bos], [TEXT], [0], [0], [0.0]

    def add(ids, kind, slot, places, loss):
        tokens.extend(ids)
        modality.extend([kind] * len(ids))
        image.extend([slot] * len(ids))
        position.extend(places)
        weight.extend([float(loss)] * len(ids))

    def follow(count):
        start = position[-1] + 1
        return list(range(start, start + count))

    slot = 0
    for part in document:
        if isinstance(part, Text):
            ids = encode(tokenizer, part.text)
            add(ids, TEXT, 0, follow(len(ids)), part.loss)
        elif isinstance(part, Image):
            slot += 1
            add([vocab.boi], TEXT, 0, follow(1), part.loss)
            places = follow(1) * patches if shared_position else follow(patches)
            add([vocab.pad] * patches, IMAGE, slot, places, part.loss)
            add([vocab.eoi], TEXT, 0, follow(1), part.loss)
        else:
            raise TypeError(f"a document holds Text and Image, not {type(part).__name__}")
    if end:
        add([vocab.eos], TEXT, 0, follow(1), True)
    return {
        "tokens": np.array(tokens, np.int32),
        "modality": np.array(modality, np.int32),
        "image": np.array(image, np.int32),
        "position": np.array(position, np.int32),
        "weight": np.array(weight, np.float32),
    }
