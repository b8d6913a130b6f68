"""What a run leaves in its workdir: metrics.jsonl and small JSON files; and the progress bar."""

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmjax import paths
from mmjax.error import UserError

METRICS = "metrics.jsonl"
SENDING = 30.0  # seconds between two times that metrics are sent to a store
ROOTS = {"logit_squared": "logit_norm", "log_z_squared": "log_z"}


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses about an open file names the file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def show_table(view: Table) -> None:
    """Prints a table with nothing cut: a terminal wraps its text, a file has lines of any width."""
    console = Console()
    for column in view.columns:
        column.overflow = "fold"
    if not console.is_terminal:
        free = console.options.update(max_width=1 << 16)
        console.width = max(console.width, Measurement.get(console, free, view).maximum)
    console.print(view)


def write_json(path: Path, value) -> None:
    """Writes JSON so that the file is whole at every moment, also after a kill.

    Raises:
        OSError: with the file's name; the file is as it was.
    """
    text = json.dumps(value, indent=1) + "\n"
    if paths.is_remote(path):  # where an object is written whole or not at all
        path.write_bytes(text.encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path), draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_json(path: Path, remedy: str) -> dict:
    """The object in a JSON file.

    Raises:
        UserError: if it cannot be read, or holds something else; with the remedy.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object); {remedy}")
    return found


def _row(line: bytes) -> dict | None:
    """A line of metrics.jsonl; None for what is none, as a line torn by a kill or a full disk."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("step"), int)
    return found if whole else None


def _lines(workdir: str | Path) -> list[bytes]:
    path = paths.of(workdir) / METRICS
    return path.read_bytes().split(b"\n") if path.exists() else []


def read_metrics(workdir: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; lines that are none, as torn ones, are left out."""
    return [row for line in _lines(workdir) if (row := _row(line)) is not None]


def rewind(workdir: str | Path, step: int) -> None:
    """Drops the lines after `step`: the run goes on from there and will write them again.

    So it does a torn last line; other lines that are no rows stay.
    """
    path = paths.of(workdir) / METRICS
    if not path.exists():
        return
    *lines, last = _lines(workdir)
    lines += [last] if _row(last) else []
    rows = ((line, _row(line)) for line in lines)
    kept = [line for line, row in rows if (row["step"] <= step if row else line.strip())]
    whole = b"".join(line + b"\n" for line in kept)
    if paths.is_remote(path):
        path.write_bytes(whole)
        return
    draft = path.with_suffix(".tmp")
    try:
        with naming(path):
            draft.write_bytes(whole)
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


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
    """Appends one JSON object a line, flushed at once.

    To a store, where nothing is appended, the whole file is sent: at most once in SENDING seconds,
    and when `flush` asks for it, as it must before a checkpoint that goes on behind its lines.
    """

    def __init__(self, workdir: str | Path):
        self._path = paths.of(workdir) / METRICS
        self._remote = paths.is_remote(self._path)
        self._file: IO[bytes]
        if self._remote:
            self._file = io.BytesIO(self._path.read_bytes() if self._path.exists() else b"")
            self._file.seek(0, os.SEEK_END)
        else:
            self._file = self._path.open("ab")
        self._sent, self._new = time.monotonic(), False

    def write(self, row: Mapping[str, float | None]) -> None:
        """Writes one line; an OSError names the file."""
        with naming(self._path):
            self._file.write((json.dumps(dict(row)) + "\n").encode())
            self._new = True
            if not self._remote or time.monotonic() - self._sent > SENDING:
                self.flush()

    def flush(self) -> None:
        """Sees to it that all lines are in the file."""
        if not self._new:
            return
        with naming(self._path):
            if isinstance(self._file, io.BytesIO):
                self._path.write_bytes(self._file.getvalue())
            else:
                self._file.flush()
        self._sent, self._new = time.monotonic(), False

    def close(self) -> None:
        """Closes the file."""
        with naming(self._path):
            try:
                self.flush()
            finally:
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
