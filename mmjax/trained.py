"""A trained model in the hand: `model = mmjax.load(workdir)`, then `generate`, `score`, `embed`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from mmjax import checkpoint
from mmjax.batch import Batch, Document
from mmjax.config import Choice
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.mesh import put
from mmjax.models import Params
from mmjax.models.family import merge, split
from mmjax.run import Run, directory, on_this_machine, prepare, read_config
from mmjax.sample import decode, engine, prompt, request, talk
from mmjax.sample.request import IMAGE

SCALES = ("guidance", "image_guidance", "contrast")  # options that are numbers of their own


@dataclass
class Trained:
    """Weights of a run and what is needed to use them.

    Attributes:
        run: the experiment's parts. params: averaged weights where the run kept them.
        step: of the checkpoint.
    """

    run: Run
    params: Params
    step: int
    _compiled: dict = field(default_factory=dict)

    def call(self, function: Callable, rows: Batch, *keys, extra=(), **static) -> np.ndarray:
        """Runs function(parts, params, rows, *keys, *extra, **static), compiled once.

        Args:
            function: pure, one answer a row; see `sample.decode`.
            rows: host rows; padded to divide over the devices, and the answer cut again.
            keys: PRNG keys, each split into one a row. extra: further arrays.
            static: hashable options.
        """
        count = len(rows.tokens)
        padded = prompt.pad_rows(rows, self.run.rules.split("batch"))
        drawn = [jax.random.split(key, len(padded.tokens)) for key in keys]
        rows = put(padded, self.run.rules)
        made = self.compiled(function, **static)(self.params, rows, *drawn, *extra)
        return np.asarray(made)[:count]

    def compiled(self, function: Callable, **static) -> Callable:
        """function(parts, params, ..., **static) as a jitted function of (params, ...)."""
        at = (function, tuple(sorted(static.items())))
        if at not in self._compiled:
            self._compiled[at] = jax.jit(partial(function, self.run.model.parts, **static))
        return self._compiled[at]

    def draw(self, documents: Sequence[Document], seed: int = 0, **options) -> np.ndarray:
        """Draws a picture behind each document; -> [n, h, w, 3] uint8. Options as in `generate`."""
        if self.writes_codes:
            return np.stack(self.generate([[*d, IMAGE] for d in documents], seed, **options))
        self.check_options(options)
        e = self.run.experiment
        rows = prompt.lay_out(documents, e.data, self.run.tokenizer, draw=True)
        return self.call(
            decode.draw,
            rows,
            jax.random.key(seed),
            shared=e.data.shared_position,
            steps=options.get("steps", e.sample.steps),
            guidance=options.get("guidance", e.sample.guidance),
        )

    def write(self, documents: Sequence[Document], seed: int = 0, **options) -> list[str]:
        """Writes text behind each document, until it ends or `text` tokens; as in `generate`."""
        if self.writes_codes:
            return self.generate(documents, seed, **options)
        self.check_options(options)
        e = self.run.experiment
        rows = prompt.lay_out(documents, e.data, self.run.tokenizer, draw=False)
        tokens = self.call(
            decode.write,
            rows,
            jax.random.key(seed),
            count=options.get("text", e.sample.text),
            temperature=options.get("temperature", e.sample.words.temperature),
        )
        eos = self.run.model.parts.vocabulary.eos
        ends = [np.flatnonzero(row == eos) for row in tokens]
        cut = [row[: end[0]] if len(end) else row for row, end in zip(tokens, ends, strict=True)]
        return [bpe.decode(self.run.tokenizer, row) for row in cut]

    @property
    def writes_codes(self) -> bool:
        """Whether pictures are written as tokens, by the interleaved engine."""
        return self.run.model.parts.vocabulary.code_count > 0

    def check_options(self, options) -> None:
        """Checks that the model generates, and knows the options of `generate`.

        Raises:
            UserError: naming the one that is unknown or out of range.
        """
        e = self.run.experiment
        if e.family == "codec":
            raise UserError("a codec neither reads, writes nor draws; load a model that does")
        named = {"text", "temperature", "guidance", "steps"}
        if self.writes_codes:
            choices = [f.name for f in fields(Choice)]
            named |= {*SCALES, *choices, *(f"image_{n}" for n in choices)}
        if unknown := set(options) - named:
            raise UserError(
                f"{min(unknown)} is no option of a {e.family}; have: {', '.join(sorted(named))}"
            )
        replace(e.sample, **{n: options[n] for n in ("text", "steps", *SCALES) if n in options})

    def generate(
        self,
        prompts: Sequence,
        seed: int | Sequence[int] = 0,
        pictures: int = 0,
        stream: talk.Callback | None = None,
        **options,
    ) -> list:
        """Continues prompts: those that end in `mmjax.IMAGE` with a picture, others with text.

        Args:
            prompts: each a list of text, picture paths (pathlib.Path) or bytes, and perhaps a slot:
                a last IMAGE, or, for models trained on CM3's objective, IMAGE or TEXT where
                something is missing.
            seed: of noise and text: one for all, or one a prompt. A prompt's result depends on its
                seed and place alone, not on its neighbours.
            pictures: how many pictures a prompt without IMAGE may be answered with, beside text.
            stream: called now and then with a prompt's number and its text so far.
            options: override the experiment's `sample` group: steps, guidance, image_guidance,
                contrast, text (most tokens); temperature, top_k, top_p, min_p, repetition (of
                text), and the same with `image_` before them (of image codes).

        Returns:
            For each prompt a uint8 array [h, w, 3] or a string; with `pictures` a list of both, in
            the order they were made.

        Raises:
            UserError: for a prompt that cannot be continued, or an unknown option.
        """
        self.check_options(options)
        asked = [request.parse(p) for p in prompts]
        if self.writes_codes:
            return self._interleave(asked, seed, pictures, stream, options)
        family = self.run.experiment.family
        if any(r.infill for r in asked):
            raise UserError(f"mmjax.IMAGE must be the last part of a prompt to a {family} model")
        if pictures or stream:
            raise UserError(f"a {family} model neither interleaves freely nor streams")
        if not isinstance(seed, int):
            raise UserError(f"seed={seed} must be one number for this family")
        out: list = [None] * len(asked)
        for draw in (True, False):
            index = [i for i, r in enumerate(asked) if r.draw is draw]
            if index:
                do = self.draw if draw else self.write
                made = do([asked[i].document for i in index], seed, **options)
                for i, result in zip(index, made, strict=False):
                    out[i] = result
        return out

    def _interleave(self, asked, seed, pictures, stream, options) -> list:
        sample = self.run.experiment.sample
        choices = [f.name for f in fields(Choice)]
        words, codes = (
            replace(base, **{n: options[p + n] for n in choices if p + n in options})
            for base, p in ((sample.words, ""), (sample.codes, "image_"))
        )
        scales = {name: float(options.get(name, getattr(sample, name))) for name in SCALES}
        made = talk.talk(
            self.run,
            self.params,
            self.compiled,
            asked,
            talk.Wish(int(options.get("text", sample.text)), pictures),
            partial(engine.Options, words=words, codes=codes, **scales),  # type: ignore[arg-type]
            row_keys(seed, len(asked)),
            stream,
        )
        if pictures:
            return [parts[0] if r.draw else parts for r, parts in zip(asked, made, strict=True)]
        return [
            parts[0] if r.draw else " ".join(parts) for r, parts in zip(asked, made, strict=True)
        ]

    def rows(self, documents: Sequence) -> Batch:
        """Whole documents, each a row, as `score` and `embed` read them."""
        self.check_options({})
        laid = [request.parse(d).document for d in documents]
        c = self.run.experiment.data
        return prompt.lay_out(laid, c, self.run.tokenizer, draw=False, end=True)

    def score(self, documents: Sequence) -> np.ndarray:
        """Log-likelihood in nats of all text of each document, given its pictures as they are."""
        rows = self.rows(documents)
        weight = np.asarray(decode.word_weight(rows, self.run.model.parts.vocabulary))
        return (self.call(decode.text_log_likelihood, rows) * weight).sum(-1)

    def embed(self, documents: Sequence) -> np.ndarray:
        """[n, d] f32 of unit length: each document's mean output of the decoder; see `decode`."""
        return self.call(decode.embedding, self.rows(documents))


