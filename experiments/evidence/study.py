"""What the comparisons share: arms, seeds, runs that are made once, intervals and tables.

An arm is an experiment file with some fields changed. Every run is an ordinary `mmjax train` into a
workdir named after file, steps, changes and seed, so that comparisons share what they have in
common; one that is there already is not run again, one that was stopped goes on. What runs logged
and measured can be kept apart from their weights (`--records`): it is small, and all that tables
and figures are made of.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from mmjax.error import UserError

ROOT = Path(__file__).parent.parent.parent
FLOPS_ROWS = 40  # batches whose FLOPs are averaged


class Arm(NamedTuple):
    """One side of a comparison.

    Attributes:
        name: in tables. experiment: a file in experiments/.
        changes: values of its fields. start: like `start` of a configuration, the value being an
            arm whose run of the same seed it is.
        steps: of training; 0 stands for the number the comparison was asked for.
        evals: what is measured at the end, with commas.
    """

    name: str
    experiment: str
    changes: Mapping[str, object] = {}
    start: Mapping[str, "Arm"] = {}
    steps: int = 0
    evals: str = "likelihood,scenes"


# What several comparisons begin with.
BASE = Arm(
    "transfusion", "small_transfusion", evals="likelihood,scenes,frechet,alignment,probe,redrawing"
)


# Of a workdir, what a record has; the last makes it one.
LOGGED = ("config.json", "metrics.jsonl", "summary.json")
OWN = ("seed", "steps", "save_every", "start")  # what an experiment file does not say of a run


class Run(NamedTuple):
    """What a run left.

    Attributes:
        metrics: its log, a row a logged step. summary: its evaluation.
        workdir: where its weights are, if anywhere. home: where its log is, and what is measured
            of it later: the workdir, or its record.
    """

    metrics: list[dict]
    summary: dict[str, dict]
    workdir: Path
    home: Path


def arguments(default: str) -> argparse.Namespace:
    """The flags of every comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("out/evidence") / default)
    parser.add_argument("--runs", type=Path, default=Path("out/evidence/runs"), help="of all")
    parser.add_argument(
        "--records", type=Path, help="what runs logged: is read in place of a run, and kept of one"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="of the first arm")
    parser.add_argument("--arms", default="", help="names of arms, with commas; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on cores of their own")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    given.runs.mkdir(parents=True, exist_ok=True)
    return given


def begin(main: Callable[[], None]) -> None:
    """Runs a script; what its user can mend is said in one line, and it ends with 2."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def label(arm: Arm, given) -> str:
    """What tells an arm's runs from those of others."""

    def plain(value: object) -> str:
        last = str(value).rpartition("/")[2]
        return "".join(c if c.isalnum() or c in ".-" else "_" for c in last).strip("_")

    changed = [f"{n.rpartition('.')[2]}={plain(v)}" for n, v in sorted(arm.changes.items())]
    begun = [f"{part}=({label(other, given)})" for part, other in sorted(arm.start.items())]
    return ",".join([arm.experiment, str(arm.steps or given.steps), *changed, *begun])


def place(arm: Arm, seed: int, given) -> Path:
    """The workdir of a run."""
    return (given.runs / f"{label(arm, given)},seed={seed}").resolve()


def flags(arm: Arm, seed: int, given) -> list[str]:
    """The arm as flags of a verb that takes a configuration."""
    steps = arm.steps or given.steps
    changes = {"seed": seed, "steps": steps, "save_every": steps} | dict(arm.changes)
    begun = {f"start.{part}": place(other, seed, given) for part, other in arm.start.items()}
    return [
        f"--config={ROOT / 'experiments' / arm.experiment}.py",
        *(f"--config.{name}={value}" for name, value in (changes | begun).items()),
    ]


def mmjax(log: Path, *words: str, cores: Sequence[int] = ()) -> None:
    """Runs the command line, its output into a file; raises UserError if it fails.

    On some cores alone, if they are named: small models train faster side by side.
    """
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    command = [*pinned, sys.executable, "-m", "mmjax", *words]
    with log.open("a") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed; see {log}")


def finished(workdir: Path) -> bool:
    """Whether a run is there, with its evaluation."""
    return (workdir / "summary.json").is_file()


def record(workdir: Path, given) -> Path | None:
    """Where a run's log is kept; None where none is."""
    return given.records and given.records / workdir.name


