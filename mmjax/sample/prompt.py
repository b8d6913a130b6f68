"""Prompts: documents that are to be continued, one a row, padded to a common length."""

from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from mmjax.batch import Batch, Document, Image, Vocabulary
from mmjax.config import DataConfig
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.data.kinds import encoded, only_read, with_kinds
from mmjax.data.pack import Piece
from mmjax.data.pixels import decode_all
from mmjax.error import UserError
from mmjax.sample.sizes import length_of, power_of


def lay_out(
    documents: Sequence[Document],
    c: DataConfig,
    tokenizer: Tokenizer,
    vocab: Vocabulary,
    draw: bool | Sequence[bool],
    end: bool = False,
    size: int | None = None,
    numbers: Sequence[int] = (),
    begin: bool | Sequence[bool] = True,
) -> Batch:
    """Documents -> one Batch with a document a row.

    Args:
        documents: what is given. c, tokenizer, vocab: as in training.
        draw: open a picture (BOI) at the end of every row, or of which.
        end: close every row with EOS (whole documents, for scoring). Pictures are read as those of
            prompts, but for those that such a document has no text behind.
        size: patches of the picture that is opened; without it those of the default kind.
        numbers: of the prompts, in errors; without them from 1 on.
        begin: put BOS before every row, or which.

    Raises:
        UserError: for a prompt without room for what is to come, by how many tokens.
    """
    pieces: list[Piece] = []
    size = c.patches if size is None else size
    numbers = numbers or range(1, len(documents) + 1)
    documents = [_kinds(d, c, number) for number, d in zip(numbers, documents, strict=True)]
    how = c.counts, c.shared_position, end, c.ends, begin
    laid = bpe.lay_out_all(documents, tokenizer, vocab, *how)
    opened = [draw] * len(documents) if isinstance(draw, bool) else draw
    for number, document, piece, opens in zip(numbers, documents, laid, opened, strict=True):
        if opens:
            piece = _append(piece, vocab.boi)
        words = [at for at, p in enumerate(document) if not isinstance(p, Image)]
        last = max(words, default=-1) if end else len(document)
        given = [
            only_read(p) if at < last else p
            for at, p in enumerate(document)
            if isinstance(p, Image)
        ]
        piece["kinds"] = [p.kind for p in given]
        piece["pictures"] = [_decoded(p, c, number) for p in given]
        pieces.append(piece)
        need = len(piece["tokens"]) + (size if opens else 0)
        if need > c.length:
            raise UserError(
                f"prompt {number} takes {need} of {c.length} positions; "
                f"shorten it by {need - c.length} tokens"
            )
    longest = max(len(p["tokens"]) for p in pieces)
    length = length_of(longest, c.length)
    images = power_of(max([1, *(len(p["pictures"]) for p in pieces)]))
    shape = pipeline.plain_shape(c, length, images)
    return pipeline.begin_rows(shape, vocab, [[p] for p in pieces])()


def _kinds(document: Document, c: DataConfig, number: int) -> Document:
    """A prompt whose pictures have the kind of their aspect; an error names the prompt."""
    try:
        return with_kinds(c, document)
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error


def _decoded(picture: Image, c: DataConfig, number: int):
    """A prompt's picture as pixels, here rather than by a worker, so that an error names it."""
    try:
        return decode_all([encoded(c, picture)])[0]
    except UserError as error:
        raise UserError(f"prompt {number}: {error}") from error


def _append(piece, token: int):
    """A laid-out document with one more text token."""
    last = {"tokens": token, "modality": 0, "image": 0, "position": piece["position"][-1] + 1}
    last["weight"] = 0.0
    return {k: np.append(piece[k], np.asarray(x, piece[k].dtype)) for k, x in last.items()}
