"""From requests to parts of text and pictures, a span behind each (the dial); the host's side."""

from collections.abc import Sequence

import numpy as np

from mmjax import watch
from mmjax.batch import Batch
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.mesh import put
from mmjax.run import Run
from mmjax.sample import sizes
from mmjax.sample.dial import Options, chart_of, follow, plan_of
from mmjax.sample.flow import solver_of
from mmjax.sample.prompt import lay_out
from mmjax.sample.request import Request, turns
from mmjax.sample.talk import ROWS, Callback, Compiled, Wish, draw_ids, draw_signals
from mmjax.sample_config import SampleConfig


def generate(
    run: Run,
    params,
    compiled: Compiled,
    requests: Sequence[Request],
    wish: Wish,
    sample: SampleConfig,
    keys,
    stream: Callback | None = None,
) -> list[list]:
    """`answer`, of one text or one image each.

    Raises:
        UserError: if more is asked for; see also `answer`.
    """
    if stream or wish.pictures:
        raise UserError("a dial writes one text or one picture, whole; give no stream, pictures")
    return answer(run, params, compiled, requests, sample, keys)


def answer(
    run: Run, params, compiled: Compiled, requests: Sequence[Request], sample: SampleConfig, keys
) -> list[list]:
    """Answers every request; -> for each its one new part, a string or a uint8 [h, w, 3] array.

    Args:
        run, params: the model. compiled: compiles a function once. requests: what is asked.
        sample: `text` is the length that is written, cut at EOS; `steps` are those of each patch,
            and together those of a text or of codes, which have no solver; temperature is all that
            is chosen of a Choice.
        keys: [n], one a request.

    Raises:
        UserError: for a prompt that leaves no room, or has its slot before its end.
    """
    out: list[list] = [[] for _ in requests]
    for number, request in enumerate(requests, start=1):
        if request.infill:
            raise UserError(f"prompt {number} has a slot before its end; put the slot last")
    parts: list[list[int]] = []  # numbers of requests that are answered together
    for draws in (False, True):
        mine = [n for n, request in enumerate(requests) if request.draw is draws]
        most = min(ROWS, at_once(run, options_of(run, draws, sample)))
        parts += [mine[first : first + most] for first in range(0, len(mine), most)]
    laid = [_rows(run, [requests[n] for n in some], sample, some) for some in parts]
    batches = list(zip(parts, laid, strict=True))
    for some, rows in watch.pieces(batches, "batches of prompts"):
        draws, mine = requests[some[0]].draw, keys[np.array(some)]
        found = _answers(run, params, compiled, draws, rows, sample, mine)
        for n, part in zip(some, found, strict=True):
            out[n] = [part]
    return out


def _rows(run: Run, requests: Sequence[Request], sample: SampleConfig, numbers: list[int]) -> Batch:
    """Requests of one kind as rows; numbers: of them, from 0 on."""
    c, draws = run.experiment.data, requests[0].draw
    named = [n + 1 for n in numbers]
    documents, vocabulary = [turns(r) for r in requests], run.model.parts.vocabulary
    rows = lay_out(documents, c, run.tokenizer, vocabulary, draws, numbers=named)
    if not draws:
        text = length(run, sample)
        for number, taken in zip(named, (rows.segment > 0).sum(1), strict=True):
            if taken + text > c.length:
                raise UserError(
                    f"prompt {number} and text={text} tokens take {taken + text} of {c.length} "
                    f"positions; ask for less text, or shorten the prompt"
                )
    return rows


def length(run: Run, sample: SampleConfig) -> int:
    """Tokens of a text: as many as are asked for, and on to a length that training had."""
    return sample.text + -sample.text % run.experiment.data.ends


def options_of(run: Run, draws: bool, sample: SampleConfig) -> Options:
    """How spans are made by a run's model; only a picture's tokens may share a position."""
    parts = run.model.parts
    if not draws:
        scale, heat = sample.text_guidance, sample.words.temperature
        return Options("text", length(run, sample), sample.steps, heat, scale, shared=False)
    kind = "codes" if parts.vocabulary.code_count else "patches"
    shared, heat = run.experiment.data.shared_position, sample.codes.temperature
    solver = solver_of(sample) if kind == "patches" else None
    return Options(kind, parts.config.tokens, sample.steps, heat, sample.guidance, shared, solver)


def at_once(run: Run, options: Options) -> int:
    """How many rows go at once: a step has the logits of all that it runs, of guided ones twice."""
    if not options.discrete:
        return ROWS
    parts = run.model.parts
    cost = plan_of(parts.config, options).rows * parts.vocabulary.size * (1 + options.guided)
    return sizes.at_once(cost, sizes.LOGITS, run.rules.split("batch"))


def _answers(run: Run, params, compiled, draws: bool, rows: Batch, sample, keys) -> list:
    """One batch of requests of one kind."""
    parts, count = run.model.parts, len(keys)
    size = sizes.rows_of(count, run.rules.split("batch"))
    asked = put(sizes.padded(rows, size), run.rules)
    own = sizes.keys_at(keys, np.minimum(np.arange(size), count - 1))
    options = options_of(run, draws, sample)
    found = plan_of(parts.config, options)
    chart = chart_of(parts.config, options, found, sizes.power_of(len(found.active), 16))
    made = compiled(follow, rows=found.rows)(params, asked, own, chart, options)
    if draws and options.discrete:
        made = compiled(draw_codes)(params, made)
    elif draws:
        made = compiled(draw_patches)(params, made)
    answers = np.asarray(made)[:count]
    if draws:
        return list(answers)
    return [written(row, parts.vocabulary, run.tokenizer) for row in answers]


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
