"""How often the oracle of `mmjax.data.scenes` is right, on scenes it has not seen.

    python benchmarks/scenes_oracle.py [--count=500] [--out=oracle.json]

Every row is `count` fresh scenes of one to five objects, drawn at a size and then spoilt in one
way. A cell is the share of pictures of which everything of its kind was found, with the 95 % Wilson
interval of the last column.
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import PIL.Image
from scipy import ndimage, stats

from mmjax.data.scenes.draw import picture
from mmjax.data.scenes.oracle import agreement, find
from mmjax.data.scenes.scene import COLOURS, MOST, SHAPES, sample

SEED = 12345
PAIRS = [(s, c) for s in SHAPES for c in COLOURS]


def noise(sigma: float):
    """Normal noise of a standard deviation in levels of 255."""

    def spoil(pixels, rng):
        return np.clip(pixels + rng.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8)

    return spoil


def blurred(sigma: float):
    """Gaussian blur; sigma in pixels."""
    return lambda pixels, rng: ndimage.gaussian_filter(pixels, (sigma, sigma, 0))


def jpeg(quality: int):
    """Compressed and read back."""

    def spoil(pixels, rng):
        del rng
        out = io.BytesIO()
        PIL.Image.fromarray(pixels).save(out, "JPEG", quality=quality)
        return np.asarray(PIL.Image.open(out))

    return spoil


WAYS = {
    "clean": (lambda pixels, rng: pixels, 0.0),
    "noise 10": (noise(10), 0.0),
    "noise 25": (noise(25), 0.0),
    "noise 50": (noise(50), 0.0),
    "blur 0.7": (blurred(0.7), 0.0),
    "blur 1.5": (blurred(1.5), 0.0),
    "JPEG 75": (jpeg(75), 0.0),
    "JPEG 25": (jpeg(25), 0.0),
    "overlap 0.3": (lambda pixels, rng: pixels, 0.3),
    "overlap 0.6": (lambda pixels, rng: pixels, 0.6),
}


def measure(size: int, spoil, overlap: float, count: int) -> dict:
    """Shares by kind of statement, and milliseconds a picture."""
    rng = np.random.default_rng(SEED)
    hits: dict[str, int] = {}
    seconds = 0.0
    for _ in range(count):
        scene = sample(rng, range(1, MOST + 1), PAIRS, overlap)
        pixels = spoil(picture(scene, size), rng)
        start = time.perf_counter()
        found = find(pixels)
        seconds += time.perf_counter() - start
        for name, right in agreement(scene.things, found).items():
            hits[name] = hits.get(name, 0) + right
    interval = stats.binomtest(hits["all"], count).proportion_ci(method="wilson")
    shares = {name: n / count for name, n in hits.items()}
    return shares | {"low": interval.low, "high": interval.high, "ms": 1e3 * seconds / count}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--out")
    args = parser.parse_args()
    if args.out and Path(args.out).exists():
        parser.error(f"--out={args.out} exists; remove it, or name another file")
    kinds = ("count", "colours", "shapes", "objects", "relations", "all")
    print(f"{'':18s}" + "".join(f"{k:>10s}" for k in kinds) + f"{'95 % of all':>16s} {'ms':>5s}")
    report = {}
    for size in (16, 32, 64):
        for name, (spoil, overlap) in WAYS.items():
            row = measure(size, spoil, overlap, args.count)
            report[f"{size} px, {name}"] = row | {"n": args.count, "seed": SEED}
            cells = "".join(f"{row[k]:10.3f}" for k in kinds)
            print(
                f"{size} px, {name:11s}{cells}   {row['low']:.3f} ... {row['high']:.3f} "
                f"{row['ms']:5.1f}",
                flush=True,
            )
    if args.out:
        with open(args.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
