"""Runs evaluations on a trained workdir and writes down what they found."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmjax.error import UserError
from mmjax.evals import EVALS, usual
from mmjax.evals.value import Value
from mmjax.log import read_metrics, write_json
from mmjax.run import read_config
from mmjax.trained import load

SEED = 0


def evaluate(workdir: str, names: list[str] | None = None) -> dict[str, Value]:
    """Runs evaluations, prints their table, and writes evals.json, summary.json and samples/.

    Raises:
        UserError: for an unknown evaluation, or a workdir without a checkpoint.
    """
    e = read_config(workdir)
    family = e.family
    have = EVALS[family]
    names = usual(e) if names is None else names
    unknown = [n for n in names if n not in have]
    if unknown:
        raise UserError(f"--evals={unknown[0]} is unknown; {family} has: {', '.join(have)}")
    trained = load(workdir)
    values: dict[str, Value] = {}
    for name in names:
        values |= have[name](trained, SEED, Path(workdir) / "samples")
    report = {name: value.as_dict() for name, value in values.items()}
    write_json(Path(workdir) / "evals.json", report | {"step": trained.step})
    write_json(Path(workdir) / "summary.json", report)
    if values:
        table(values, trained.step, workdir)
    elif names:
        Console().print("nothing evaluated: no split holds ten held-out pictures with a text")
    return values


def table(values: dict[str, Value], step: int, workdir: str) -> None:
    """Prints values with their intervals, and where the sheets lie."""
    view = Table("held out", "value", "95 % interval", "n", title=f"step {step}")
    for name, v in values.items():
        view.add_row(name, f"{v.value:.3f}", f"{v.low:.3f} ... {v.high:.3f}", str(v.n))
    console = Console()
    console.print(view)
    last = read_metrics(workdir)[-1:]
    if last:
        console.print(f"last logged step: loss {last[0]['loss']:.4f}", highlight=False)
    console.print(f"contact sheets: {Path(workdir) / 'samples'}", highlight=False)
