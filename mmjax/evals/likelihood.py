"""Held-out losses beside baselines that know nothing of the input."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import diffusion, losses, watch
from mmjax.batch import IMAGE, Batch, Image
from mmjax.coding import in_parts
from mmjax.data import tokenizer as bpe
from mmjax.data.pixels import decode_image
from mmjax.evals import heldout
from mmjax.evals.value import Value, ratio
from mmjax.models.denoise import Parts, denoise, noise_level, pick, wide
from mmjax.sample import prompt
from mmjax.sample.decode import word_weight
from mmjax.trained import Trained

TRAIN = 5000  # training records the baselines know, at most
CODED, ROWS = 1024, 128  # of these as codes, and as many at a time
DRAWS = 4  # noise levels a picture; the same for the model and the baselines


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Text and flow losses on each held-out split.

    `text_nll`: nats a token of captions (with their EOS) that follow their picture.
    `text_nll_alone`: of captions that stand first. `text_nll_unigram`: under the frequencies of
    the training captions. `image_flow_loss`: of pictures after their caption;
    `image_flow_loss_mean`, `_zero`, `_linear`: see `flow_errors`. Of families with codes instead
    `image_nll`: nats a code, after the caption, `_alone` without, and `_unigram`.
    """
    values: dict[str, Value] = {}
    count = trained.run.experiment.evals.documents
    train = heldout.draw(trained, "train", TRAIN, seed)
    for split, suffix in heldout.splits(trained).items():
        records = heldout.draw(trained, split, count, seed)
        found = text_values(trained, records, train, seed)
        if trained.writes_codes:
            found |= code_values(trained, records, train, seed)
        elif hasattr(trained.run.model.parts, "signal"):  # images are denoised
            found |= image_values(trained, records, train, seed)
        values |= {name + suffix: value for name, value in found.items()}
    return values


def _rows(trained: Trained, documents) -> Batch:
    run = trained.run
    vocabulary = run.model.parts.vocabulary
    return prompt.lay_out(
        documents, run.experiment.data, run.tokenizer, vocabulary, draw=False, end=True
    )


def unigram(captions: Sequence[str], tokenizer, size: int, eos: int) -> np.ndarray:
    """[v] log-frequencies of caption tokens and EOS, one added to every count."""
    counts = np.ones(size)
    for caption in captions:
        np.add.at(counts, bpe.encode(tokenizer, caption), 1)
        counts[eos] += 1
    return np.log(counts / counts.sum())


def text_values(trained: Trained, records, train, seed: int) -> dict[str, Value]:
    """The text entries; see `evaluate`."""
    vocab = trained.run.model.parts.vocabulary
    after = _rows(trained, heldout.captioned(records))
    alone = _rows(trained, heldout.captioned(records, text_first=True))
    weight = np.asarray(word_weight(after, vocab))
    logs = trained.log_likelihood(after)
    # Standing first, a caption ends in BOI and not in EOS: its words alone are compared.
    words = np.asarray(word_weight(alone, vocab)) * (alone.tokens != vocab.eos)
    first = trained.log_likelihood(alone)
    captions = [r.caption for r in train]
    table = unigram(captions, trained.run.tokenizer, vocab.size, vocab.eos)
    tokens = weight.sum(1)
    return {
        "text_nll": ratio(-(logs * weight).sum(1), tokens, seed),
        "text_nll_alone": ratio(-(first * words).sum(1), words.sum(1), seed),
        "text_nll_unigram": ratio(-(table[after.tokens] * weight).sum(1), tokens, seed),
    }


