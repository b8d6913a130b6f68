"""What the host does with a step's metrics: it stops at what is not finite, and logs the rest."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mmjax import checkpoint, flops, plot
from mmjax.batch import Batch
from mmjax.error import UserError
from mmjax.log import Bar, MetricsFile, tidy
from mmjax.run import Run

Row = dict[str, float | None]
# Of the state that a step made; all other metrics are of the state that it began with.
MADE = ("update_norm", "param_norm")
REDRAWN = 30.0  # seconds between two drawings of the curves


class Meter:
    """Turns the device's metrics of one step into a logged row, and keeps the run's clock."""

    def __init__(self, run: Run):
        self._run = run
        self._peak = flops.peak(run.rules.mesh.devices.flatten())
        self._reset()

    def _reset(self) -> None:
        self._mark = time.perf_counter()
        self._steps, self._tokens, self._flops, self._waited = 0, 0.0, 0.0, 0.0

    def count(self, batch: Batch, waited: float) -> None:
        """Adds a host batch whose step is done, and how long it was waited for."""
        self._tokens += float((batch.segment > 0).sum())
        self._steps += 1
        self._waited += waited
        if self._flops == 0.0:
            # Rows differ little from step to step: one batch a window stands for all.
            self._flops = 3 * self._run.model.flops(batch)

    def skip(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self._mark += seconds

    def row(self, step: int, metrics: Mapping[str, Any]) -> tuple[Row, float]:
        """The row to log, with rates since the last one, and the seconds left."""
        passed, steps = time.perf_counter() - self._mark, max(self._steps, 1)
        done = self._flops * steps
        row: Row = {"step": step, **tidy(metrics)}
        row["tokens_per_s"] = self._tokens / passed
        row["step_s"] = passed / steps
        row["flops"] = self._flops
        row["mfu"] = done / passed / self._peak if self._peak else None
        row["wait_share"] = self._waited / passed
        self._reset()
        return row, (self._run.experiment.steps - step) * passed / steps


class _Pending(NamedTuple):
    """A step that the device was given and whose metrics were not looked at yet."""

    step: int
    metrics: dict[str, jax.Array]
    batch: Batch
    waited: float


class Journal:
    """Follows a run one step behind the device, so that the device never waits for the host."""

    def __init__(
        self, run: Run, workdir: Path, store: checkpoint.Checkpoints, batches: Any, bar: Bar
    ):
        self._run, self._workdir, self._store = run, workdir, store
        self._batches, self._bar = batches, bar
        self._meter, self._file = Meter(run), MetricsFile(workdir)
        self._pending: _Pending | None = None
        self._scores: dict[str, float | None] = {}
        self._warned, self._drawn = 0, time.monotonic()

    def expect(self, step: int, metrics, batch: Batch, waited: float) -> None:
        """Notes a step that was given to the device."""
        self._pending = _Pending(step, metrics, batch, waited)

    def score(self, validate: Callable[[Any], Mapping[str, float]], state) -> None:
        """Adds what `validate` says of a state to the row of the step that made it."""
        jax.block_until_ready(state)
        before = time.perf_counter()
        found = tidy({f"validation/{n}": x for n, x in validate(state).items()})
        self._scores = {n: x if math.isfinite(x) else None for n, x in found.items()}
        self._meter.skip(time.perf_counter() - before)

    def settle(self) -> None:
        """Looks at the metrics of the step that was noted last.

        Raises:
            UserError: if one of them is not finite; see `stop`.
        """
        if self._pending is None:
            return
        (step, metrics, batch, waited), self._pending = self._pending, None
        metrics = jax.device_get(metrics)
        self._stop_unless_finite(step, metrics)
        self._bar.step(step)
        self._meter.count(batch, waited)
        e = self._run.experiment
        if step % e.log_every and step != e.steps and not self._scores:
            return
        row, left = self._meter.row(step, metrics)
        row["left_out"] = self._batches.left_out
        if self._batches.left_out > self._warned == 0:
            self._warned = self._batches.left_out
            self._bar.say(
                f"{self._warned} documents so far are larger than a row and left out; raise "
                f"data.length={e.data.length} or data.images={e.data.images}"
            )
        row |= self._scores
        self._file.write(row)
        self._bar.note(row, left)
        if self._scores and time.monotonic() - self._drawn > REDRAWN:
            self.draw()
        self._scores = {}

    def flush(self) -> None:
        """Sees to it that all rows so far are in their file."""
        self._file.flush()

    def draw(self) -> None:
        """Draws the curves so far."""
        self.flush()
        if jax.process_index() == 0:
            plot.losses(self._workdir)
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _stop_unless_finite(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Ends the run at the first metric that is not finite.

        The checkpoint of the step before is good only if what it led to is finite; else it is set
        aside, and the same command goes on from the last that is.

        Raises:
            UserError: naming the metric, the step, the checkpoint that is good and what to do.
        """
        order = ("loss", "grad_norm", *sorted({*metrics} - {"loss", "grad_norm", *MADE}), *MADE)
        wrong = [n for n in order if n in metrics and not math.isfinite(float(metrics[n]))]
        if not wrong:
            return
        first = wrong[0]
        aside = [] if first in MADE else checkpoint.set_aside(self._store, step - 1)
        good = checkpoint.latest(self._store.directory)
        kept = (
            "no checkpoint of this run is good, so the same command begins anew"
            if good is None
            else f"the last good checkpoint is that of step {good}, from which the same command "
            f"goes on"
        )
        spoilt = (
            f" (that of step {aside[-1][0]} led to it and is now {aside[-1][1]})" if aside else ""
        )
        raise UserError(
            f"{first} is {float(metrics[first])} at step {step}; {kept}{spoilt}; lower optim.peak, "
            f"as with --config.optim.peak={self._run.experiment.optim.peak / 4:.3g}, or look at "
            f"the data"
        )
