"""What a codec keeps of pictures it never saw, and how it uses its codes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Batch
from mmjax.codecs import autoencoder, measure, quantise
from mmjax.coding import encode, in_parts
from mmjax.data.pixels import decode_image
from mmjax.evals import heldout
from mmjax.evals.value import Value, ratio
from mmjax.layers.patch import to_signal
from mmjax.models.codec import Parts
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained

MEASURES = ("absolute", "psnr", "ssim")


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Reconstruction on each held-out split; writes `reconstructed_<split>.png`.

    `absolute`: mean absolute difference in [-1, 1]. `psnr`: decibels. `ssim`: at most 1.
    `_mean_picture`: the same for the mean training picture. `codes_used`: share of the codes used
    at least once over at least 2,000 training pictures, `perplexity` of their use; `_heldout`: over
    the held-out ones, which are fewer.
    """
    e = trained.run.experiment
    known = heldout.draw(trained, "train", max(e.evals.documents, 2000), seed)
    if not known:  # no pictures
        return {}
    train = pictures(trained, known)
    values = usage(trained, train, seed)
    blank = train.astype(np.float32).mean(0).round().astype(np.uint8)
    for split, suffix in heldout.splits(trained).items():
        records = heldout.draw(trained, split, e.evals.documents, seed)
        true = pictures(trained, records)
        made = reconstruct(trained, true)
        used = usage(trained, true, seed)
        values |= {f"{name}_heldout{suffix}": value for name, value in used.items()}
        for ending, other in (("", made), ("_mean_picture", np.broadcast_to(blank, true.shape))):
            found = distances(to_signal(true), to_signal(other))
            for name, each in zip(MEASURES, found, strict=True):
                values[f"{name}{ending}{suffix}"] = ratio(each, np.ones(len(each)), seed)
        rows = list(zip(made, true, records, strict=True))[: heldout.SHOWN]
        cells = [Cell([m, t], [r.caption]) for m, t, r in rows]
        title = f"{split}: reconstructed (left) and true (right)"
        sheet(cells, out / f"reconstructed_{split}.png", title)
    return values


def pictures(trained: Trained, records) -> np.ndarray:
    """[n, h, w, 3] uint8 of heldout records."""
    c = trained.run.experiment.data
    return np.stack([decode_image(r.image, c.image, c.resize) for r in records])


@jax.jit
def distances(a, b):
    """Signals [n, h, w, 3] -> MEASURES, [n] each."""
    return tuple(getattr(measure, name)(a, b) for name in MEASURES)


def both_ways(parts: Parts, params, batch: Batch):
    """Pixels [b, 1, h, w, 3] of a batch -> uint8 [b, h, w, 3], through the codec."""
    made = encode(parts, params, batch)
    return autoencoder.decode(parts.codec, params["codec"], made)


def reconstruct(trained: Trained, pixels: np.ndarray) -> np.ndarray:
    """[n, h, w, 3] uint8 -> what the codec makes of it."""
    return in_parts(trained, both_ways, pixels)


def usage(trained: Trained, pixels: np.ndarray, seed: int) -> dict[str, Value]:
    """How many of the codes are used, over all pictures."""
    size = trained.run.model.parts.codec.config.codes
    if not size:
        return {}
    depth = trained.run.model.parts.codec.config.quantiser.depth
    ids = in_parts(trained, encode, pixels).reshape(-1, depth)
    each = size // depth  # of each codebook, whose ids follow one another
    counts = np.stack([np.bincount(x % each, minlength=each) for x in ids.T])
    found = float(quantise.perplexity(jnp.asarray(counts, jnp.float32)).mean())
    n = len(pixels)
    share = float((counts > 0).mean())
    return {
        "codes_used": Value(share, n, seed, share, share),
        "perplexity": Value(found, n, seed, found, found),
    }
