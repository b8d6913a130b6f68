"""From requests to parts of text and pictures by insertion (OneFlow); the host's side."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmjax import watch
from mmjax.batch import Vocabulary
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.mesh import put
from mmjax.run import Run
from mmjax.sample import oneflow, sizes
from mmjax.sample.oneflow import Options, Plan
from mmjax.sample.prompt import lay_out
from mmjax.sample.request import Request
from mmjax.sample.talk import ROWS, Callback, Compiled, Wish, draw_signals
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
    """`answer` with the options that follow from `sample`.

    Raises:
        UserError: if a stream is asked for; see also `answer`.
    """
    if stream:
        raise UserError("text of a oneflow comes in no order; give no stream")
    shared = run.experiment.data.shared_position
    how = Options(sample.steps, 0, 0, sample.guidance, sample.text_guidance, shared)
    return answer(run, params, compiled, requests, wish, how, keys)


def answer(
    run: Run,
    params,
    compiled: Compiled,
    requests: Sequence[Request],
    wish: Wish,
    options: Options,
    keys,
) -> list[list]:
    """Answers every request; -> for each its new parts, strings and uint8 [h, w, 3] arrays.

    Args:
        run, params: the model. compiled: compiles a function once.
        requests: what is asked. wish: most tokens and pictures of those that do not draw.
        options: but for length and slots, which follow from what is asked. keys: [n], one each.

    Raises:
        UserError: for a prompt that leaves no room, or has its slot before its end.
    """
    for number, request in enumerate(requests, start=1):
        if request.infill:
            raise UserError(f"prompt {number} has a slot before its end; put the slot last")
    out: list[list] = []
    c, tokenizer, vocabulary = run.experiment.data, run.tokenizer, run.model.parts.vocabulary
    # A step has the logits of whole rows, of guided ones twice.
    cost = c.length * vocabulary.size * (1 + options.guided)
    most = min(ROWS, sizes.at_once(cost, sizes.LOGITS, run.rules.split("batch")))
    parts = [slice(first, first + most) for first in range(0, len(requests), most)]
    laid = []
    for part in parts:
        some = requests[part]
        numbers = range(part.start + 1, part.start + 1 + len(some))
        draws = [r.draw for r in some]
        documents = [r.document for r in some]
        laid.append(lay_out(documents, c, tokenizer, vocabulary, draws, numbers=numbers))
    batches = list(zip(parts, laid, strict=True))
    for part, rows in watch.pieces(batches, "prompts", ROWS, len(requests)):
        out += _answers(run, params, compiled, requests[part], rows, wish, options, keys[part])
    return out


def _answers(run: Run, params, compiled, requests, rows, wish: Wish, options, keys) -> list[list]:
    """One batch of requests."""
    c, p = run.experiment.data, run.model.parts.config.tokens
    draws = np.array([r.draw for r in requests])
    taken = (rows.segment > 0).sum(1)
    most = np.minimum(taken + wish.text + wish.pictures * (p + 2), c.length)
    room = np.where(draws, taken + p + 1, most).astype(np.int32)
    pictures = np.where(draws, 0, wish.pictures).astype(np.int32)
    slots = int((rows.image.max(1) + np.maximum(pictures, 1)).max())
    length = max(sizes.length_of(int(room.max()), c.length), rows.tokens.shape[1])
    slots = sizes.power_of(max(slots, rows.pixels.shape[1]))
    chosen = replace(options, length=length, slots=slots)
    size = sizes.rows_of(len(requests), run.rules.split("batch"))
    planned = Plan(draws, pictures, room, np.where(draws, 0, wish.text).astype(np.int32))
    asked = put(sizes.padded((rows, planned), size), run.rules)
    own = sizes.keys_at(keys, np.minimum(np.arange(size), len(requests) - 1))
    canvas = compiled(oneflow.generate)(params, *asked, own, chosen)
    made = np.asarray(canvas.x)
    signals = compiled(draw_signals)(params, made.reshape(-1, *made.shape[2:]))
    pixels = np.asarray(signals).reshape(*made.shape[:2], *signals.shape[1:])
    tokens, image, given = (np.asarray(x) for x in (canvas.tokens, canvas.image, canvas.given))
    v, tokenizer = run.model.parts.vocabulary, run.tokenizer
    return [
        [part if isinstance(part, str) else pixels[n, part - 1] for part in found]
        for n in range(len(requests))
        for found in [split(tokens[n], image[n], given[n], v, tokenizer)]
    ]


def split(tokens, image, given, v: Vocabulary, tokenizer) -> list[str | int]:
    """A full canvas's row -> what is new in it, strings and slots from 1 on, in order; [l] all."""
    found: list[str | int] = []
    words: list[int] = []
    for j, token in enumerate([*tokens.tolist(), v.eos]):
        new = j == len(tokens) or not given[j]
        if new and token not in v.sentinels:
            words.append(token)
        elif words:
            text = bpe.decode(tokenizer, words)
            found += [text] if text else []
            words = []
        if new and token == v.boi:
            found.append(int(image[j + 1]))
    return found
