"""From requests to text and pictures with the dial; the host's side."""

from collections.abc import Sequence

import jax
import numpy as np

from mmjax.config import SampleConfig
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.mesh import put
from mmjax.run import Run
from mmjax.sample import talk
from mmjax.sample.dial import Options, make
from mmjax.sample.prompt import lay_out
from mmjax.sample.request import Request
from mmjax.sample.talk import ROWS, Compiled


def answer(
    run: Run, params, compiled: Compiled, requests: Sequence[Request], c: SampleConfig, keys
) -> list[list]:
    """Answers every request with one span, a picture or `c.text` tokens up to EOS.

    Args:
        run, params: the model. compiled: compiles a function once. keys: [n], one a request.

    Returns:
        For each a list of one part, a string or uint8 [h, w, 3].

    Raises:
        UserError: for a prompt without room, or with its slot before its end.
    """
    for number, request in enumerate(requests, start=1):
        if request.infill:
            raise UserError(f"prompt {number} has a slot before its end; put the slot last")
    out: list[list] = [[] for _ in requests]
    for draw in (True, False):
        alike = [i for i, r in enumerate(requests) if r.draw is draw]
        for first in range(0, len(alike), ROWS):
            some = alike[first : first + ROWS]
            documents = [requests[i].document for i in some]
            made = _made(run, params, compiled, documents, draw, c, keys[np.array(some)])
            for i, part in zip(some, made, strict=True):
                out[i] = [part]
    return out


def _made(run: Run, params, compiled, documents, draw: bool, c: SampleConfig, keys) -> list:
    """A part for each document, all of one kind."""
    parts, data = run.model.parts, run.experiment.data
    v, codes = parts.vocabulary, parts.vocabulary.code_count > 0
    kind = ("codes" if codes else "patches") if draw else "text"
    options = Options(
        kind,
        parts.config.tokens if draw else c.text,
        c.steps,
        (c.codes if draw else c.words).temperature,
        c.guidance if draw else 1.0,
        data.shared_position,
    )
    rows = lay_out(documents, data, run.tokenizer, draw)
    count = len(documents) + -len(documents) % run.rules.split("batch")
    index = np.minimum(np.arange(count), len(documents) - 1)
    rows = put(jax.tree.map(lambda x: np.asarray(x)[index], rows), run.rules)
    made, _ = compiled(make, options=options)(params, rows, keys[index])
    if draw:
        return list(np.asarray(compiled(to_pixels)(params, made))[: len(documents)])
    texts = []
    for row in np.asarray(made)[: len(documents)]:
        ends = np.flatnonzero(row == v.eos)
        texts.append(bpe.decode(run.tokenizer, row[: ends[0]] if len(ends) else row))
    return texts


def to_pixels(parts, params, made):
    """Codes' tokens [n, p], or signals [n, h, w, c] -> uint8 [n, h, w, 3]."""
    if parts.vocabulary.code_count:
        return talk.draw_ids(parts.base, params, made - parts.vocabulary.codes)
    return talk.draw_signals(parts.base, params, made)