def keep(workdir: Path, given) -> Path:
    """Copies a finished run's log to its record; -> where the log is."""
    kept = record(workdir, given)
    if kept is None:
        return workdir
    if finished(workdir):
        kept.mkdir(parents=True, exist_ok=True)
        measured = sorted(file.name for file in workdir.glob("sweep_*.json"))
        for name in (*measured, *LOGGED):
            shutil.copy(workdir / name, kept / name)
    return kept


def check(arm: Arm, home: Path) -> None:
    """Raises UserError if a run was made from another experiment file than there is now."""
    from mmjax import config, values
    from mmjax.run import families

    c = config.load(str(ROOT / "experiments" / f"{arm.experiment}.py"))
    now = values.to_dict(config.resolve(c, families()))
    then = json.loads((home / "config.json").read_text())
    for name in sorted({*flat(now), *flat(then)}):
        if not any(f"{name}.".startswith(f"{other}.") for other in (*OWN, *arm.changes)):
            was, is_ = flat(then).get(name), flat(now).get(name)
            if was != is_:
                raise UserError(
                    f"{home} was made with {name}={was}, {arm.experiment}.py has {is_}; remove it "
                    f"to make it anew"
                )


def flat(tree: Mapping, prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, "a.b" -> what stands there, as text."""
    found: dict[str, str] = {}
    for name, x in tree.items():
        if isinstance(x, Mapping) and x:
            found |= flat(x, f"{prefix}{name}.")
        else:
            found[prefix + name] = json.dumps(x)
    return found


def make(arms: Sequence[Arm], seed: int, given, weights: bool = False) -> None:
    """Makes the runs of a seed that are not there, after those they begin as.

    weights: a record does not do.
    """

    def lacks(arm: Arm) -> bool:
        workdir = place(arm, seed, given)
        kept = record(workdir, given)
        return not finished(workdir) and (weights or kept is None or not finished(kept))

    missing = [arm for arm in arms if lacks(arm)]
    if not missing:
        return
    make([other for arm in missing for other in arm.start.values()], seed, given, weights=True)
    some = {label(arm, given): arm for arm in missing if lacks(arm)}
    cores = sorted(os.sched_getaffinity(0))
    free: SimpleQueue[Sequence[int]] = SimpleQueue()
    for job in range(given.jobs):
        free.put(cores[job :: given.jobs] if given.jobs > 1 else ())

    def one(arm: Arm) -> None:
        workdir, mine = place(arm, seed, given), free.get()
        print(f"training {workdir.name}", file=sys.stderr, flush=True)
        words = [f"--workdir={workdir}", f"--evals={arm.evals}", *flags(arm, seed, given)]
        try:
            mmjax(workdir.with_name(workdir.name + ".log"), "train", *words, cores=mine)
            keep(workdir, given)
        finally:
            free.put(mine)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, some.values()))


def runs(arms: Sequence[Arm], given, weights: bool = False) -> dict[str, list[Run]]:
    """All runs of all arms, seed by seed, so that a study that is stopped has whole seeds.

    weights: for studies that load what was trained: a record does not do.
    """
    chosen = [a for a in arms if not given.arms or a.name in given.arms.split(",")]
    found: dict[str, list[Run]] = {arm.name: [] for arm in chosen}
    for seed in range(given.seeds):
        make(chosen, seed, given, weights)
        for arm in chosen:
            workdir = place(arm, seed, given)
            home = keep(workdir, given)
            check(arm, home)
            lines = (home / "metrics.jsonl").read_text().splitlines()
            summary = json.loads((home / "summary.json").read_text())
            metrics = [json.loads(line) for line in lines]
            found[arm.name].append(Run(metrics, summary, workdir, home))
    return found


def measured(arms: Sequence[Arm], given, place: Callable[[Run], Path]) -> dict[str, list[Run]]:
    """All runs of all arms, each with its weights or with what is measured of it at `place`."""
    found = runs(arms, given)
    every = [one for some in found.values() for one in some]
    if all(place(one).is_file() or finished(one.workdir) for one in every):
        return found
    return runs(arms, given, weights=True)


def once(path: Path, measure: Callable[[], Any]) -> Any:
    """What was measured, from its file; where there is none it is measured and kept there."""
    if not path.is_file():
        path.write_text(json.dumps(measure(), indent=1))
    return json.loads(path.read_text())


class Cost(NamedTuple):
    """Exact training FLOPs of one update, three forward passes, and the pictures it has."""

    flops: float
    pictures: float


def flops_per_step(arm: Arm) -> float:
    """FLOPs of one update, see `per_step`."""
    return per_step(arm).flops


def per_step(arm: Arm) -> Cost:
    """What one update of an arm takes, averaged over batches."""
    from mmjax import config
    from mmjax.data import pipeline
    from mmjax.run import families, prepare

    c = config.load(str(ROOT / "experiments" / f"{arm.experiment}.py"))
    c.update_from_flattened_dict(dict(arm.changes))
    e = config.resolve(c, families())
    one = prepare(e)
    stream = pipeline.train_batches(e.data, one.tokenizer, e.batch, e.steps, e.seed)
    batches = [next(stream) for _ in range(FLOPS_ROWS)]
    stream.close()
    flops = 3 * np.mean([one.model.flops(batch) for batch in batches])
    pictures = np.mean([np.asarray(batch.image).max(axis=1).sum() for batch in batches])
    return Cost(float(flops), float(pictures))


def matched(
    arms: Sequence[Arm], given, told: Sequence[str] = ()
) -> tuple[list[Arm], dict[str, float]]:
    """(arms with as many steps as the FLOPs of the first allow, name -> FLOPs of one step).

    told: names of those this is for, the others having its steps; all, if there are none.
    """
    cost = {arm.name: flops_per_step(arm) for arm in arms}
    budget = cost[arms[0].name] * given.steps
    some = told or tuple(cost)
    steps = {n: round(budget / one) if n in some else given.steps for n, one in cost.items()}
    return [arm._replace(steps=steps[arm.name]) for arm in arms], cost


def spent(arms: Sequence[Arm], cost: Mapping[str, float], found: Mapping[str, list[Run]]) -> str:
    """A sentence on the FLOPs of arms that are matched, as far as they have run."""
    ran = [arm for arm in arms if arm.name in found]
    whole = ", ".join(f"{a.name} {a.steps * cost[a.name]:.3g} in {a.steps} steps" for a in ran)
    return f"Training FLOPs: {whole}. n = {len(found[ran[0].name])} seeds."


def interval(values: Sequence[float]) -> str:
    """Mean over seeds with its 95 % t-interval."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return f"{x.mean():.3f}"
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return f"{x.mean():.3f} ± {half:.3f}"


def difference(a: Sequence[float], b: Sequence[float]) -> str:
    """Mean of a - b over seeds, with the 95 % t-interval of paired differences."""
    return interval(np.asarray(a) - np.asarray(b))


def values(found: Sequence[Run], name: str) -> list[float]:
    """An entry of the summaries, a number a seed."""
    return [one.summary[name]["value"] for one in found]


def seconds(found: Sequence[Run]) -> list[float]:
    """Median seconds of a step, a number a seed; other work on the machine is in it."""
    return [float(np.median([row["step_s"] for row in one.metrics])) for one in found]


def either(some: Sequence[Run], name: str) -> str:
    """An entry of the summaries, or a dash where runs were not measured that way."""
    return interval(values(some, name)) if all(name in one.summary for one in some) else "-"


def more(some: Sequence[Run], base: Sequence[Run], name: str) -> str:
    """What runs have more of an entry than others, seed by seed, or a dash; see `either`."""
    if all(name in one.summary for one in [*some, *base]):
        return difference(values(some, name), values(base, name))
    return "-"


def table(columns: Mapping[str, str], found: Mapping[str, Sequence[Run]]) -> str:
    """Markdown: a row an arm, a column an entry of the summaries."""
    names = [c for c in columns if any(c in r.summary for some in found.values() for r in some)]
    lines = ["| | " + " | ".join(columns[n] for n in names) + " |", "|---" * (len(names) + 1) + "|"]
    for arm, some in found.items():
        cells = [either(some, n) for n in names]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def baselines(titles: Mapping[str, str], found: Mapping[str, Sequence[Run]]) -> list[str]:
    """A line an entry of the summaries and an arm that has it."""
    return [
        f"{title}: {interval(values(some, name))} ({arm})"
        for name, title in titles.items()
        for arm, some in found.items()
        if name in some[0].summary
    ]


def differences(columns: Mapping[str, str], found: Mapping[str, Sequence[Run]], base: str) -> str:
    """Markdown: a row an arm, the base's values less its own, seed by seed."""
    lines = [f"| {base} less ... | " + " | ".join(columns.values()) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, some in found.items():
        both = [n for n in columns if all(n in one.summary for one in [*some, *found[base]])]
        pairs = {n: (values(found[base], n), values(some, n)) for n in both}
        cells = [difference(*pairs[n]) if n in pairs else "-" for n in columns]
        if name != base:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tell(lines: Sequence[str], given) -> None:
    """Prints a comparison's tables, and writes them beside its figures."""
    text = "\n".join(lines)
    print(text)
    (given.out / "table.md").write_text(text + "\n")
