"""Training as a whole on real data: resumption bit for bit, signals, damage, NaN, changes."""

import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import ROOT, tiny

import mmjax
from mmjax import checkpoint
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.log import read_metrics
from mmjax.run import directory
from mmjax.train import train

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


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_good_state(
    openmoji, tmp_path
):
    """A learning rate of 1e30 does what a bad batch would."""
    with pytest.raises(UserError, match=r"is (nan|inf) at step \d+.*optim.peak"):
        train(tiny(openmoji, optim__peak=1e30, optim__clip=1e30, save_every=1), tmp_path, one())
    last = checkpoint.latest(directory(tmp_path))
    rows = read_metrics(tmp_path)
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert last is None or last <= rows[-1]["step"]


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
        sys.executable, "-m", "mmjax", "train", f"--config={ROOT}/experiments/quickstart.py",
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
