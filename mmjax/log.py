"""What a run leaves in its workdir: metrics.jsonl and small JSON files; and the progress bar."""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

METRICS = "metrics.jsonl"
ROOTS = {"logit_squared": "logit_norm", "log_z_squared": "log_z"}


def write_json(path: Path, value) -> None:
    """Writes JSON so that the file is whole at every moment, also after a kill."""
    text = json.dumps(value, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_metrics(workdir: str | Path) -> list[dict]:
    """All complete lines of a run's metrics.jsonl; a line torn by a kill is left out."""
    path = Path(workdir) / METRICS
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def rewind(workdir: str | Path, step: int) -> None:
    """Drops the lines after `step`: the run goes on from there and will write them again."""
    path = Path(workdir) / METRICS
    if not path.exists():
        return
    kept = [row for row in read_metrics(workdir) if row["step"] <= step]
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(draft, path)


def tidy(metrics: Mapping[str, float]) -> dict[str, float]:
    """Device metrics as they are logged: roots of mean squares under their own names."""
    out = {}
    for name, value in metrics.items():
        group, _, entry = name.rpartition("/")
        if entry in ROOTS:
            out[f"{group}/{ROOTS[entry]}"] = math.sqrt(float(value))
        else:
            out[name] = float(value)
    return out


class MetricsFile:
    """Appends one JSON object a line, flushed at once."""

    def __init__(self, workdir: str | Path):
        self._file = (Path(workdir) / METRICS).open("a")

    def write(self, row: Mapping[str, float | None]) -> None:
        """Writes one line."""
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Bar:
    """Progress on a terminal; elsewhere a line at every logged step."""

    def __init__(self, total: int, start: int = 0):
        self._console = Console(file=sys.stderr)
        self._total = total
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=total, completed=start, note="")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *error) -> None:
        self._progress.stop()

    def step(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=step)

    def note(self, row: Mapping[str, float | None], left: float) -> None:
        """Shows a logged row and the seconds left."""
        text = f"loss {row['loss']:.3f}  {row['tokens_per_s']:,.0f} tokens/s"
        self._progress.update(self._task, note=text)
        if self._progress.disable:
            minutes, seconds = divmod(int(left), 60)
            self.say(f"step {row['step']}/{self._total}  {text}  {minutes}:{seconds:02d} left")

    def say(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