def load(workdir: str | Path, step: int | None = None, devices=None) -> Trained:
    """Loads a run's averaged weights (plain ones if it kept none) onto the devices of this machine.

    Raises:
        UserError: if the workdir holds no checkpoint.
    """
    run = prepare(on_this_machine(read_config(workdir)), devices, workdir)
    averaged = run.abstract.ema is not None
    # What is frozen has no average: then both are read.
    names = ["ema"] * averaged + ["params"] * (not averaged or bool(run.model.frozen))
    like = {name: getattr(run.abstract, name) for name in names}
    found = checkpoint.restore(directory(workdir), like, step, part=True)
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint yet; `mmjax train` saves one")
    params = found.state[names[0]]
    if averaged and run.model.frozen:
        params = merge(params, split(found.state["params"], run.model.frozen)[1])
    return Trained(run, params, found.step)


def row_keys(seed: int | Sequence[int], count: int) -> jax.Array:
    """[count] keys: of each row's own seed, or of one seed and the row's place.

    Raises:
        UserError: for a number of seeds that is not `count`, or one outside 0 ... 2**32 - 1.
    """
    one = np.ndim(seed) == 0  # type: ignore[arg-type]
    seeds = [int(s) for s in np.atleast_1d(np.asarray(seed, object))]
    if not one and len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts: give one, or one a prompt")
    if wrong := [s for s in seeds if not 0 <= s < 2**32]:
        raise UserError(f"seed={wrong[0]} must lie between 0 and {2**32 - 1}")
    places = np.arange(count) if one else np.zeros(count, int)
    spread = np.array(seeds * count if one else seeds, np.uint32)
    return jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(spread, places)