def image_values(trained: Trained, records, train, seed: int) -> dict[str, Value]:
    """The picture entries; see `evaluate`."""
    data = trained.run.experiment.data
    rows = _rows(trained, heldout.captioned(records, text_first=True))
    pixels = np.stack([decode_image(r.image, data.image, data.resize) for r in train])
    clean = in_parts(trained, signals, pixels)
    mean, variance = clean.mean(0), clean.var(0)
    errors: dict[str, list] = {"": [], "_mean": [], "_zero": [], "_linear": []}
    for draw in watch.pieces(range(DRAWS), "noise levels"):
        key = jax.random.key(seed * DRAWS + draw)
        found = trained.call(flow_errors, rows, key, extra=(mean, variance))
        for name, column in zip(errors, found.T, strict=True):
            errors[name].append(column)
    ones = np.ones(len(records))
    return {
        f"image_flow_loss{name}": ratio(np.mean(e, axis=0), ones, seed)
        for name, e in errors.items()
    }


def code_values(trained: Trained, records, train, seed: int) -> dict[str, Value]:
    """Negative log-likelihood of codes; see `evaluate`."""
    parts = trained.run.model.parts
    first, count = parts.vocabulary.codes, parts.vocabulary.code_count

    def of(documents) -> np.ndarray:
        rows = _rows(trained, documents)
        logs = trained.log_likelihood(rows) * (rows.modality == IMAGE)
        return -logs.sum(1)

    def ids(some) -> np.ndarray:
        rows = _rows(trained, [[Image(r.image)] for r in some])
        coded = trained.call(coded_tokens, rows)
        return coded[rows.modality == IMAGE].reshape(len(some), -1) - first

    table = np.ones(count)
    for start in range(0, min(len(train), CODED), ROWS):
        np.add.at(table, ids(train[start : start + ROWS]).ravel(), 1)
    table = np.log(table / table.sum())
    codes = np.full(len(records), float(parts.config.tokens))
    return {
        "image_nll": ratio(of(heldout.captioned(records, text_first=True)), codes, seed),
        "image_nll_alone": ratio(of([[Image(r.image)] for r in records]), codes, seed),
        "image_nll_unigram": ratio(-table[ids(records)].sum(1), codes, seed),
    }


def coded_tokens(parts, params, batch: Batch):
    """[b, l] int32: the tokens of a batch, codes and all."""
    return parts.coded(params, batch).tokens


def signals(parts: Parts, params, batch: Batch):
    """[b, h, w, c] f32: the batch's pictures, one a row, as the model denoises them."""
    return parts.signal(params, batch)[:, 0]


def flow_errors(parts: Parts, params, batch: Batch, keys, mean, variance):
    """The loss of training (`losses.flow_errors` of the same target), on each row's one picture.

    A perfect network has none, whatever it predicts and the loss compares.
    The baselines know the noisy picture and its noise level t, and of pictures only the training
    mean mu and variance s^2 of every number (mean, variance [h, w, c]):
    mean: what a picture that is mu would give without its noise (of the velocity on the flow path,
    mu). zero: 0. linear: the best affine function of x_t, number by number.

    Returns:
        [b, 4]: model, mean, zero, linear.
    """
    c = parts.config
    draws = jax.vmap(jax.random.split)(keys)
    clean = parts.signal(params, batch)
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(draws[:, 0])
    t = noise_level(c, draws[:, 1], jnp.zeros(clean.shape[:2], bool))
    at = wide(t)
    noisy = diffusion.mix(c.path, clean, noise, at)
    _, found = denoise(parts, params, batch, noisy, t)
    mu, var = mean[None, None], variance[None, None]
    a, s, *_ = diffusion.coefficients(c.path, at)
    # The best guesses of data and noise; as a network's output they are read as a network's is.
    off = (noisy - a * mu) / (a**2 * var + s**2)
    linear = diffusion.aim(c.path, c.prediction, mu + a * var * off, s * off, noisy, at)
    blind = diffusion.truth(c.path, mu, jnp.zeros_like(mu), at)
    true = pick(diffusion.aim(c.path, c.prediction, clean, noise, noisy, at), c.target)
    guesses = [pick(e, c.target) for e in (found, blind, linear)]
    guesses.insert(2, jnp.zeros_like(true))
    return jnp.concatenate([losses.flow_errors(g, true) for g in guesses], axis=1)
