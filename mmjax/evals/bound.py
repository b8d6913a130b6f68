"""The dial's likelihood of captions and codes, or, where it is none, the bound of it."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import watch
from mmjax.batch import Batch, Image, Text
from mmjax.data.tokenizer import encode
from mmjax.evals import heldout
from mmjax.evals.value import Value, ratio
from mmjax.models import dial
from mmjax.models.denoise import clean_inputs
from mmjax.sample import prompt
from mmjax.sample.decode import next_log_likelihood
from mmjax.trained import Trained

CLOCKS = 16  # a span, stratified
ROWS = 64  # documents at a time


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Nats of held-out captions after their pictures, and of codes after their captions.

    `text_nll`: a token of captions, EOS with them; at alpha below 1 `text_nll_bound`, which this
    is below, over all of the text as it is filled up (`data.ends`) but still a token of the caption
    and one EOS. `image_nll`, `image_nll_bound`: the same a code. Each bound is a mean over CLOCKS
    moments, `1 - t` clipped as in training.
    """
    e = trained.run.experiment
    c, values = e.model, {}
    for split, suffix in heldout.splits(trained).items():
        records = heldout.draw(trained, split, e.evals.documents, seed)
        words = [len(encode(trained.run.tokenizer, r.caption)) + 1 for r in records]
        documents = [[Image(r.image), Text(r.caption)] for r in records]
        name = "text_nll" if c.text_alpha == 1 else "text_nll_bound"
        values[name + suffix] = ratio(nats(trained, documents, seed), words, seed)
        if c.chameleon is None:
            continue
        documents = [[Text(r.caption), Image(r.image)] for r in records]
        name = "image_nll" if c.image_alpha == 1 else "image_nll_bound"
        codes = np.full(len(records), float(c.tokens))
        values[name + suffix] = ratio(nats(trained, documents, seed, True), codes, seed)
    return values


def nats(trained: Trained, documents, seed: int, pictures: bool = False) -> np.ndarray:
    """[n]: nats of each document's text, or of its pictures' codes; the other is given."""
    run = trained.run
    vocabulary = run.model.parts.vocabulary
    model = run.experiment.model
    clocks = 1 if (model.image_alpha if pictures else model.text_alpha) == 1 else CLOCKS
    rows = prompt.lay_out(
        documents, run.experiment.data, run.tokenizer, vocabulary, draw=False, end=True
    )
    found, key = [], jax.random.key(seed)
    for first in watch.pieces(range(0, len(documents), ROWS), "documents", ROWS, len(documents)):
        some = jax.tree.map(lambda x, first=first: x[first : first + ROWS], rows)
        own = jax.random.fold_in(key, first)
        found.append(trained.call(bounds, some, own, pictures=pictures, clocks=clocks))
    return np.concatenate(found)


def as_given(c: dial.Config, batch: Batch, drawn: dial.Draw, given) -> dial.Draw:
    """A moment at which what is `given` [b, l] stands as it is, and is read as in a prompt."""
    now = drawn.now
    still = (dial.alphas(c, batch) == 0) & (now.spans.number > 0) & (not c.two_streams)
    now = now._replace(
        time=jnp.where(given, 1.0, now.time), active=jnp.where(given, still, now.active)
    )
    return drawn._replace(now=now, masked=drawn.masked & ~given)


def bounds(parts: dial.Parts, params, batch: Batch, keys, pictures: bool, clocks: int):
    """[b] f32: -log p of text or pictures in each row, or a bound of it, over so many moments."""
    c = replace(parts.config, weight="elbo")
    batch = parts.coded(params, batch)
    v, counted = parts.vocabulary, dial.predicted(c, batch)
    border = jnp.isin(batch.tokens[:, 1:], jnp.array([v.boi, v.eoi]))
    counted = jnp.where(border | ((batch.image[:, 1:] > 0) != pictures), 0.0, counted)

    def at(number):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        drawn = dial.draw(c, batch, v, own, (number.astype(jnp.float32), clocks))
        drawn = as_given(c, batch, drawn, (batch.image > 0) != pictures)
        base = dial.posed(c, parts.base, batch, drawn)
        if c.chameleon is None:
            x = clean_inputs(base, params, batch)
        else:
            x = base.embed(params, batch.tokens)
        hidden, _ = base.run(params, x, base.mask(batch), batch.position, tower=batch.modality)
        chosen = next_log_likelihood(base, params, hidden, batch.tokens)[:, 1:]
        return -(chosen * counted * dial.coefficient(c, drawn)[:, 1:]).sum(1)

    return jax.lax.map(at, jnp.arange(clocks)).mean(0)
