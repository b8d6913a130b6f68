"""Codecs that differ in their quantiser alone, at 9 bits a place: a table over seeds.

    python benchmarks/quantisers.py --out=out/quantisers [--seeds=3] [--steps=400]
    python benchmarks/quantisers.py --seeds=1 --steps=20 --ways="FSQ, 8 x 8 x 8" --change=batch=2

OpenMoji at 32 x 32, 64 places a picture, a small network. Every run is one of
`experiments/codec_openmoji.py` with the changes below, evaluated on held-out combinations, and
stays in --out; those that are there already are not run again. Needs out/data/openmoji. --ways
names some of them, parted by semicolons; --change puts a field of every run to another value.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import runs

BASE = dict(
    kind="vq", codes=512, width=16, depth=1, levels=(), commit=0.25, decay=0.99, unit=False,
    restart=0.1, gradient="straight", entropy=0.0, legacy_beta=False,
)  # fmt: skip
WAYS = {
    "VQ, codebook by gradient": dict(decay=0.0, restart=0.0),
    "VQ, moving average": dict(restart=0.0),
    "VQ, gradient, restarts": dict(decay=0.0),
    "VQ, moving average, restarts": dict(),
    "the same, unit length, width 8": dict(unit=True, width=8),
    "the same, rotation trick": dict(gradient="rotation"),
    "RVQ, 3 x 8 codes": dict(kind="rvq", depth=3, codes=8),
    "FSQ, 8 x 8 x 8": dict(kind="fsq", levels=(8, 8, 8), width=3),
    "LFQ, 9 signs": dict(kind="lfq", width=9, entropy=0.02, commit=0.1),
}
SHOWN = ("psnr", "ssim", "absolute", "codes_used", "perplexity")


def changes(name: str, seed: int, steps: int) -> dict:
    """Fields of a run."""
    return {
        "seed": seed, "steps": steps, "save_every": steps, "model.codec.channels": 16,
        "optim.peak": 2e-3, "model.codec.quantiser": BASE | WAYS[name],
    }  # fmt: skip


def run(name: str, seed: int, steps: int, out: Path, more: Mapping) -> dict:
    """One run's summary; its directory's name tells it from runs of other settings or lengths."""
    how = BASE | WAYS[name]
    mark = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]
    workdir = out / f"{how['kind']}_{mark}_{steps}_{seed}"
    if not (workdir / "summary.json").exists():
        fields = changes(name, seed, steps) | dict(more)
        done = runs.train("codec_openmoji", (), fields, workdir, evaluated=True)
        if done.returncode:
            sys.exit(done.stderr)
    return json.loads((workdir / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/quantisers"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--ways", default=";".join(WAYS))
    runs.add_change(parser)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print("| quantiser | PSNR, dB | SSIM | mean abs. error | codes used | perplexity |")
    print("|---|---|---|---|---|---|")
    for name in given.ways.split(";"):
        out, more = given.out.resolve(), dict(given.change)
        found = [run(name, seed, given.steps, out, more) for seed in range(given.seeds)]
        cells = []
        for entry in SHOWN:
            values = [one[entry]["value"] for one in found]
            digits = {"psnr": 2, "perplexity": 0}.get(entry, 3)
            low, high = (f"{x:.{digits}f}" for x in (min(values), max(values)))
            cells.append(f"{np.mean(values):.{digits}f} [{low}, {high}]")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
