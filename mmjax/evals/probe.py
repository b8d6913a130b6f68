"""How much of a picture reaches the words behind it? A linear probe of the decoder's states.

The form of the reconstruction-alignment score (see `alignment`) that asks hidden states instead of
the model's own drawing: a ridge regression, fitted on training pairs, from the mean of a layer's
states at the words of a caption behind its picture to the picture itself, brought to a few pixels.
Its error on held-out pairs is compared with the error it makes after another picture (`shuf`), the
caption being the same, and with that of a regression from states of the caption alone (`prior`):
what the words say of a picture is in both. States at the picture's own positions are not looked at:
whatever a decoder does, they carry their input.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

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
    for split, suffix in heldout.splits(trained).items():
        records = distinct(heldout.draw(trained, split, e.evals.documents, seed))
        lengths = [len(encode(trained.run.tokenizer, r.caption)) for r in records]
        other = derangement(strata(lengths), seed)
        for name, share in LAYERS.items():
            layers = max(round(share * e.model.decoder.depth), 1)
            errors = probe_errors(trained, train, records, other, layers)
            found = score(errors["true"], errors["shuf"], errors["prior"], seed)
            values |= {f"{which}_probe_{name}{suffix}": value for which, value in found.items()}
    return values


def probe_errors(
    trained: Trained, train: Sequence[Pair], records: Sequence[Pair], other: np.ndarray, layers: int
) -> dict[str, np.ndarray]:
    """Condition -> [n] mean squared error of the probe's picture, in units of its spread.

    other: [n], whose picture is read in `shuf`. layers: how many blocks there are below the states.
    """

    def of(some: Sequence[Pair], read: Sequence[Pair] | None) -> np.ndarray:
        pictures = [[]] * len(some) if read is None else [[Image(r.image)] for r in read]
        documents = [[*p, Text(r.caption)] for p, r in zip(pictures, some, strict=True)]
        return states(trained, documents, layers)

    known, wanted = (targets(trained, some) for some in (train, records))
    mean, spread = known.mean(0), known.std(0) + 1e-6
    known, wanted = (known - mean) / spread, (wanted - mean) / spread
    after, alone = fit(of(train, train), known), fit(of(train, None), known)
    found = {
        "true": after(of(records, records)),
        "shuf": after(of(records, [records[n] for n in other])),
        "prior": alone(of(records, None)),
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


def states(trained: Trained, documents, layers: int) -> np.ndarray:
    """[n, d] f64: `word_states` of each document."""
    run, found = trained.run, []
    vocabulary = run.model.parts.vocabulary
    for first in range(0, len(documents), ROWS):
        some = documents[first : first + ROWS]
        rows = prompt.lay_out(some, run.experiment.data, run.tokenizer, vocabulary, False, end=True)
        rows = prompt.pad_rows(rows, ROWS)
        found.append(trained.call(word_states, rows, extra=(np.int32(layers),))[: len(some)])
    return np.concatenate(found).astype(np.float64)


def word_states(parts: Reader, params, batch: Batch, layers):
    """[b, d] f32: what `layers` blocks make of a row's words, normalised and averaged over them."""
    cut = params | {"decoder": below(params["decoder"], layers)}
    batch = parts.coded(params, batch)
    x = parts.clean(cut, batch)
    hidden, _ = parts.run(cut, x, parts.mask(batch), batch.position, tower=batch.modality)
    v = parts.vocabulary
    held = jnp.where(batch.tokens == v.eos, 0.0, word_weight(batch, v))
    total = jnp.einsum("bld,bl->bd", hidden.astype(jnp.float32), held)
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
