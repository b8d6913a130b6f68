"""From requests to parts of text and pictures, a span behind each (the dial); the host's side."""

from collections.abc import Sequence

import jax
import numpy as np

from mmjax.config import SampleConfig
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.mesh import put
from mmjax.run import Run
from mmjax.sample.dial import Options, make
from mmjax.sample.prompt import lay_out
from mmjax.sample.request import Request
from mmjax.sample.talk import ROWS, Compiled, draw_ids, draw_signals


def answer(
    run: Run, params, compiled: Compiled, requests: Sequence[Request], sample: SampleConfig, keys
) -> list[list]:
    """Answers every request; -> for each its one new part, a string or a uint8 [h, w, 3] array.

    Args:
        run, params: the model. compiled: compiles a function once. requests: what is asked.
        sample: `text` is the length that is written, cut at EOS; `steps` are those of each patch,
            and together those of a text or of codes; temperature is all that is chosen of a Choice.
        keys: [n], one a request.

    Raises:
        UserError: for a prompt that leaves no room, or has its slot before its end.
    """
    out: list[list] = [[] for _ in requests]
    for number, request in enumerate(requests, start=1):
        if request.infill:
            raise UserError(f"prompt {number} has a slot before its end; put the slot last")
    for draws in (False, True):
        mine = [n for n, request in enumerate(requests) if request.draw is draws]
        for first in range(0, len(mine), ROWS):
            some = mine[first : first + ROWS]
            found = _answers(run, params, compiled, [requests[n] for n in some], sample, keys, some)
            for n, part in zip(some, found, strict=True):
                out[n] = [part]
    return out


def options_of(run: Run, draws: bool, sample: SampleConfig) -> Options:
    """How spans are made by a run's model."""
    shared, parts = run.experiment.data.shared_position, run.model.parts
    if not draws:
        alone = sample.words.temperature
        return Options("text", sample.text, sample.steps, alone, sample.guidance, shared)
    kind = "codes" if parts.vocabulary.code_count else "patches"
    heat = sample.codes.temperature
    return Options(kind, parts.config.tokens, sample.steps, heat, sample.guidance, shared)


def _answers(run: Run, params, compiled, requests, sample, keys, number) -> list:
    """One batch of requests of one kind."""
    parts, c, tokenizer = run.model.parts, run.experiment.data, run.tokenizer
    draws = requests[0].draw
    rows = lay_out([r.document for r in requests], c, tokenizer, draws)
    index = np.arange(len(requests) + -len(requests) % run.rules.split("batch"))
    index = np.minimum(index, len(requests) - 1)
    asked = put(jax.tree.map(lambda x: np.asarray(x)[index], rows), run.rules)
    options = options_of(run, draws, sample)
    made, _ = compiled(make, options=options)(params, asked, keys[np.asarray(number)[index]])
    if draws and options.discrete:
        made = compiled(draw_codes)(params, made)
    elif draws:
        made = compiled(draw_patches)(params, made)
    found = np.asarray(made)[: len(requests)]
    return list(found) if draws else [written(row, parts.vocabulary, tokenizer) for row in found]


def draw_codes(parts, params, tokens):
    """[n, p] tokens -> uint8 [n, h, w, 3]."""
    return draw_ids(parts.base, params, tokens - parts.vocabulary.codes)


def draw_patches(parts, params, signals):
    """[n, h, w, c] finished signals -> uint8 [n, h, w, 3]."""
    return draw_signals(parts.base, params, signals)


def written(tokens, vocabulary, tokenizer) -> str:
    """The words before the first EOS."""
    ids = tokens.tolist()
    ids = ids[: ids.index(vocabulary.eos)] if vocabulary.eos in ids else ids
    return bpe.decode(tokenizer, ids)
