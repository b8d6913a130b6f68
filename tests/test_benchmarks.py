"""Every benchmark runs: its pieces of work here at toy size, whole commands when slow."""

import contextlib
import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import ROOT

from mmjax import config, run

HOME = ROOT / "benchmarks"
NAMES = sorted(path.stem for path in HOME.glob("*.py"))


@pytest.fixture
def module(monkeypatch):
    """Name -> a benchmark as a module; JAX as their processes have it."""
    monkeypatch.syspath_prepend(HOME)
    before = {*sys.modules}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield importlib.import_module
    for name in {*sys.modules} - before & {*NAMES}:
        del sys.modules[name]


def test_none_is_left_out():
    pieces = {"turns", "runs"}  # what others are made of
    tried = {"data", "decode", "fusion_step", "mot", "quantisers", "scenes_oracle", "stability",
             "train_step"}  # fmt: skip
    assert {*NAMES} == pieces | tried


def test_train_step(module):
    bench = module("train_step")
    for make in (bench.mmjax_step, bench.plain_step):
        step = make(bench.TOY)
        first, second = step(), step()
        assert np.isfinite(first) and second < first  # the same rows again
        assert abs(first - np.log(bench.TOY.vocabulary)) < 1.5


@pytest.mark.parametrize("name", ["clip_ours", "llava_ours"])
def test_fusion_step(module, name):
    bench = module("fusion_step")
    step = getattr(bench, name)(bench.TOY)
    assert step() > step()


def test_mot(module):
    bench = module("mot")
    loss = bench.step(2, 64, 1, towers=2, untie=bench.UNTIE, grouped=True)()
    assert abs(loss - np.log(bench.VOCAB)) < 1.5


def test_decode(module):
    bench = module("decode")
    s = bench.TOY
    engine, host = bench.engine(s, 1, draw=False)(), bench.host_loop(s, 1)()
    assert engine.shape == host.shape == (1, s.new)
    np.testing.assert_array_equal(engine, host)  # greedy, both
    assert bench.engine(s, 1, draw=True)().shape == (1, bench.CODES + 1)


def test_data(module, openmoji, capsys):
    bench = module("data")
    for batches in (bench.ours(str(openmoji), 0), bench.plain(str(openmoji))):
        with contextlib.closing(batches):
            found = bench.segments(next(batches))
        assert found.shape == (bench.BATCH, bench.LENGTH) and found.max() > 1
    bench.packing(1, 2)
    assert "mmjax" in capsys.readouterr().out


def test_scenes_oracle(module, capsys, monkeypatch):
    bench = module("scenes_oracle")
    monkeypatch.setattr(sys, "argv", ["scenes_oracle", "--count=2"])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 * len(bench.WAYS) and "1.000" in lines[-10]


def test_stability_and_quantisers_configure_their_runs(module):
    """And --change reaches them; whole runs are the slow test's."""
    stability, quantisers, runs = map(module, ("stability", "quantisers", "runs"))
    for kit in stability.KITS:
        c = runs.changed(runs.load("chameleon_stability", kit), stability.changes(0.01, 1, 20))
        e = config.resolve(c, run.families())
        assert (e.optim.peak, e.seed, e.steps) == (0.01, 1, 20)
    for way in quantisers.WAYS:
        c = runs.changed(runs.load("codec_openmoji"), quantisers.changes(way, 2, 20))
        assert config.resolve(c, run.families()).model.codec.channels == 16
    assert runs._pair("model.decoder.width=32") == ("model.decoder.width", 32)
    assert runs._pair("data.sources.scenes.path=a/b") == ("data.sources.scenes.path", "a/b")
    with pytest.raises(KeyError):
        runs.changed(c, {"model.codecs.channels": 16})
    rows = [
        dict(loss=4.0, attention_peak=1.0, step=20) | {"image/last_norm": 2.0, "image/log_z": 3.0}
    ]
    assert stability.row("7b", 0.01, [rows, rows], 20).startswith("| 7b | 0.01 | 2/2 | 4.00")


def test_peers_take_turns(module, tmp_path, capsys):
    turns = module("turns")
    peer = tmp_path / "peer.py"
    peer.write_text(
        f"import sys, time; sys.path.insert(0, {str(HOME)!r}); import turns\n"
        "turns.worker(lambda: time.sleep(0.02 if 'slow' in sys.argv[1] else 0.001))\n"
    )
    running = {n: turns.launch(str(peer), n, sys.executable, "launcher") for n in ("slow", "fast")}
    times = turns.alternate(running, 4)
    assert np.median(times["slow"]) > np.median(times["fast"])
    turns.table(times, "slow")
    assert "fast" in capsys.readouterr().out
    assert all(process.poll() == 0 for process in running.values())


def whole(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_whole_commands_print_their_tables(openmoji, tmp_path):
    for name in ("train_step", "fusion_step", "decode"):
        assert "mmjax" in whole(f"benchmarks/{name}.py", "--toy", "--rounds=2") or name == "decode"
    small = ("--batch=2", "--width=64", "--depth=1", "--rounds=2")
    assert "grouped" in whole("benchmarks/mot.py", *small)
    said = whole("benchmarks/data.py", f"--data={openmoji}", "--rounds=1", "--stretch=2")
    assert "mmjax, 2 workers" in said and "FirstFit" in said
    tiny = [
        f"--change=data.sources.openmoji.path={openmoji}",
        "--change=batch=2", "--change=evals.documents=10", "--change=model.perceptual=0.0",
    ]  # fmt: skip
    found = whole(
        "benchmarks/quantisers.py", f"--out={tmp_path}", "--seeds=1", "--steps=2",
        "--ways=FSQ, 8 x 8 x 8", *tiny,
    )  # fmt: skip
    assert "| FSQ, 8 x 8 x 8 |" in found
    (summary,) = tmp_path.glob("fsq_*/summary.json")
    assert "psnr" in json.loads(summary.read_text())
