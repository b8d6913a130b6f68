"""From requests to parts of text and pictures through the interleaved engine; the host's side."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from mmjax import watch
from mmjax.batch import Batch, Vocabulary
from mmjax.codecs import autoencoder
from mmjax.config import DataConfig
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.mesh import put
from mmjax.models import abilities_of
from mmjax.models.family import Reader
from mmjax.run import Run
from mmjax.sample import engine, prompt, sizes
from mmjax.sample.engine import Options, Plan
from mmjax.sample.flow import solver_of
from mmjax.sample.request import Request
from mmjax.sample_config import SampleConfig

ROWS = 64  # prompts in one compiled batch, at most
DECODED = 16  # pictures at a time, at most
STREAMED = 8  # tokens between two calls of a streaming callback

Compiled = Callable[..., Callable]  # (function, **static) -> jitted function(params, *arrays)
Callback = Callable[[int, str], None]  # (number of the prompt, its text so far)


class Wish(NamedTuple):
    """What is to be made: most tokens of text, and most pictures, where none is asked for.

    stop: after so many such pictures an answer ends; 0 lets words follow the last.
    """

    text: int
    pictures: int
    stop: int = 0


def rows_of(requests: Sequence[Request], c: DataConfig, run: Run, first: int = 1) -> Batch:
    """Prompts as rows; those that ask for a picture end in BOI. `first`: the first one's number.

    Raises:
        UserError: for one that leaves no room, or a hole this model was not trained to fill.
    """
    numbers = range(first, first + len(requests))
    for number, request in zip(numbers, requests, strict=True):
        if request.infill and c.spans == 0.0:
            raise UserError(
                f"prompt {number} has a slot before its end, which takes a model trained with "
                f"data.spans above 0 (CM3); put the slot last"
            )
    draw = [r.draw for r in requests]
    size = run.model.parts.config.tokens
    documents = [r.document for r in requests]
    vocabulary = run.model.parts.vocabulary
    begin = [r.begin for r in requests]
    return prompt.lay_out(
        documents, c, run.tokenizer, vocabulary, draw, size=size, numbers=numbers, begin=begin
    )


def plan(
    requests: Sequence[Request], rows: Batch, wish: Wish, length: int, size: int, parts
) -> Plan:
    """What is asked of each row; size: `engine.turns` of a picture."""
    v, codes = parts.vocabulary, parts.vocabulary.code_count > 0
    left = length + 1 - (np.asarray(rows.segment) > 0).sum(1)
    free = np.minimum([0 if r.draw else wish.text for r in requests], left)
    made = [size + 1 if r.draw else wish.pictures * (size + 2) for r in requests]
    limit = np.add(free, made)
    if codes:  # every turn takes a position
        limit = np.minimum(limit, left)
    more = max((len(r.stops) for r in requests), default=0)
    ends = []
    for r in requests:
        own = (v.eoss if r.infill else v.eos, v.sep if r.answer else v.eos, *v.stops, *r.stops)
        ends.append([*own, *[v.eos] * (more - len(r.stops))])
    columns = (
        [size + 1 if r.draw else 0 for r in requests],
        [v.eoi] * len(requests),
        [0 if r.draw else wish.pictures for r in requests],
        [1 if r.draw else wish.stop for r in requests],
        limit,
        [length] * len(requests),
        free,
        ends,
    )
    return Plan(*(np.asarray(column, np.int32) for column in columns))  # type: ignore[arg-type]


def room(
    requests: Sequence[Request], rows: Batch, wish: Wish, length: int, parts: Reader
) -> tuple[int, int]:
    """(Most new positions, most new pictures) of a row, which never grows beyond `length`.

    Of few sizes: positions behind the padding of the prompts.
    """
    pictures = max(1 if r.draw else wish.pictures for r in requests)
    text = max(0 if r.draw else wish.text for r in requests)
    held = rows.tokens.shape[1]
    most = int((rows.segment > 0).sum(1).max()) + text + pictures * (parts.config.tokens + 2)
    total = sizes.length_of(min(most, length + 1), length + 1)
    return max(total - held, 1), sizes.power_of(pictures)


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
    """`talk` with the options that follow from `sample` for what the model can draw."""
    data, codes = run.experiment.data, run.model.parts.vocabulary.code_count > 0
    how = Options(0, 0, 0, sample.words, sample.codes, masked=data.spans > 0)
    how = replace(how, guidance=sample.guidance)
    if codes:
        how = replace(
            how,
            image_guidance=sample.image_guidance,
            contrast=sample.contrast,
            contrast_k=sample.contrast_k,
        )
    elif abilities_of(run.experiment.family, run.experiment.model).draws:
        how = replace(how, solver=solver_of(sample), shared=data.shared_position)
    else:
        how = replace(how, guidance=1.0)
    return talk(run, params, compiled, requests, wish, how, keys, stream)


def talk(
    run: Run,
    params,
    compiled: Compiled,
    requests: Sequence[Request],
    wish: Wish,
    options: Options,
    keys,
    stream: Callback | None = None,
) -> list[list]:
    """Continues every request; -> for each its new parts, strings and uint8 [h, w, 3] arrays.

    Args:
        run, params: the model. compiled: compiles a function of the engine once.
        requests: what is asked. wish: how much.
        options: but for the sizes of a row, which follow from what is asked.
        keys: [n], one a request. stream: called now and then with a row's text so far, if it grew.
    """
    c, out = run.experiment.data, []
    parts = [slice(first, first + ROWS) for first in range(0, len(requests), ROWS)]
    # All are laid out before any is answered: a mistake in the last costs nothing.
    laid = [rows_of(requests[part], c, run, part.start + 1) for part in parts]
    batches = list(zip(parts, laid, strict=True))
    for part, rows in watch.pieces(batches, "prompts", ROWS, len(requests)):
        heard = None if stream is None else _shift(stream, part.start)
        some = requests[part]
        state = _advance(run, params, compiled, some, rows, wish, options, keys[part], heard)
        out += _parts(run, params, compiled, some, state)
    return out


def _shift(stream: Callback, first: int) -> Callback:
    return lambda number, text: stream(first + number, text)


def _advance(
    run: Run, params, compiled, requests, rows, wish, options, keys, stream
) -> engine.State:
    """A batch of requests, carried out."""
    c, parts = run.experiment.data, run.model.parts
    asked = plan(requests, rows, wish, c.length, engine.turns(parts, options), parts)
    columns, pictures = room(requests, rows, wish, c.length, parts)
    # Rows stop at their own limits: these are sizes, of which there are few.
    count = sizes.power_of(int(asked.limit.max()), 64)
    chosen = replace(options, count=count, room=columns, pictures=pictures)
    size = sizes.rows_of(len(requests), run.rules.split("batch"))
    rows, asked = put(sizes.padded((rows, asked), size), run.rules)
    keys = sizes.keys_at(keys, np.minimum(np.arange(size), len(requests) - 1))
    state = compiled(engine.begin)(params, rows, asked, chosen)
    go = compiled(engine.advance, donate=(1,))  # one cache, not two
    step = chosen.count if stream is None else STREAMED
    told: dict[int, str] = {}
    ids = _ids(run, requests)
    for until in range(step, chosen.count + step, step):
        state = go(params, state, asked, keys, np.int32(until), chosen)
        if stream is None:
            break
        known = np.asarray(state.tokens)[: len(requests)]
        for number, row in enumerate(known):
            text = _text(run, ids, row[:until])
            if told.get(number) != text:
                stream(number, text)
            told[number] = text
        if bool(state.done.all()):
            break
    return state


def _ids(run: Run, requests: Sequence[Request]) -> Vocabulary:
    """The model's vocabulary with what ends the answers of requests among its ends."""
    v = run.model.parts.vocabulary
    return replace(v, stops=(*v.stops, *{i for r in requests for i in r.stops}))


