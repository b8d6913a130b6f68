"""How much of a picture reaches the words behind it? A linear probe of the decoder's states.

The form of the reconstruction-alignment score (see `alignment`) that asks hidden states instead of
the model's own drawing: a ridge regression, fitted on training pairs, from the mean of a layer's
states at the words of a caption behind its picture to the picture itself, brought to a few pixels.
Its error on held-out pairs is compared with the error it makes after another picture (`shuf`), the
caption being the same, and with that of a regression from states of the caption alone (`prior`):
what the words say of a picture is in both. States at the picture's own positions are not looked at:
whatever a decoder does, they carry their input. Where a model knows its training pairs by heart,
their states may differ from others', which lowers the score.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmjax import watch
from mmjax.batch import Batch, Image, Text
from mmjax.data.pixels import decode_image
from mmjax.data.tokenizer import encode
from mmjax.evals import heldout
from mmjax.evals.alignment import derangement, distinct, score, strata
from mmjax.evals.heldout import Pair
from mmjax.evals.value import Value
from mmjax.sample import prompt
from mmjax.sample.decode import Reader, word_weight
from mmjax.trained import Trained

SIDE = 4  # of the picture that is asked for, in pixels
FITTED = 1024  # training pairs
PENALTIES = np.logspace(-2, 5, 15)  # of the regression, one of which is chosen on these pairs
ROWS = 64  # read at a time
LAYERS = {"half": 0.5, "last": 1.0}  # -> share of the blocks whose states are probed
WRITES = re.compile(r"(o|down)(_\d+)?(_bias)?")  # a block's weights that add to what goes through


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """`ras_probe_<layer>` on each held-out split, and its parts `ras_shuf_...`, `ras_prior_...`.

    Of the states in the middle of the decoder ("half") and of the last ones. 1: they say all of the
    picture that the probe is asked for; 0: no more than the caption does, or than another picture
    would; the smaller one counts.
    """
    values: dict[str, Value] = {}
    e = trained.run.experiment
    train = distinct(heldout.draw(trained, "train", FITTED, seed))
    for name, share in LAYERS.items():
        layers = max(round(share * e.model.decoder.depth), 1)
        probes = fitted(trained, train, layers) if train else None
        for split, suffix in heldout.splits(trained).items():
            records = distinct(heldout.draw(trained, split, e.evals.documents, seed))
            if probes is None or len(records) < 2:
                continue
            lengths = [len(encode(trained.run.tokenizer, r.caption)) for r in records]
            other = derangement(strata(lengths), seed)
            errors = probe_errors(trained, probes, records, other, layers)
            found = score(errors["true"], errors["shuf"], errors["prior"], seed)
            values |= {f"{which}_probe_{name}{suffix}": value for which, value in found.items()}
    return values


class Probes(NamedTuple):
    """What predicts pictures, each number in units of its spread over the training pairs.

    Attributes:
        after, alone: from states of captions behind their pictures, and without, [n, d].
        mean, spread: [m], of the pictures.
    """

    after: Callable
    alone: Callable
    mean: np.ndarray
    spread: np.ndarray


def fitted(trained: Trained, train: Sequence[Pair], layers: int) -> Probes:
    """Probes of the states above `layers` blocks, fitted on pairs."""
    pictures = targets(trained, train)
    # At least a grey level: a number that never changes in training has no unit of its own.
    mean, spread = pictures.mean(0), np.maximum(pictures.std(0), 1.0)
    wanted = (pictures - mean) / spread
    after, alone = (fit(states(trained, train, read, layers), wanted) for read in (train, None))
    return Probes(after, alone, mean, spread)


def probe_errors(
    trained: Trained, probes: Probes, records: Sequence[Pair], other: np.ndarray, layers: int
) -> dict[str, np.ndarray]:
    """Condition -> [n] mean squared error of the probe's picture.

    other: [n], whose picture is read in `shuf`.
    """
    wanted = (targets(trained, records) - probes.mean) / probes.spread
    changed = [records[n] for n in other]
    found = {
        "true": probes.after(states(trained, records, records, layers)),
        "shuf": probes.after(states(trained, records, changed, layers)),
        "prior": probes.alone(states(trained, records, None, layers)),
    }
    return {name: ((x - wanted) ** 2).mean(1) for name, x in found.items()}


def fit(x: np.ndarray, y: np.ndarray):
    """Ridge regression from x [n, d] to y [n, m]; -> a function of other [n, d]."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(x, y).predict


def targets(trained: Trained, records: Sequence[Pair]) -> np.ndarray:
    """[n, SIDE^2 3] f64: the pictures, as few pixels."""
    resize = trained.run.experiment.data.resize
    small = [decode_image(r.image, SIDE, resize).reshape(-1) for r in records]
    return np.stack(small).astype(np.float64)


def states(
    trained: Trained, records: Sequence[Pair], read: Sequence[Pair] | None, layers: int
) -> np.ndarray:
    """[n, d] f64: `word_states` of captions behind the pictures of `read`, or of captions alone."""
    run, found = trained.run, []
    vocabulary = run.model.parts.vocabulary
    documents: list[list[Text | Image]] = [[Text(r.caption)] for r in records]
    if read is not None:
        documents = [[Image(r.image), *d] for r, d in zip(read, documents, strict=True)]
    for first in watch.pieces(range(0, len(documents), ROWS), "documents", ROWS, len(documents)):
        some = documents[first : first + ROWS]
        rows = prompt.lay_out(some, run.experiment.data, run.tokenizer, vocabulary, False, end=True)
        found.append(trained.call(word_states, rows, extra=(np.int32(layers),)))
    return np.concatenate(found).astype(np.float64)


def word_states(parts: Reader, params, batch: Batch, layers):
    """[b, d] f32: what `layers` blocks make of a row's words, normalised and averaged over them."""
    cut = params | {"decoder": below(params["decoder"], layers)}
    x = parts.clean(cut, batch)
    hidden, _ = parts.run(cut, x, parts.mask(batch), batch.position, tower=batch.modality)
    v = parts.vocabulary
    held = jnp.where(batch.tokens == v.eos, 0.0, word_weight(batch, v))
    total = jnp.einsum("bld,bl->bd", hidden.astype(jnp.float32), held, precision="highest")
    return total / jnp.maximum(held.sum(1, keepdims=True), 1.0)


def below(decoder, layers):
    """A decoder's params, all blocks from the `layers`-th on adding nothing to what they read."""
    flat, first = flatten_dict(decoder), 0
    runs = {path[0] for path in flat if path[0].startswith("blocks")}
    for name in sorted(runs, key=lambda name: int("0" + name[len("blocks_") :])):
        mine = {path: x for path, x in flat.items() if path[0] == name}
        depth = len(next(iter(mine.values())))
        keep = first + jnp.arange(depth) < layers
        for path, x in mine.items():
            if WRITES.fullmatch(path[-1]):
                flat[path] = x * keep.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
        first += depth
    return unflatten_dict(flat)
