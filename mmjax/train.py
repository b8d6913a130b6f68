"""`mmjax train`: trains or resumes an experiment, then evaluates it.

Leaves in --workdir: config.json, metrics.jsonl, loss.png, checkpoints/, samples/, evals.json,
summary.json.
The same command again resumes; it gives the same losses, bit for bit, as a run never stopped.
"""

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from mmjax import checkpoint, config, ondisk, paths, start, values
from mmjax.config import Experiment
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.data.store import TOKENIZER
from mmjax.error import UserError
from mmjax.failure import explained
from mmjax.layers.tower import shared_fraction
from mmjax.lock import LOCK, held
from mmjax.log import Bar, read_json, rewind, write_json
from mmjax.mesh import put
from mmjax.progress import Journal
from mmjax.resume import check_same_data, check_unchanged, identity, told
from mmjax.run import AGAIN, CONFIG, GIVEN, VOCABULARY, Run, check_workdir, directory, prepare
from mmjax.step import State
from mmjax.validation import SPLIT, validation


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


class Around(NamedTuple):
    """What the loop of a run talks to.

    Attributes:
        workdir, batches, store, signals, bar: as they are in `train`.
        meta: of every checkpoint.
        check: raises if another process writes into the workdir by now.
        validate: state -> losses on held-out documents; None for none.
    """

    workdir: Path
    batches: pipeline.Batches
    store: checkpoint.Checkpoints
    signals: Signals
    bar: Bar
    meta: dict
    check: Callable[[], None]
    validate: Callable[[State], dict[str, float]] | None


def train(e: Experiment, workdir: str | Path, devices=None) -> int:
    """Trains to the end, or to a signal.

    Args:
        e: the experiment. workdir: where everything goes. devices: default all.

    Returns:
        The number of the signal that ended it early, or 0.

    Raises:
        UserError: see the module; nothing half-written stays.
    """
    workdir = paths.of(workdir)
    ondisk.check_writable(directory(workdir))
    try:
        with one_writer(workdir / LOCK) as check:
            return _train(e, workdir, devices, check)
    except OSError as error:
        raise UserError(f"{explained(error)}; the same command then goes on") from error


@contextlib.contextmanager
def one_writer(file: Path) -> Iterator[Callable[[], None]]:
    """Holds a lock for all processes of a job: the first one has it; see `lock.held`.

    Raises:
        UserError: in every process, if the first one cannot have it.
    """
    if jax.process_count() == 1:
        with held(file) as check:
            yield check
        return
    with contextlib.ExitStack() as stack:
        failure, check = None, _nothing
        if jax.process_index() == 0:
            try:
                check = stack.enter_context(held(file))
            except (UserError, OSError) as error:
                failure = error
        if multihost_utils.broadcast_one_to_all(np.int32(failure is not None)):
            raise failure or UserError(f"{file} is held by another run; see what process 0 says")
        yield check


def _nothing() -> None:
    """What processes check that do not hold the lock themselves."""


def _train(e: Experiment, workdir: Path, devices, check: Callable[[], None]) -> int:
    """`train` under the lock."""
    found = checkpoint.read_meta(directory(workdir), warn=lambda line: None)
    changed: list[str] = []
    if found is None:
        check_workdir(workdir)
        config.check_new(e)
        start.check(e)
    elif "config" not in found:
        raise UserError(
            f"{workdir} holds imported weights and no training; begin with them in another "
            f"--workdir, by --config.start=\"{{'all': '{workdir}'}}\""
        )
    else:
        changed = check_unchanged(found["config"], values.to_dict(e), found["step"], workdir)
        mend_ids(workdir, found["identity"])
    run = prepare(e, devices, ids=None if found is None else workdir)
    config.check_devices(e, run.rules.split("batch"))
    about = identity(run)
    if found is not None:
        check_same_data(found["identity"], about, found["step"])
        pipeline.check_same_files(e.data, found["identity"].get("files", {}), about["files"])
    batches = pipeline.train_batches(
        e.data, run.tokenizer, e.batch, e.steps, e.seed, jax.process_index(), jax.process_count(),
        run.vocabulary,
    )  # fmt: skip
    with contextlib.closing(batches), Signals() as signals, Bar(e.steps) as bar:
        state, done = restore_or_init(run, workdir, batches, bar.say)
        if found is not None and changed:
            bar.say(told(found["config"], e, changed, done or 0))
        start.check_codes(run, state)
        validate = validation_of(run, bar.say)
        with checkpoint.open_checkpoints(directory(workdir), done) as store:
            write_json(workdir / CONFIG, values.to_dict(e))
            write_json(workdir / TOKENIZER, json.loads(run.tokenizer.to_str()))
            keep_ids(run, workdir)
            rewind(workdir, done or 0)
            meta = {"config": values.to_dict(e), "identity": about}
            say_shared(run, bar.say)
            around = Around(workdir, batches, store, signals, bar, meta, check, validate)
            loop(run, state, done or 0, around)
    return signals.received or 0


def validation_of(run: Run, say: Callable[[str], None]):
    """What measures the held-out loss, if the experiment asks for it and there are documents."""
    every = run.experiment.evals.every
    if not 0 < every <= run.experiment.steps:
        return None
    if (validate := validation(run)) is None:
        say(f"config.evals.every={every}, but no source has a split `{SPLIT}`: no loss of it")
    return validate


def mend_ids(workdir: Path, known: dict) -> None:
    """Writes ids that a checkpoint knows where their file was damaged since."""
    path = workdir / VOCABULARY
    if path.exists():
        try:
            read_json(path, "")
        except UserError:
            write_json(path, known["vocabulary"])


def keep_ids(run: Run, workdir: Path) -> None:
    """Writes down ids that are not the tokenizer's, and what the weights with them came with."""
    e = run.experiment
    if run.vocabulary == bpe.vocabulary(run.tokenizer, getattr(e.model, "codes", 0)):
        return
    write_json(workdir / VOCABULARY, dataclasses.asdict(run.vocabulary))
    given = paths.of(e.start.get("all", workdir)) / GIVEN
    if given.is_file():
        write_json(workdir / GIVEN, read_json(given, AGAIN))


def loop(run: Run, state: State, done: int, around: Around) -> None:
    """The steps. The host works on a step's metrics while the device does the next step."""
    e, batches, store = run.experiment, around.batches, around.store
    if done >= e.steps:
        return
    step_function = run.step()
    journal = Journal(run, around.workdir, store, batches, around.bar)

    def save(step: int, metrics) -> None:
        around.check()
        known = around.meta | {"step": step, "data": batches.get_state()}
        checkpoint.save(store, step, state, known, float(metrics["loss"]))

    try:
        for step in range(done + 1, e.steps + 1):
            before = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - before
            state, metrics = step_function(state, put(batch, run.rules))
            journal.settle()
            journal.expect(step, metrics, batch, waited)
            if around.validate is not None and step % e.evals.every == 0:
                journal.score(around.validate, state)
            stop = around.signals.received is not None
            if step % e.save_every == 0 or step == e.steps or stop:
                journal.settle()  # never saves a state whose loss was not looked at
                journal.flush()  # and the run that goes on from it goes on behind these rows
                save(step, metrics)
            if stop:
                around.bar.say(f"stopped at step {step} by signal; the same command resumes")
                break
        journal.settle()
        checkpoint.wait(store)
        journal.draw()
    finally:
        journal.close()