def _text(run: Run, v: Vocabulary, tokens) -> str:
    """The words among tokens; a picture is shown as its place."""
    return " ".join(
        "[picture]" if isinstance(part, np.ndarray) else part
        for part in split(tokens, v, run.model.parts.config.tokens, run.tokenizer)
    )


def split(tokens, vocabulary: Vocabulary, size: int, tokenizer) -> list:
    """New tokens -> strings and pictures, in order; ends and padding are left out.

    A picture is its `size` codes [p]; where pictures are denoised, its number in the row, [].
    One cut short, as it may be while it is being drawn, is left out.
    """
    v = vocabulary
    found: list[str | np.ndarray] = []
    words: list[int] = []
    codes: list[int] = []
    drawn = 0
    for token in [*np.asarray(tokens).tolist(), v.eos]:
        if v.codes <= token < v.codes + v.code_count:
            codes.append(token - v.codes)
        elif token not in v.sentinels:
            words.append(token)
        if (codes or token in v.sentinels) and words:
            text = bpe.decode(tokenizer, words)
            found += [text] if text else []
            words = []
        if codes and len(codes) == size:
            found.append(np.array(codes, np.int32))
            codes = []
        if token == v.eoi and not v.code_count:
            found.append(np.array(drawn))
            drawn += 1
    return found


def draw_ids(parts, params, ids):
    """[n, p] codes -> uint8 [n, h, w, 3]."""
    return autoencoder.decode_ids(parts.codec, params["codec"], ids)


def draw_signals(parts, params, signals):
    """[n, h, w, c] finished signals -> uint8 [n, h, w, 3]."""
    return parts.picture(params, signals)


def in_groups(function: Callable, x: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """function(x) row by row, of at most so many rows at a time, and few different numbers."""
    for first in range(0, len(x), most):
        some = x[first : first + most]
        count = min(sizes.rows_of(len(some)), most)
        index = np.minimum(np.arange(count), len(some) - 1)
        yield from np.asarray(function(some[index]))[: len(some)]


def _parts(run: Run, params, compiled, requests, state: engine.State) -> list[list]:
    """What the rows of requests have made -> parts, their pictures decoded."""
    parts, count = run.model.parts, len(requests)
    rows = np.asarray(state.tokens)[:count]
    v, size = _ids(run, requests), parts.config.tokens
    found = [split(row, v, size, run.tokenizer) for row in rows]
    to_pixels, made = draw_ids, None
    if state.canvas is not None:
        to_pixels, made = draw_signals, np.asarray(state.canvas.made)
    drawn = [
        part if made is None else made[row, int(part)]
        for row, some in enumerate(found)
        for part in some
        if isinstance(part, np.ndarray)
    ]
    pictures: Iterator[np.ndarray] = iter(())
    if drawn:
        codec = getattr(parts, "codec", None)
        most = min(DECODED, autoencoder.at_a_time(codec.config)) if codec else DECODED
        pictures = in_groups(partial(compiled(to_pixels), params), np.stack(drawn), most)
    return [[next(pictures) if isinstance(p, np.ndarray) else p for p in some] for some in found]
