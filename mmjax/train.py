"""`mmjax train`: trains or resumes an experiment, then evaluates it.

Leaves in --workdir: config.json, metrics.jsonl, checkpoints/, samples/, evals.json, summary.json.
The same command again resumes; it gives the same losses, bit for bit, as a run never stopped.
"""

import contextlib
import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import jax

from mmjax import checkpoint, config, flops, start, values
from mmjax.config import Experiment
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.data.store import TOKENIZER
from mmjax.error import UserError
from mmjax.layers.tower import shared_fraction
from mmjax.log import Bar, MetricsFile, rewind, tidy, write_json
from mmjax.mesh import put
from mmjax.run import CONFIG, GIVEN, VOCABULARY, Run, check_workdir, directory, prepare

# Groups and fields that may differ from the checkpoint's: they do not change what is learned.
FREE = ("log_every", "save_every", "evals.", "sample.", "mesh.", "data.workers")


def check_unchanged(old: dict, new: dict, step: int) -> None:
    """Refuses to resume a checkpoint under another experiment.

    Raises:
        UserError: listing every field that differs.
    """
    lines = [d for d in values.difference(old, new) if not d.startswith(FREE)]
    if lines:
        raise UserError(
            f"the experiment changed since the checkpoint of step {step}: {'; '.join(lines)}; "
            f"use another --workdir, or put the old value(s) back"
        )


def identity(run: Run) -> dict:
    """What a checkpoint belongs to besides its configuration: data sets, tokenizer and id space."""
    vocabulary = dataclasses.asdict(run.model.parts.vocabulary)
    known = pipeline.fingerprint(run.experiment.data, run.tokenizer)
    return json.loads(json.dumps(known | {"vocabulary": vocabulary}))


def check_same_data(old: dict, new: dict, step: int) -> None:
    """Refuses to resume on other data, or with packages that may order it otherwise.

    Raises:
        UserError: listing everything that differs.
    """
    lines = values.difference(old, new)
    if lines:
        raise UserError(
            f"the data changed since the checkpoint of step {step}: {'; '.join(lines)}; use "
            f"another --workdir, or bring the old data, tokenizer or package back"
        )


def restore_or_init(run: Run, workdir: Path, batches, say: Callable[[str], None]):
    """The newest good checkpoint's state with the data iterator put to its place, or a fresh one.

    Returns:
        (state, the step it stands at, or None for a fresh one).
    """
    found = checkpoint.restore(directory(workdir), run.abstract, warn=say)
    if found is None:
        return start.begin(run, run.init()), None
    batches.set_state(found.meta["data"])
    say(f"resuming at step {found.step} of {run.experiment.steps}")
    return found.state, found.step


def say_shared(run: Run, say: Callable[[str], None]) -> None:
    """Says once how much of a decoder with towers they share."""
    share = shared_fraction(run.abstract.params.get("decoder", {}))
    if share < 1:
        say(f"shared_fraction={share:.3f} of the weights on a token's way through the decoder")


class Signals:
    """Turns SIGTERM and SIGINT into a flag that the loop reads between steps."""

    def __init__(self):
        self.received: int | None = None
        self._old = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame) -> None:
        self.received = number
        # A second signal of the same kind does what it always does.
        signal.signal(number, self._old[number])

    def __exit__(self, *error) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Meter:
    """Turns the device's metrics of one step into a logged row, and keeps the run's clock."""

    def __init__(self, run: Run):
        self._run = run
        self._peak = flops.peak(run.rules.mesh.devices.flatten())
        self._reset()

    def _reset(self) -> None:
        self._mark = time.perf_counter()
        self._steps, self._tokens, self._flops, self._waited = 0, 0.0, 0.0, 0.0

    def count(self, batch, waited: float) -> None:
        """Adds a host batch that was given to the device, and how long it was waited for."""
        self._tokens += float((batch.segment > 0).sum())
        self._steps += 1
        self._waited += waited
        if self._flops == 0.0:
            # Rows differ little from step to step: one batch a window stands for all.
            self._flops = 3 * self._run.model.flops(batch)

    def row(self, step: int, metrics) -> tuple[dict[str, float | None], float]:
        """The row to log, with rates since the last one, and the seconds left."""
        passed, steps = time.perf_counter() - self._mark, max(self._steps, 1)
        done = self._flops * steps
        row: dict[str, float | None] = {"step": step, **tidy(metrics)}
        row["tokens_per_s"] = self._tokens / passed
        row["step_s"] = passed / steps
        row["flops"] = self._flops
        row["mfu"] = done / passed / self._peak if self._peak else None
        row["wait_share"] = self._waited / passed
        self._reset()
        return row, (self._run.experiment.steps - step) * passed / steps


