"""Trains Chameleon at high rates with parts of its stability kit left out; a table and a figure.

    python benchmarks/stability.py --out=out/stability [--seeds=3] [--rates=1e-2,3e-2] [--steps=300]
    python benchmarks/stability.py --seeds=1 --rates=1e-2 --steps=20 --kits=7b --change=batch=2

Each run is an ordinary one of `experiments/chameleon_stability.py` and stays in --out; those that
are there already are not run again. Needs what that experiment needs. --kits names some, parted by
semicolons; --change puts a field of every run to another value.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import runs

KITS = (
    "7b", "7b,-qk_norm", "7b,-z_loss", "7b,-dropout",
    "34b", "34b,-qk_norm", "34b,-z_loss", "34b,+dropout",
)  # fmt: skip
PANELS = ("loss", "attention_peak", "image/last_norm", "image/log_z")
TAIL = 10  # logged steps whose mean is a run's last loss


def changes(rate: float, seed: int, steps: int) -> dict:
    """Fields of a run."""
    return {"seed": seed, "optim.peak": rate, "steps": steps, "save_every": steps}


def run(kit: str, rate: float, seed: int, steps: int, out: Path, more: Mapping) -> list[dict]:
    """One run's metrics; a run that stopped at a loss that is no number has fewer."""
    workdir = out / f"{kit.replace(',', '_')}_{rate:g}_{steps}_{seed}"
    log = workdir.parent / f"{workdir.name}.log"  # the rate's point is no suffix
    if not log.exists():
        fields = changes(rate, seed, steps) | dict(more)
        done = runs.train("chameleon_stability", (kit,), fields, workdir, evaluated=False)
        if done.returncode and "UserError" not in done.stderr:
            sys.exit(done.stderr)
        log.write_text(done.stderr)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def spikes(losses: np.ndarray) -> int:
    """Logged losses more than 0.5 nats above the median of the ten before."""
    return sum(x > np.median(losses[max(i - 10, 0) : i]) + 0.5 for i, x in enumerate(losses) if i)


def row(kit: str, rate: float, several: list[list[dict]], steps: int) -> str:
    """A line of the table: over seeds, mean and range."""
    last = [np.mean([r["loss"] for r in one[-TAIL:]]) for one in several]
    whole = sum(one[-1]["step"] >= steps for one in several)
    counts = [spikes(np.array([r["loss"] for r in one])) for one in several]

    def most(name: str) -> str:
        return " ".join(f"{max(r[name] for r in one):.3g}" for one in several)

    return (
        f"| {kit} | {rate:g} | {whole}/{len(several)} | {np.mean(last):.2f} "
        f"[{min(last):.2f}, {max(last):.2f}] | {' '.join(map(str, counts))} | "
        f"{most('attention_peak')} | {most('image/last_norm')} | {most('image/log_z')} |"
    )


def figure(found: dict, path: Path) -> None:
    """Curves of every run: a row of panels for each rate, a colour for each kit."""
    rates = sorted({rate for _, rate in found})
    plot, axes = plt.subplots(
        len(rates), len(PANELS), figsize=(4 * len(PANELS), 3 * len(rates)), squeeze=False
    )
    colours = dict(zip(KITS, plt.get_cmap("tab10").colors, strict=False))
    for (kit, rate), several in found.items():
        for panel, axis in zip(PANELS, axes[rates.index(rate)], strict=True):
            for number, one in enumerate(several):
                axis.plot(
                    [r["step"] for r in one], [r[panel] for r in one], color=colours[kit], lw=1,
                    alpha=0.8, label=kit if number == 0 else None,
                    linestyle="-" if kit.startswith("7b") else "--",
                )  # fmt: skip
            axis.set_title(f"{panel}, rate {rate:g}", fontsize=10)
            axis.set_xlabel("step")
            axis.set_yscale("linear" if panel == "loss" else "log")
    axes[0][0].set_ylim(3.5, 8.0)
    axes[0][0].legend(fontsize=7, loc="upper right")
    plot.tight_layout()
    plot.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/stability"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", default="1e-2,3e-2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kits", default=";".join(KITS))
    runs.add_change(parser)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rates = [float(x) for x in given.rates.split(",")]
    found: dict = {}
    print("| kit | rate | finished | last loss | spikes | attention peak | last norm | log Z |")
    print("|---|---|---|---|---|---|---|---|")
    for rate, kit in itertools.product(rates, given.kits.split(";")):
        out, more = given.out.resolve(), dict(given.change)
        several = [run(kit, rate, seed, given.steps, out, more) for seed in range(given.seeds)]
        found[kit, rate] = several
        print(row(kit, rate, several, given.steps), flush=True)
    figure(found, given.out / "stability.png")


if __name__ == "__main__":
    main()
