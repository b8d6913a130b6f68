"""Peers in processes of their own that take turns: whatever else the machine does falls on all."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


def worker(run: Callable, warm: int = 3) -> None:
    """Warms up, then does one piece of work a line of input and answers with its milliseconds."""
    for _ in range(warm):
        run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(1e3 * (time.perf_counter() - start), flush=True)


def launch(
    script: str, name: str, python: str, allocator: str, more: Sequence[str] = ()
) -> subprocess.Popen:
    """Starts `python script --worker=name` and waits until it is warm.

    Args:
        script, name, python: what to run. allocator: "launcher", as mmjax sets it for itself, or
            "default". more: flags.
    """
    sys.path.insert(0, str(ROOT))
    from mmjax.__main__ import ALLOCATOR

    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    chosen = ALLOCATOR if allocator == "launcher" else {}
    process = subprocess.Popen(
        [python, script, f"--worker={name}", *more], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=clean | chosen, bufsize=1,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready", f"{name} did not start"
    return process


def turn(process: subprocess.Popen) -> float:
    """Milliseconds of one piece of work."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def alternate(running: Mapping[str, subprocess.Popen], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each peer in each round, A B C, C B A, ...; then stops them."""
    times: dict[str, list[float]] = {label: [] for label in running}
    for r in range(rounds):
        for label in list(running)[:: 1 if r % 2 == 0 else -1]:
            times[label].append(turn(running[label]))
    for process in running.values():
        process.stdin.close()
        process.wait()
        process.stdout.close()
    return times


def table(times: Mapping[str, list[float]], reference: str, rates: Mapping | None = None) -> None:
    """Prints medians, and over rounds the ratio of speeds to the reference's.

    `rates`: label -> (amount of work, unit), for a column of work a second.
    """
    base = np.array(times[reference])
    print(f"{'':34s} {'median ms':>10s} {'speed / ' + reference:>20s} {'10 % ... 90 %':>16s}")
    for label, values in times.items():
        ratio = base / np.array(values)
        low, high = np.quantile(ratio, [0.1, 0.9])
        line = f"{label:34s} {np.median(values):10.0f} {np.median(ratio):20.2f} "
        line += f"{low:7.2f} ... {high:.2f}"
        if rates:
            amount, unit = rates[label]
            line += f"  {1e3 * amount / np.median(values):8.0f} {unit}"
        print(line)
