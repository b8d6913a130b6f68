"""How far work in pieces has come, shown to whoever watches: on a terminal, or line by line."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
EVERY = 10.0  # seconds between two lines of a log

# What is told of (what, pieces done, pieces in all); nobody watches unless a `Watch` is open.
_told: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("told", default=None)


def pieces(items: Sequence[T], what: str, each: int = 1, total: int | None = None) -> Iterator[T]:
    """The items, telling an open `Watch` how many are done.

    Args:
        items: pieces of work. what: they are made of, as "prompts".
        each: how many of these a piece holds; total: in all, where the last piece may hold less.
    """
    told = _told.get()
    most = len(items) * each if total is None else total
    for number, item in enumerate(items):
        if told:
            told(what, min(number * each, most), most)
        yield item
    if told:
        told(what, most, most)


class Watch:
    """Shows the progress of one stage of work after the other, while it is open.

    On a terminal a bar; elsewhere a line when a stage begins, and every EVERY seconds how far it
    is and about how long its pieces will take.
    """

    def __init__(self, name: str, stages: int = 0):
        """`name`: of the work. `stages`: how many there will be; 0 for one that is not named."""
        self._console = Console(file=sys.stderr)
        self._name, self._stages, self._number, self._stage = name, stages, 0, ""
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[what]}"), TimeRemainingColumn(),
            console=self._console, disable=not self._console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task(name, total=None, what="")
        self._what, self._since, self._said = "", time.monotonic(), time.monotonic()

    def __enter__(self) -> "Watch":
        self._token = _told.set(self._tell)
        self._bar.start()
        return self

    def __exit__(self, *error) -> None:
        self._bar.stop()
        _told.reset(self._token)

    def stage(self, stage: str) -> None:
        """Says that the next stage begins."""
        self._number += 1
        self._stage, self._what = stage, ""
        self._bar.reset(self._task, total=None, description=self._title(), what="")
        if self._bar.disable:
            self._say(self._title())

    def _title(self) -> str:
        place = f" {self._number}/{self._stages}" if self._stages else ""
        return f"{self._name}{place}" + (f": {self._stage}" if self._stage else "")

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        self._said = time.monotonic()

    def _tell(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0 or what != self._what:
            self._what, self._since = what, now
            self._bar.reset(self._task, total=total, description=self._title(), what=what)
        self._bar.update(self._task, completed=done)
        if self._bar.disable and now - self._said >= EVERY and done < total:
            line = f"{self._title()}  {done:,}/{total:,} {what}"
            if done:
                minutes, seconds = divmod(round((now - self._since) * (total - done) / done), 60)
                line += f"  {minutes}:{seconds:02d} left"
            self._say(line)
