"""A trained model in the hand: `model = mmjax.load(workdir)`, then `generate`, `score`, `embed`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path

import jax
import numpy as np

from mmjax import checkpoint, paths, values
from mmjax.batch import Batch, Document, Image, Text
from mmjax.error import UserError, near, unknown
from mmjax.mesh import put
from mmjax.models import Abilities, Params, abilities_of
from mmjax.models.family import merge, split
from mmjax.run import Run, directory, prepare_here
from mmjax.sample import answer, chat, decode, prompt, request, sizes, span, talk
from mmjax.sample.request import IMAGE
from mmjax.sample_config import Choice, SampleConfig

# Samplers that a family names in its abilities; each continues requests, as `talk.generate`.
SAMPLERS = {"engine": talk.generate, "insertion": answer.generate, "span": span.generate}
DOCUMENTS = 256  # laid out at a time by `score` and `embed`


@dataclass
class Trained:
    """Weights of a run and what is needed to use them.

    Attributes:
        run: the experiment's parts. params: averaged weights where the run kept them.
        step: of the checkpoint.
        drawn: (split, count, seed) -> what `evals.heldout.drawings` has drawn.
        home: the workdir it was loaded from.
    """

    run: Run
    params: Params
    step: int
    drawn: dict = field(default_factory=dict)
    home: Path | None = None
    _compiled: dict = field(default_factory=dict)
    _kinds: dict = field(default_factory=dict)

    @cached_property
    def abilities(self) -> Abilities:
        """What the family says that can be done with it."""
        return abilities_of(self.run.experiment.family, self.run.experiment.model)

    def call(
        self, function: Callable, rows: Batch, *keys, each=(), extra=(), **static
    ) -> np.ndarray:
        """Runs function(parts, params, rows, *keys, *each, *extra, **static).

        A few rows at a time, as many as `sample.sizes` says: what is held does not grow with their
        number, and programs are compiled for few numbers of rows.

        Args:
            function: pure, one answer a row; see `sample.decode`.
            rows: host rows.
            keys: PRNG keys, of which each row gets one of its own, by its place.
            each: further arrays with an entry a row. extra: those without.
            static: hashable options.
        """
        split = self.run.rules.split("batch")
        most = sizes.at_once(sizes.positions(rows), sizes.POSITIONS, split)
        count, found = len(rows.tokens), []
        function = self.compiled(function, **static)
        for first in range(0, count, most):
            last = min(first + most, count)
            held = rows, tuple(each), np.arange(count, dtype=np.uint32)
            part = jax.tree.map(lambda x, a=first, b=last: np.asarray(x)[a:b], held)
            some, own, place = sizes.padded(part, sizes.rows_of(last - first, split))
            drawn = [sizes.folded_in(key, place) for key in keys]
            some, own = put((some, own), self.run.rules)
            made = function(self.params, some, *drawn, *own, *extra)
            found.append(np.asarray(made)[: last - first])
        return np.concatenate(found)

    def compiled(self, function: Callable, donate: tuple[int, ...] = (), **static) -> Callable:
        """function(parts, params, ..., **static) as a jitted function of (params, ...).

        donate: numbers of the arguments of the jitted function whose memory it may use.
        """
        at = (function, donate, tuple(sorted(static.items())))
        if at not in self._compiled:
            whole = partial(function, self.run.model.parts, **static)
            self._compiled[at] = jax.jit(whole, donate_argnums=donate)
        return self._compiled[at]

    def draw(self, documents: Sequence[Document], seed: int = 0, **options) -> np.ndarray:
        """Draws a picture behind each document; -> [n, h, w, 3] uint8. Options as in `generate`."""
        return np.stack(self.generate([[*d, IMAGE] for d in documents], seed, **options))

    def write(self, documents: Sequence[Document], seed: int = 0, **options) -> list[str]:
        """Writes text behind each document, until it ends or `text` tokens; as in `generate`."""
        return self.generate(documents, seed, **options)

    @property
    def writes_codes(self) -> bool:
        """Whether pictures are written as tokens, rather than denoised."""
        return self.run.model.parts.vocabulary.code_count > 0

    @property
    def only_writes(self) -> bool:
        """Whether it writes words and draws no pictures."""
        return self.abilities.generate is not None and not self.abilities.draws

    def check_options(self, options) -> None:
        """Checks that the model generates, and knows the options of `generate`.

        Raises:
            UserError: naming the one that is unknown or out of range.
        """
        family = self.run.experiment.family
        if self.abilities.generate is None:
            raise UserError(f"a {family} neither reads, writes nor draws; load a model that does")
        named = {"text", *self.abilities.options}
        if strange := set(options) - named:
            raise UserError(
                f"{min(strange)} is no option of a {family}; have: {', '.join(sorted(named))}"
                f"{near(min(strange), named)}"
            )
        self.sample_config(options)

    def sample_config(self, options) -> SampleConfig:
        """The experiment's `sample` group with options in place of its values, checked."""
        sample = self.run.experiment.sample
        whole = ("words", "codes")  # groups of their own

        def given(group: type, prefix: str = "") -> dict:
            known = [f for f in fields(group) if f.name not in whole and prefix + f.name in options]
            return {f.name: values.checked(prefix + f.name, options, f.type) for f in known}

        def chosen(base: Choice, prefix: str) -> Choice:
            known = given(Choice, prefix)
            try:
                return replace(base, **known)
            except UserError as error:  # it begins with the name
                raise UserError(f"{prefix}{error}") from error

        words, codes = chosen(sample.words, ""), chosen(sample.codes, "image_")
        return replace(sample, words=words, codes=codes, **given(SampleConfig))

    def generate(
        self,
        prompts: Sequence,
        seed: int | Sequence[int] = 0,
        pictures: int = 0,
        stream: talk.Callback | None = None,
        stop: int = 0,
        **options,
    ) -> list:
        """Continues prompts: those that end in `mmjax.IMAGE` with a picture, others with text.

        Args:
            prompts: each a list of text, pictures (pathlib.Path, bytes, an open file, PIL.Image or
                uint8 [h, w, 3]), and perhaps a slot: a last IMAGE, or, for models trained on CM3's
                objective, IMAGE or TEXT where something is missing.
            seed: of noise and text: one for all, or one a prompt. A prompt's result depends on its
                seed and place alone, not on its neighbours.
            pictures: how many pictures a prompt without IMAGE may be answered with, beside text.
            stream: called now and then with a prompt's number and its text so far, if it grew.
            stop: after how many of `pictures` an answer ends; 0 lets words follow the last.
            options: `kind`, of the pictures to draw, by name; the others override the experiment's
                `sample` group: text (most tokens), guidance; temperature, top_k, top_p, min_p,
                repetition (of text); of families with image codes the same five with `image_`
                before them, image_guidance, contrast and contrast_k; of those that denoise solver,
                steps, shift, guidance_start, guidance_stop, guidance_least; of OneFlow only text,
                steps, guidance and text_guidance; of the dial these, both temperatures and, over
                patches, what is said of those that denoise.

        Returns:
            For each prompt a uint8 array [h, w, 3] or a string; with `pictures` a list of both, in
            the order they were made.

        Raises:
            UserError: for a prompt that cannot be continued, or an unknown option.
        """
        self.check_options(options)
        asked = request.parse_all(prompts)
        pictures, stop = _counts(pictures, stop)
        self._check_pictures(asked, pictures, stop)
        c = self.sample_config(options)
        wish, keys = talk.Wish(c.text, pictures, stop), sizes.keys_of(seed, len(asked))
        of, how = self.of_kind(options.get("kind", "image")), self.abilities.generate
        sampler = how if callable(how) else SAMPLERS[how or ""]
        keys = sizes.wrap(keys) if callable(how) else keys
        made = sampler(of.run, of.params, of.compiled, asked, wish, c, keys, stream)
        if pictures:
            return [parts[0] if r.draw else parts for r, parts in zip(asked, made, strict=True)]
        return [
            parts[0] if r.draw else " ".join(parts) for r, parts in zip(asked, made, strict=True)
        ]

    def chat(self, turns: Sequence, seed: int = 0, pictures: int = 0, stream=None, **options):
        """Answers a conversation, asked as the model was trained to be.

        A model trained here is asked by the template of its data (`sep`, `vicuna`), an imported one
        by the `chat_template` of its tokenizer.

        Args:
            turns: the user's and the model's by turns, the user's first and last, each text, a
                picture, or a list of both: `[[photo, "What is it?"], "A cat.", "And its colour?"]`;
                or messages {"role": "user", "assistant" or, first, "system", "content": ...}.
                Where the last ends in `mmjax.IMAGE`, the answer is a picture.
            seed, pictures, stream, options: as in `generate`.

        Returns:
            The answer: a string, a uint8 array [h, w, 3], or with `pictures` a list of both.

        Raises:
            UserError: for what is no conversation, or a model that was trained on none.
        """
        asked = chat.ask(self.run, self.home, turns)
        return self.generate([asked], seed, pictures, stream, **options)[0]

    def _check_pictures(self, asked: Sequence[request.Request], pictures: int, stop: int) -> None:
        """Checks that so many can be drawn; raises a UserError that names what cannot be."""
        family = self.run.experiment.family
        if stop and not self.abilities.stops:
            raise UserError(f"a {family} does not write on behind a picture; leave stop out")
        if not self.abilities.draws and (pictures or any(r.draw for r in asked)):
            what = " whose codec was imported without a decoder" if self.writes_codes else ""
            raise UserError(
                f"a {family}{what} draws no pictures; ask for text, or load a model that does"
            )

    def of_kind(self, name: str) -> "Trained":
        """This model drawing pictures of a kind; "image" is the default one.

        Raises:
            UserError: for a kind it does not have.
        """
        known = ["image", *getattr(self.run.experiment.model, "kinds", {})]
        if name not in known:
            raise UserError(f"kind={name!r} {unknown(name, known)}")
        if name == "image":
            return self
        if name not in self._kinds:
            parts = self.run.model.parts.kinds[known.index(name)]
            model = self.run.model._replace(parts=parts)
            self._kinds[name] = Trained(replace(self.run, model=model), self.params, self.step)
        return self._kinds[name]

    def rows(self, documents: Sequence) -> Batch:
        """Whole documents, each a row, as `score` and `embed` read them."""
        self.check_options({})
        return self.laid(documents)

    def laid(self, documents: Sequence) -> Batch:
        """The same of any family."""
        return self._lay_out(self._whole(documents), 1)

    def _whole(self, documents: Sequence) -> list[Document]:
        """Documents, parsed; raises a UserError for one that is none, or has a slot."""
        given = request.parse_all(documents, "document")
        if not given:
            raise UserError("no documents were given; give at least one")
        for number, asked in enumerate(given, start=1):
            if asked.draw or asked.infill:
                raise UserError(f"document {number} has a slot; only whole ones have a score")
        return [asked.document for asked in given]

    def _lay_out(self, documents: Sequence[Document], first: int) -> Batch:
        c, vocabulary = self.run.experiment.data, self.run.model.parts.vocabulary
        numbers = range(first, first + len(documents))
        return prompt.lay_out(
            documents, c, self.run.tokenizer, vocabulary, draw=False, end=True, numbers=numbers
        )

    def _laid_in_parts(self, documents: Sequence) -> Iterator[tuple[list[Document], Batch]]:
        """The same, DOCUMENTS at a time: their images need not be decoded all at once."""
        whole = self._whole(documents)
        for at in range(0, len(whole), DOCUMENTS):
            yield whole[at : at + DOCUMENTS], self._lay_out(whole[at : at + DOCUMENTS], at + 1)

    def score(self, documents: Sequence, images: bool | None = None) -> np.ndarray:
        """[n] log-likelihood in nats of all text of each document, given its images as they are.

        Args:
            documents: any number; so many are read at a time as `sample.sizes` says.
            images: whether an image might begin at any token. If so, BOI has a share of the
                probability there; if not, it has none, and a number is that of text among text: of
                a model whose text weights are frozen (LMFusion) bit for bit that of its text model.
                None says no for families that draw no images, and for documents without an image
                of a model whose text weights are frozen; else yes.

        Raises:
            UserError: for a family that does not write from left to right.
        """
        self._scorer()  # complains before anything is laid out
        vocabulary, found = self.run.model.parts.vocabulary, []
        for some, rows in self._laid_in_parts(documents):
            opens = [self._opens(d) if images is None else images for d in some]
            logs = self.log_likelihood(rows, np.array(opens))
            found.append((logs * np.asarray(decode.word_weight(rows, vocabulary))).sum(-1))
        return np.concatenate(found)

    def _opens(self, document: Document) -> bool:
        """Whether an image might begin in a document that is scored."""
        frozen = getattr(self.run.experiment.model, "text_rate", 1.0) == 0
        alone = not any(isinstance(part, Image) for part in document)
        return not self.only_writes and not (frozen and alone)

    def log_likelihood(self, rows: Batch, opens=True) -> np.ndarray:
        """[b, l] f32: log p of each token after those before it; opens, [b] bool: see `decode`."""
        return self.call(self._scorer(), rows, each=(np.broadcast_to(opens, len(rows.tokens)),))

    def _scorer(self) -> Callable:
        """What makes log-likelihoods; raises a UserError for a family that has none."""
        own = self.abilities.log_likelihood
        if own is None:
            raise UserError(
                f"a {self.run.experiment.family} has no likelihood of a text; load a model that "
                f"writes on"
            )
        return own if callable(own) else decode.text_log_likelihood

    def embed(self, documents: Sequence) -> np.ndarray:
        """[n, d] f32 of unit length: each document's mean output of the decoder; see `decode`.

        Of a clip the vector of its text, of its picture, or their mean; see `models.clip.vectors`.
        """
        own = self.abilities.vectors
        if own is None:
            raise UserError(
                f"a {self.run.experiment.family} embeds nothing; load a model that does"
            )
        how, laid = own if callable(own) else decode.embedding, self._laid_in_parts(documents)
        return np.concatenate([self.call(how, rows) for _, rows in laid])

    def classify(
        self, pictures: Sequence, names: Sequence[str], templates: Sequence[str] = ("{}",)
    ) -> np.ndarray:
        """[n, classes] f32: cosine between each picture and each class, told in words (CLIP, 3.1).

        Args:
            pictures: paths or bytes. names: of the classes.
            templates: texts with "{}" for the name. A class is the mean of the vectors of all of
                its texts, brought to unit length.

        Raises:
            UserError: for another family than clip, a template without "{}", or what is no picture.
        """
        if not self.abilities.compares:
            raise UserError(
                f"a {self.run.experiment.family} has no vectors to compare; load a clip"
            )
        for what, given in (("names", names), ("templates", templates)):
            if isinstance(given, str):
                raise UserError(f"{what}={given!r} must be a list of texts, as [{given!r}]")
        if not templates or any("{}" not in t for t in templates):
            raise UserError(f"templates={list(templates)!r} must hold {{}} for a name, each")
        shown = [request.as_part(p) for p in pictures]
        if words := [p.text for p in shown if isinstance(p, Text)]:
            raise UserError(f"{words[0]!r} is no picture; give its bytes, or its pathlib.Path")
        if not shown or not names:
            raise UserError(f"{len(shown)} pictures and {len(names)} names: give some of both")
        told = self.embed([[t.replace("{}", name)] for name in names for t in templates])
        told = unit_rows(told.reshape(len(names), len(templates), -1).mean(1))
        return self.embed([[p] for p in shown]) @ told.T


def unit_rows(x: np.ndarray) -> np.ndarray:
    """[..., d] -> the same of unit length."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def load(workdir: str | Path, step: int | None = None, devices=None) -> Trained:
    """Loads a run's averaged weights (plain ones if it kept none) onto the devices of this machine.

    Raises:
        UserError: if the workdir holds no checkpoint, or not that of the step.
    """
    step = None if step is None else values.whole("step", step)
    run = prepare_here(workdir, devices)
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
    return Trained(run, params, found.step, home=paths.of(workdir))


def _counts(pictures, stop) -> tuple[int, int]:
    """How many pictures an answer may have, and after how many it ends, as plain numbers.

    Raises:
        UserError: for what is no such number.
    """
    try:
        most = values.whole("pictures", pictures)
        if most < 0:
            raise UserError(f"pictures={most} must be a whole number")
    except UserError as error:
        raise UserError(f"{error}, 0 or more") from error
    try:
        last = values.whole("stop", stop)
        if not 0 <= last <= most:
            raise UserError(f"stop={last} must be a whole number")
    except UserError as error:
        raise UserError(f"{error}, 0 to pictures={most}") from error
    return most, last
