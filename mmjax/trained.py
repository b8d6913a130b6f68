"""A trained model in the hand: `model = mmjax.load(workdir)`, then `generate`, `score`, `embed`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import numpy as np

from mmjax import checkpoint
from mmjax.batch import Batch, Document, Image, Text
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.mesh import put
from mmjax.models import Params
from mmjax.run import Run, directory, on_this_machine, prepare, read_config
from mmjax.sample import decode, prompt


class Slot:
    """The type of `mmjax.IMAGE`: a picture to be drawn."""

    def __repr__(self) -> str:
        return "mmjax.IMAGE"


IMAGE = Slot()


def as_document(parts) -> tuple[Document, bool]:
    """Strings, paths, bytes, `Text`, `Image`, a closing IMAGE -> (document, whether to draw).

    Raises:
        UserError: for an IMAGE that is not the last part, or a picture that is not there.
    """
    parts = [parts] if isinstance(parts, str | bytes | Path | Slot) else list(parts)
    draw = bool(parts) and isinstance(parts[-1], Slot)
    document: list[Text | Image] = []
    for part in parts[: len(parts) - draw]:
        if isinstance(part, Slot):
            raise UserError("mmjax.IMAGE must be the last part of a prompt")
        if isinstance(part, bytes):
            part = Image(part)
        elif isinstance(part, Path):
            if not part.is_file():
                raise UserError(f"picture {part} does not exist")
            part = Image(part.read_bytes())
        elif isinstance(part, str):
            part = Text(part)
        document.append(part)
    return document, draw


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
        at = (function, tuple(sorted(static.items())))
        if at not in self._compiled:
            self._compiled[at] = jax.jit(partial(function, self.run.model.parts, **static))
        count = len(rows.tokens)
        padded = prompt.pad_rows(rows, self.run.rules.split("batch"))
        split = [jax.random.split(key, len(padded.tokens)) for key in keys]
        rows = put(padded, self.run.rules)
        return np.asarray(self._compiled[at](self.params, rows, *split, *extra))[:count]

    def draw(self, documents: Sequence[Document], seed: int = 0, **options) -> np.ndarray:
        """Draws a picture behind each document; -> [n, h, w, 3] uint8.

        `options` override the experiment's `sample` group: steps, guidance.
        """
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
        """Writes text behind each document, until it ends or `text` tokens.

        `options` override the experiment's `sample` group: temperature, text.
        """
        e = self.run.experiment
        rows = prompt.lay_out(documents, e.data, self.run.tokenizer, draw=False)
        tokens = self.call(
            decode.write,
            rows,
            jax.random.key(seed),
            count=options.get("text", e.sample.text),
            temperature=options.get("temperature", e.sample.temperature),
        )
        eos = self.run.model.parts.vocabulary.eos
        ends = [np.flatnonzero(row == eos) for row in tokens]
        cut = [row[: end[0]] if len(end) else row for row, end in zip(tokens, ends, strict=True)]
        return [bpe.decode(self.run.tokenizer, row) for row in cut]

    def generate(self, prompts: Sequence, seed: int = 0, **options) -> list:
        """Continues prompts: those that end in `mmjax.IMAGE` with a picture, others with text.

        Args:
            prompts: each a list of text, picture paths (pathlib.Path) or bytes, and a last IMAGE.
            seed: of noise and text; the same seed gives the same result.
            options: steps, guidance (pictures), temperature, text (tokens).

        Returns:
            One uint8 array [h, w, 3] or string for each prompt.
        """
        parsed = [as_document(p) for p in prompts]
        out: list = [None] * len(parsed)
        for draw in (True, False):
            index = [i for i, (_, d) in enumerate(parsed) if d is draw]
            if index:
                do = self.draw if draw else self.write
                for i, result in zip(
                    index, do([parsed[i][0] for i in index], seed, **options), strict=False
                ):
                    out[i] = result
        return out

    def rows(self, documents: Sequence) -> Batch:
        """Whole documents, each a row, as `score` and `embed` read them."""
        laid = [as_document(d)[0] for d in documents]
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
    name = "ema" if run.abstract.ema is not None else "params"
    like = {name: getattr(run.abstract, name)}
    found = checkpoint.restore(directory(workdir), like, step, part=True)
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint yet; `mmjax train` saves one")
    return Trained(run, found.state[name], found.step)
