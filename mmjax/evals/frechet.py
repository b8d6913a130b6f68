"""How far the pictures a model draws lie from true ones, as a distribution.

The form of FID (Heusel et al. 2017, arXiv 1706.08500) on another network's features, and named
after them: EfficientNet-Lite0's last ones, 1,280 numbers. Not comparable with FID, nor across n.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import watch
from mmjax.codecs import efficientnet
from mmjax.evals import heldout
from mmjax.evals.reconstruction import pictures, reconstruct
from mmjax.evals.value import Value
from mmjax.layers.patch import to_signal
from mmjax.trained import Trained

SIDE = 96  # pictures are brought to it: smaller ones would leave the last stage a single place
ROWS = 32
RESAMPLES = 200


def of_either(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """`evaluate`, or of a codec, which draws nothing, `reconstructed`."""
    return (evaluate if trained.abilities.draws else reconstructed)(trained, seed, out)


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """`frechet_lite0`: of the drawings of each held-out split from its true pictures.

    `frechet_lite0_true`: of as many training pictures from these, what a perfect model would have
    at this n; `_codec`: of what the model's codec makes of the true pictures, what a perfect model
    of its codes would. Nothing where the feature network is not installed.
    """
    count = trained.run.experiment.evals.drawings
    makers: dict[str, Callable] = {"": partial(heldout.drawings, trained)}
    if getattr(trained.run.model.parts, "codec", None) is not None:
        makers["_codec"] = partial(both_ways, trained)
    return compare(trained, count, seed, makers)


def reconstructed(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """The same of a codec's reconstructions.

    Of codecs trained with the feature distance it is no fair judge: that looks at earlier stages of
    the same network.
    """
    count = trained.run.experiment.evals.documents
    return compare(trained, count, seed, {"": partial(both_ways, trained)})


def both_ways(trained: Trained, split: str, count: int, seed: int):
    """Records of a split, and their pictures in and out of the codec."""
    records = heldout.draw(trained, split, count, seed)
    return records, reconstruct(trained, pictures(trained, records))


def compare(
    trained: Trained, count: int, seed: int, makers: Mapping[str, Callable]
) -> dict[str, Value]:
    """Against true pictures what each maker gives for (split, count, seed): records, pictures.

    All give the same records; names of makers go into those of values.
    """
    splits = heldout.splits(trained)
    if not splits or not efficientnet.installed():
        return {}
    params = efficientnet.load()
    other = features(params, pictures(trained, heldout.draw(trained, "train", count, seed)))
    values: dict[str, Value] = {}
    for split, suffix in splits.items():
        made = {name: make(split, count, seed) for name, make in makers.items()}
        true = features(params, pictures(trained, made[""][0]))
        for name, (_, drawn) in made.items():
            found = features(params, drawn)
            values[f"frechet_lite0{name}{suffix}"] = distance_value(found, true, seed)
        values[f"frechet_lite0_true{suffix}"] = distance_value(other[: len(true)], true, seed)
    return values


@jax.jit
def _pooled(params, pixels):
    x = jax.image.resize(to_signal(pixels), (len(pixels), SIDE, SIDE, 3), "bilinear")
    return efficientnet.pooled(params, x)


def features(params, pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 3] -> [n, 1280] f64."""
    found = []
    for first in watch.pieces(range(0, len(pixels), ROWS), "pictures", ROWS, len(pixels)):
        part = pixels[first : first + ROWS]
        whole = part[np.minimum(np.arange(ROWS), len(part) - 1)]
        found.append(np.asarray(_pooled(params, jnp.asarray(whole)))[: len(part)])
    return np.concatenate(found).astype(np.float64)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mean difference|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of samples [n, d] and [m, d].

    The last trace is the sum of singular values of A B^T, for centred samples over the square root
    of their number less one: exact also where n < d. Of more than d samples, the triangle of their
    QR decomposition has the same.
    """
    mean = a.mean(0) - b.mean(0)
    x, y = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (a, b))
    x, y = (np.asarray(np.linalg.qr(z, "r")) if len(z) > z.shape[1] else z for z in (x, y))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(mean @ mean + (x**2).sum() + (y**2).sum() - 2 * cross)


def distance_value(a: np.ndarray, b: np.ndarray, seed: int) -> Value:
    """The distance, and 1.96 times its bootstrap's spread over both samples to either side.

    The distance is biased: of two samples of one distribution it is above zero, the more the
    smaller they are. So are resampled distances once more, of which only the spread is used.
    """
    value = frechet(a, b)
    rng = np.random.default_rng(seed)
    again = [
        frechet(*(z[rng.integers(0, len(z), len(z))] for z in (a, b))) for _ in range(RESAMPLES)
    ]
    half = 1.96 * float(np.std(again))
    return Value(value, len(a), seed, value - half, value + half)
