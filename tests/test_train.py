"""Training as a whole on real data: resumption bit for bit, signals, damage, NaN, changes."""

import dataclasses
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import ROOT, tiny

import mmjax
from mmjax import checkpoint, progress, values
from mmjax.config import StageConfig
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.lock import LOCK, held
from mmjax.log import read_metrics
from mmjax.resume import check_unchanged, told
from mmjax.run import directory, prepare
from mmjax.train import train
from mmjax.validation import validation

FLAGS = {
    "config.batch": 8, "config.log_every": 1, "config.save_every": 3,
    "config.data.length": 48, "config.data.images": 2, "config.data.window": 32,
    "config.data.image": 8, "config.model.image": 8, "config.model.decoder.width": 32,
    "config.model.decoder.depth": 2, "config.model.decoder.unroll": 1,
    "config.model.decoder.mlp": 64, "config.evals.documents": 16, "config.evals.drawings": 16,
    "config.sample.steps": 2, "config.sample.text": 4,
}  # fmt: skip


def losses(workdir) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_metrics(workdir)]


def one():
    return jax.devices()[:1]


@pytest.fixture(scope="module")
def whole(openmoji, tmp_path_factory):
    """A run never interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    assert train(tiny(openmoji), workdir, one()) == 0
    return workdir


def test_a_run_leaves_what_it_should(whole):
    rows = read_metrics(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    wanted = {
        "loss", "text/nll", "image", "grad_norm", "param_norm", "text/logit_norm", "lr",
        "tokens_per_s", "flops", "mfu", "wait_share", "text/log_z",
    }  # fmt: skip
    assert wanted <= set(rows[0])
    # It learns. Not so the flow loss in six steps: it depends on the noise levels drawn.
    assert rows[-1]["text/nll"] < rows[0]["text/nll"] - 0.1
    assert json.loads((whole / "config.json").read_text())["steps"] == 6
    assert checkpoint.latest(directory(whole)) == 6


def test_resuming_gives_the_same_losses_bit_for_bit(openmoji, whole, tmp_path):
    """Stop after the checkpoint of step 4 by removing what came later, as a kill would leave it."""
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(directory(tmp_path / "run") / "6")
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "los')
    assert checkpoint.latest(directory(tmp_path / "run")) == 4
    train(tiny(openmoji), tmp_path / "run", one())
    assert losses(tmp_path / "run") == losses(whole)
    other = tmp_path / "other"
    train(tiny(openmoji, seed=1), other, one())
    assert losses(other) != losses(whole)


def test_a_finished_run_does_nothing_again(openmoji, whole):
    before = losses(whole)
    train(tiny(openmoji), whole, one())
    assert losses(whole) == before


def test_a_damaged_newest_checkpoint_is_refused_and_the_one_before_used(
    openmoji, whole, tmp_path, capsys
):
    shutil.copytree(whole, tmp_path / "run")
    store = directory(tmp_path / "run")
    data = max((store / "6").rglob("d/*"), key=lambda p: p.stat().st_size)
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 4
    data.write_bytes(raw)
    train(tiny(openmoji), tmp_path / "run", one())
    said = capsys.readouterr().err
    assert "checkpoint 6" in said and "resuming at step 4" in said
    assert losses(tmp_path / "run") == losses(whole)


def test_a_changed_experiment_is_refused_with_the_difference(openmoji, whole):
    before = (whole / "config.json").read_text()
    with pytest.raises(UserError, match=r"optim.peak: 0.\d+ -> 0.5.*--workdir"):
        train(tiny(openmoji, optim__peak=0.5), whole, one())
    assert (whole / "config.json").read_text() == before


def test_changed_data_are_refused_with_the_difference(openmoji, whole, tmp_path):
    """The same configuration, but what lies at the path is no longer the same."""
    shutil.copytree(openmoji, tmp_path / "set")
    e = tiny(tmp_path / "set")
    assert train(dataclasses.replace(e, steps=1), tmp_path / "run", one()) == 0
    tokenizer = tmp_path / "set" / "tokenizer.json"
    bpe.train(["other words"], 400).save(str(tokenizer))
    with pytest.raises(UserError, match=r"data changed since .* step 1: tokenizer: '\w+' -> "):
        train(dataclasses.replace(e, steps=1), tmp_path / "run", one())
    shutil.copy(openmoji / "tokenizer.json", tokenizer)
    assert train(dataclasses.replace(e, steps=1), tmp_path / "run", one()) == 0


def test_a_trained_model_needs_its_data_no_more(openmoji, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"]["sources"]["openmoji"]["path"] = "gone"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (text,) = mmjax.load(tmp_path / "run", devices=one()).generate([[openmoji_picture(openmoji)]])
    assert isinstance(text, str)
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer .* does not exist"):
        mmjax.load(tmp_path / "run", devices=one())


def openmoji_picture(path) -> bytes:
    return pipeline.open_split(path, "test")[0].images[0]


def test_what_does_not_change_learning_may_change(openmoji, whole):
    other = tiny(openmoji, log_every=2, sample__guidance=9.0, data__workers=1)
    assert train(other, whole, one()) == 0


def test_it_resumes_on_another_mesh(openmoji, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(directory(tmp_path / "run") / "6")
    train(tiny(openmoji, mesh__fsdp=4, mesh__data=2), tmp_path / "run", jax.devices())
    steps, values = zip(*losses(tmp_path / "run"), strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    np.testing.assert_allclose(values, [v for _, v in losses(whole)], rtol=1e-4)


def test_a_loss_that_is_not_a_number_stops_the_run_and_its_advice_works(openmoji, tmp_path, capsys):
    """A learning rate of 1e15 does what a bad batch would."""
    wild = {"optim__clip": 1e30, "optim__warmup": 0, "optim__decay": "constant", "steps": 8}
    e = tiny(openmoji, save_every=1, optim__peak=1e-3, **wild)
    assert train(dataclasses.replace(e, steps=3), tmp_path, one()) == 0
    kept = losses(tmp_path)
    # As if the rate had been this high from the start: the state after step 4 is spoilt.
    about = directory(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmjax.train.check_unchanged", lambda *_: [])
        high = dataclasses.replace(e, optim=dataclasses.replace(e.optim, peak=1e15))
        with pytest.raises(UserError) as caught:
            train(high, tmp_path, one())
    said = str(caught.value)
    found = re.fullmatch(
        r"\S+ is (nan|inf) at step 5; the last good checkpoint is that of step 3, .*"
        r"\(that of step 4 led to it and is now 4\.abandoned\); lower optim.peak, as with "
        r"--config\.optim\.peak=(\S+), or look at the data",
        said,
    )
    assert found, said
    assert checkpoint.latest(about) == 3 and (about / "4.abandoned").is_dir()
    assert all(np.isfinite(row["loss"]) for row in read_metrics(tmp_path))
    # What is advised can be done, and goes on from the good state.
    assert float(found[2]) == pytest.approx(1e15 / 4)
    capsys.readouterr()
    train(dataclasses.replace(e, optim=dataclasses.replace(e.optim, peak=5e-4)), tmp_path, one())
    assert "config.optim.peak: 0.001 -> 0.0005; the constant" in capsys.readouterr().err
    assert losses(tmp_path)[:3] == kept and losses(tmp_path)[-1][0] == 8
    assert all(np.isfinite(value) for _, value in losses(tmp_path))


class Store:
    """As much of checkpoints as `Journal` looks at."""

    def __init__(self, directory):
        self.directory = directory


@pytest.mark.parametrize(
    ("metrics", "named", "aside"),
    [
        ({"loss": 1.0, "grad_norm": math.inf}, "grad_norm is inf", True),
        ({"loss": 1.0, "grad_norm": 1.0, "text/nll": math.nan}, "text/nll is nan", True),
        ({"loss": math.nan, "grad_norm": math.nan, "param_norm": math.nan}, "loss is nan", True),
        ({"loss": 1.0, "grad_norm": 1.0, "param_norm": math.inf}, "param_norm is inf", False),
        ({"loss": 1.0, "grad_norm": 1.0, "update_norm": math.inf}, "update_norm is inf", False),
    ],
)
def test_any_metric_that_is_not_finite_stops_the_run(metrics, named, aside, tmp_path, monkeypatch):
    """If only what the step made is spoilt, the checkpoint it began with is good."""
    for step in (2, 4):
        (tmp_path / str(step)).mkdir()

    def set_aside(store, first):
        assert first == 4
        (tmp_path / "4").rename(tmp_path / "4.abandoned")
        return [(4, "4.abandoned")]

    monkeypatch.setattr(checkpoint, "set_aside", set_aside)
    journal = progress.Journal.__new__(progress.Journal)
    journal._store = Store(tmp_path)
    journal._run = types.SimpleNamespace(experiment=tiny())
    journal._stop_unless_finite(5, {"loss": 1.0, "grad_norm": 1.0, "lr": 0.0})
    with pytest.raises(UserError, match=rf"{named} at step 5; .* step {2 if aside else 4},"):
        journal._stop_unless_finite(5, metrics)
    assert (tmp_path / "4").exists() is not aside


def test_a_finished_run_goes_on_as_one_that_was_longer_from_the_start(openmoji, tmp_path, capsys):
    """With a constant rate bit for bit, validation losses too; a decay is computed anew and said.

    The losses of held-out documents are the same in both, and on one device and on eight.
    """
    e = tiny(openmoji, optim__decay="constant", evals__every=2, log_every=4)
    short, long = tmp_path / "short", tmp_path / "long"
    assert train(dataclasses.replace(e, steps=4), short, one()) == 0
    assert train(e, long, one()) == 0
    capsys.readouterr()
    assert train(e, short, one()) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(r"config.steps: 4 -> 6; the constant .*: learning rate (\S+) -> \1 ", said)
    seen = [r for w in (short, long) for r in read_metrics(w)]
    rows = [{k: v for k, v in row.items() if k not in RATES} for row in seen]
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]
    assert [r["step"] for r in rows[: len(rows) // 2]] == [2, 4, 6]
    state = {w: checkpoint.restore(directory(w), abstract_of(e), 6).state for w in (short, long)}
    for a, b in zip(*map(jax.tree.leaves, state.values()), strict=True):
        np.testing.assert_array_equal(a, b)
    check_validation(e, rows[-1], long, state[long])
    check_refusals(e, long)


RATES = ("tokens_per_s", "step_s", "mfu", "wait_share", "flops")


def abstract_of(e):
    return prepare(e, one()).abstract


def check_validation(e, row, workdir, state) -> None:
    """Losses of held-out documents are there, near those of training, and drawn."""
    names = {n.removeprefix("validation/") for n in row if n.startswith("validation/")}
    assert {"loss", "text/nll", "image", "text/logit_norm"} <= names <= row.keys()
    assert 0.3 < row["validation/loss"] / row["loss"] < 3
    assert row["validation/loss"] != row["loss"]
    assert (workdir / "loss.png").read_bytes()[:4] == b"\x89PNG"
    wide = prepare(dataclasses.replace(e, mesh=dataclasses.replace(e.mesh, fsdp=8)))
    spread = jax.device_put(state, wide.shardings())
    found = validation(wide)(spread)
    assert found["loss"] == pytest.approx(row["validation/loss"], rel=1e-4)
    assert found == validation(wide)(spread)


def check_refusals(e, workdir) -> None:
    """What cannot go on is told the way."""
    with pytest.raises(UserError, match=r"steps: 6 -> 5, and a run cannot become shorter; .*all"):
        train(dataclasses.replace(e, steps=5), workdir, one())
    with pytest.raises(UserError, match=r"optim.peak: .* -> 0.5; use another"):
        train(tiny(e.data.sources["openmoji"].path, optim__peak=0.5), workdir, one())
    last = StageConfig(1.0, {"openmoji": 1.0})
    old = values.to_dict(
        dataclasses.replace(e, data=dataclasses.replace(e.data, stages={"a": last}))
    )
    with pytest.raises(UserError, match=r"moves the borders of data.stages; .*config.start"):
        check_unchanged(old, old | {"steps": 9}, 6, workdir)


def test_a_decay_is_computed_anew_and_said():
    old = values.to_dict(tiny(steps=300))
    e = tiny(steps=400, optim__peak=1e-3)
    changed = check_unchanged(old, values.to_dict(e), 300)
    assert changed == ["steps", "optim.peak"]
    line = told(old, e, changed, 300)
    rates = re.fullmatch(
        r"config.steps: 300 -> 400; config.optim.peak: 0.002 -> 0.001; the cosine schedule of 400 "
        r"steps holds from step 300 on: learning rate (\S+) -> (\S+)",
        line,
    )
    assert float(rates[1]) == pytest.approx(2e-5) and float(rates[2]) > 1e-4
    assert check_unchanged(old, old, 300) == []


def test_every_row_counts_its_own_steps(whole):
    """Also those of a step that is saved, of which the host looks at the metrics at once."""
    rows = read_metrics(whole)
    for row in rows:
        assert row["tokens_per_s"] > 0 and row["flops"] > 0 and row["step_s"] > 0
    tokens = [row["tokens_per_s"] * row["step_s"] for row in rows]
    assert max(tokens) < 1.5 * min(tokens)  # one batch each


def test_two_runs_on_one_workdir(openmoji, whole, tmp_path):
    """The second is one line, and nothing of the first is touched; readers are not kept out."""
    shutil.copytree(whole, tmp_path / "run")
    before = sorted(os.listdir(directory(tmp_path / "run")))
    with held(tmp_path / "run" / LOCK):
        with pytest.raises(UserError, match=rf"being written by process {os.getpid()} on "):
            train(tiny(openmoji), tmp_path / "run", one())
        assert mmjax.load(tmp_path / "run", devices=one()).step == 6
    assert sorted(os.listdir(directory(tmp_path / "run"))) == before
    assert train(tiny(openmoji), tmp_path / "run", one()) == 0
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_file_that_cannot_be_written_is_one_line(openmoji, whole, tmp_path, name):
    """A directory in the way is refused by the system as a full disk is."""
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name / "x").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name}: .*directory; .*; the same command then goes on"):
        train(tiny(openmoji, steps=7), tmp_path / "run", one())
    assert checkpoint.latest(directory(tmp_path / "run")) == 6


def test_a_cut_file_of_a_workdir_is_named_and_the_same_command_writes_it_anew(
    openmoji, whole, tmp_path
):
    shutil.copytree(whole, tmp_path / "run")
    for name in ("config.json", "vocabulary.json"):
        (tmp_path / "run" / name).write_text('{"a": [')
        with pytest.raises(UserError, match=rf"{name} is damaged .*`mmjax train`.*anew"):
            mmjax.load(tmp_path / "run", devices=one())
        assert train(tiny(openmoji), tmp_path / "run", one()) == 0
        assert mmjax.load(tmp_path / "run", devices=one()).step == 6


def test_imported_weights_are_no_training_to_go_on_with(openmoji, tmp_path):
    with checkpoint.open_checkpoints(directory(tmp_path)) as store:
        checkpoint.save(store, 0, {"w": jax.numpy.zeros(3)}, {"from": "llama"})
    with pytest.raises(UserError, match=r"imported weights and no training; .*config.start"):
        train(tiny(openmoji), tmp_path, one())


def test_batch_that_does_not_divide_names_two_that_do(openmoji, tmp_path):
    with pytest.raises(UserError, match=r"batch=12.*8 devices; try 8 or 16"):
        train(tiny(openmoji, batch=12), tmp_path / "run", jax.devices())
    assert not (tmp_path / "run").exists()


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(UserError, match="mmjax data build --src=openmoji --dst="):
        train(tiny(tmp_path / "nothing"), tmp_path / "run", one())
    assert not (tmp_path / "run").exists()


def command(openmoji, workdir, **changes) -> list[str]:
    flags = FLAGS | {"config.steps": 12, "config.data.sources.openmoji.path": openmoji} | changes
    return [
        sys.executable, "-m", "mmjax", "train", f"--config={ROOT}/experiments/base.py",
        f"--workdir={workdir}", *(f"--{k}={v}" for k, v in flags.items()),
    ]  # fmt: skip


def launch(*args, **changes) -> subprocess.Popen:
    return subprocess.Popen(
        command(*args, **changes), env=os.environ, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def wait_for_step(process, workdir, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(row["step"] >= step for row in read_metrics(workdir)):
            return
        time.sleep(0.01)


def test_sigterm_saves_and_the_same_command_goes_on(openmoji, tmp_path):
    process = launch(openmoji, tmp_path, **{"config.steps": 100000, "config.save_every": 100000})
    wait_for_step(process, tmp_path, 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    last = checkpoint.latest(directory(tmp_path))
    assert last is not None and last >= 3
    assert losses(tmp_path)[-1][0] == last


def test_a_full_disk_costs_nothing_but_the_step_it_came_at(openmoji, tmp_path):
    """A limit on the size of a file fails as a full disk does, and needs no rights."""
    process = launch(openmoji, tmp_path, **{"config.steps": 100000})
    wait_for_step(process, tmp_path, 7)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, hard))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    line = re.search(r"checkpoint \d+ not written.*; last good checkpoint: (\d+)", said)
    assert line and "Traceback" not in said, said
    kept = checkpoint.read_meta(directory(tmp_path), warn=pytest.fail)
    assert kept["step"] == int(line[1]) >= 3


def finish(*args) -> None:
    """Runs the command to its end."""
    process = launch(*args)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


def kill_and_resume(openmoji, tmp_path: Path, kills: int, seed: int) -> None:
    """Kills a run at random moments until `kills` are done; compares with one never killed."""
    never, often = tmp_path / "never", tmp_path / "often"
    finish(openmoji, never)
    rng = np.random.default_rng(seed)
    done = 0
    while done < kills:
        if any(row["step"] == 12 for row in read_metrics(often)):
            shutil.rmtree(often)  # it got to its end in spite of the kills: start over
        process = launch(openmoji, often)
        target = int(rng.integers(1, 13))
        wait_for_step(process, often, target)
        time.sleep(float(rng.uniform(0, 0.3)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        process.communicate()
        partial = dict(losses(never))
        assert all(partial[s] == value for s, value in losses(often))
    finish(openmoji, often)
    assert losses(often) == losses(never)
    assert (often / "summary.json").exists()


def test_killed_once_at_random(openmoji, tmp_path):
    kill_and_resume(openmoji, tmp_path, kills=1, seed=0)


@pytest.mark.slow
def test_killed_twenty_times_at_random(openmoji, tmp_path):
    kill_and_resume(openmoji, tmp_path, kills=20, seed=1)
