"""Runs evaluations on a trained workdir and writes down what they found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmjax import evals, paths
from mmjax.config import Experiment
from mmjax.error import UserError, near
from mmjax.evals import heldout
from mmjax.evals.value import Value
from mmjax.log import read_metrics, show_table, write_json
from mmjax.run import read_config
from mmjax.trained import load
from mmjax.watch import Watch

SEED = 0


def evaluate(workdir: str, names: list[str] | None = None) -> dict[str, Value]:
    """Runs evaluations, prints their table, and writes evals.json, summary.json and samples/.

    What other evaluations found at the same step stays in the files. summary.json is written last:
    where it lies, all that was asked for has been found.

    Raises:
        UserError: for an unknown evaluation, or a workdir without a checkpoint.
    """
    e = read_config(workdir)
    have, samples = evals.of(e), paths.of(workdir) / "samples"
    names = evals.usual(e) if names is None else names
    check_names(e, names)
    trained = load(workdir)
    values: dict[str, Value] = {}
    report = found_before(workdir, trained.step)
    with Watch("evaluate", len(names)) as watch:
        for name in names:
            watch.stage(name)
            found = have[name](trained, SEED, samples)
            values |= found
            report |= {name: value.as_dict() for name, value in found.items()}
            # After each: what was found stays, whatever becomes of the next.
            write_json(paths.of(workdir) / "evals.json", report | {"step": trained.step})
    write_json(paths.of(workdir) / "evals.json", report | {"step": trained.step})
    write_json(paths.of(workdir) / "summary.json", report)
    if values:
        table(values, trained.step, workdir)
    if names:
        say_what_of(values, samples)
    return values


def say_what_of(values: Mapping[str, Value], samples: Path) -> None:
    """Prints where the sheets lie, and what was measured where the data hold too little out."""

    def say(text: str) -> None:
        Console().print(text, highlight=False, soft_wrap=True)

    if any(samples.glob("*.png")):
        say(f"contact sheets: {samples}")
    hold = "to hold some out, build the data set with --test=0.2, or from more documents"
    names = {split: [n for n in values if n.endswith(s)] for split, s in heldout.SPARE.items()}
    if split := next((split for split, found in names.items() if found), ""):
        say(
            f"no split `test` with {heldout.FEWEST} documents: measured on `{split}`, names end in "
            f"_{split}; {hold}"
        )
    elif not values:
        say(f"nothing evaluated: no split holds documents such as the evaluations ask for; {hold}")


def found_before(workdir: str, step: int) -> dict:
    """The values in evals.json, if they are of this step.

    Raises:
        UserError: if the file is damaged.
    """
    path = paths.of(workdir) / "evals.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        return found if found.pop("step") == step else {}
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged; remove it and evaluate again") from error


def check_names(e: Experiment, names: Sequence[str]) -> None:
    """Checks that an experiment's family has evaluations of these names.

    Raises:
        UserError: naming one that it has not.
    """
    have = evals.of(e)
    if unknown := sorted(set(names) - set(have)):
        hint = f"{near(unknown[0], have)}; {e.family} has: {', '.join(have)}"
        raise UserError(f"--evals={unknown[0]} is unknown{hint}")


def table(values: dict[str, Value], step: int, workdir: str) -> None:
    """Prints values with their intervals."""
    view = Table("held out", "value", "95 % interval", "n", title=f"step {step}")
    for name, v in values.items():
        view.add_row(name, f"{v.value:.3f}", f"{v.low:.3f} ... {v.high:.3f}", str(v.n))
    show_table(view)
    last = read_metrics(workdir)[-1:]
    if last:
        Console().print(f"last logged step: loss {last[0]['loss']:.4f}", highlight=False)