def finite_or_stop(step: int, metrics, last_good: int | None) -> None:
    """Stops the run at the first loss or gradient that is not a number.

    Raises:
        UserError: naming the step and the checkpoint that stays.
    """
    for name in ("loss", "grad_norm"):
        value = float(metrics[name])
        if not math.isfinite(value):
            kept = (
                "no checkpoint was saved yet"
                if last_good is None
                else (f"the checkpoint of step {last_good} is the last good state")
            )
            raise UserError(
                f"{name} is {value} at step {step}; {kept}; lower optim.peak or look at the data"
            )


def train(e: Experiment, workdir: str | Path, devices=None) -> int:
    """Trains to the end, or to a signal.

    Args:
        e: the experiment. workdir: where everything goes. devices: default all.

    Returns:
        The number of the signal that ended it early, or 0.

    Raises:
        UserError: see the module; nothing half-written stays.
    """
    workdir = Path(workdir)
    found = checkpoint.read_meta(directory(workdir), warn=lambda line: None)
    if found is not None:
        check_unchanged(found["config"], values.to_dict(e), found["step"])
    if found is None:
        check_workdir(workdir)
        config.check_new(e)
        start.check(e)
    run = prepare(e, devices, ids=None if found is None else workdir)
    config.check_devices(e, run.rules.split("batch"))
    about = identity(run)
    if found is not None:
        check_same_data(found["identity"], about, found["step"])
    batches = pipeline.train_batches(
        e.data, run.tokenizer, e.batch, e.steps, e.seed, jax.process_index(), jax.process_count(),
        run.vocabulary,
    )  # fmt: skip
    with contextlib.closing(batches), Signals() as signals, Bar(e.steps) as bar:
        state, done = restore_or_init(run, workdir, batches, bar.say)
        start.check_codes(run, state)
        workdir.mkdir(parents=True, exist_ok=True)
        with checkpoint.open_checkpoints(directory(workdir), done) as store:
            write_json(workdir / CONFIG, values.to_dict(e))
            write_json(workdir / TOKENIZER, json.loads(run.tokenizer.to_str()))
            keep_ids(run, workdir)
            rewind(workdir, done or 0)
            meta = {"config": values.to_dict(e), "identity": about}
            say_shared(run, bar.say)
            loop(run, workdir, state, done or 0, batches, store, meta, signals, bar)
    return signals.received or 0


def keep_ids(run: Run, workdir: Path) -> None:
    """Writes down ids that are not the tokenizer's, and what the weights with them came with."""
    e = run.experiment
    if run.vocabulary == bpe.vocabulary(run.tokenizer, getattr(e.model, "codes", 0)):
        return
    write_json(workdir / VOCABULARY, dataclasses.asdict(run.vocabulary))
    given = Path(e.start.get("all", workdir)) / GIVEN
    if given.is_file():
        write_json(workdir / GIVEN, json.loads(given.read_text()))


def loop(run: Run, workdir: Path, state, done: int, batches, store, meta, signals, bar) -> None:
    """The steps. The host works on a step's metrics while the device does the next step."""
    e = run.experiment
    if done >= e.steps:
        return
    step_function = run.step()
    meter, file = Meter(run), MetricsFile(workdir)
    last_good = done if done else None
    pending: tuple[int, dict] | None = None
    warned = 0

    def finish() -> None:
        nonlocal pending, warned
        if pending is None:
            return
        step, metrics = pending
        pending = None
        metrics = jax.device_get(metrics)
        finite_or_stop(step, metrics, last_good)
        bar.step(step)
        if step % e.log_every == 0 or step == e.steps:
            row, left = meter.row(step, metrics)
            row["left_out"] = batches.left_out
            if batches.left_out > warned == 0:
                warned = batches.left_out
                bar.say(
                    f"{warned} documents so far are larger than a row and left out; raise "
                    f"data.length={e.data.length} or data.images={e.data.images}"
                )
            file.write(row)
            bar.note(row, left)

    def save(step: int, metrics) -> None:
        known = meta | {"step": step, "data": batches.get_state()}
        checkpoint.save(store, step, state, known, float(metrics["loss"]))

    try:
        for step in range(done + 1, e.steps + 1):
            before = time.perf_counter()
            batch = next(batches)
            meter.count(batch, time.perf_counter() - before)
            state, metrics = step_function(state, put(batch, run.rules))
            finish()
            pending = (step, metrics)
            stop = signals.received is not None
            if step % e.save_every == 0 or step == e.steps or stop:
                finish()  # never saves a state whose loss was not looked at
                save(step, metrics)
                last_good = step
            if stop:
                bar.say(f"stopped at step {step} by signal; the same command resumes")
                break
        finish()
        checkpoint.wait(store)
    finally:
        file.close()
