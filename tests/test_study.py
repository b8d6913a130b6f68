"""Comparisons: which runs they train, and which they read."""

import importlib
import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from tiny import ROOT

from mmjax import config, run, values
from mmjax.error import UserError

EVIDENCE = ROOT / "experiments" / "evidence"


@pytest.fixture
def study():
    """The module that comparisons share."""
    spec = importlib.util.spec_from_file_location("study", EVIDENCE / "study.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["study"]


@pytest.fixture
def given(tmp_path):
    (tmp_path / "runs").mkdir()
    return Namespace(
        runs=tmp_path / "runs", records=tmp_path / "records", seeds=2, steps=10, arms="", jobs=1
    )


@pytest.fixture
def trained(study, monkeypatch):
    """Names of runs as they are trained; training itself leaves a log and an evaluation."""
    names = []

    def train(log, verb, *words, cores=()):
        (workdir,) = (Path(w.split("=", 1)[1]) for w in words if w.startswith("--workdir="))
        workdir.mkdir(parents=True)
        names.append(workdir.name)
        (workdir / "config.json").write_text("{}")
        (workdir / "summary.json").write_text(json.dumps({"hits": {"value": len(names)}}))
        (workdir / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')

    monkeypatch.setattr(study, "mmjax", train)
    monkeypatch.setattr(study, "check", lambda arm, home: None)  # these have no configuration
    return names


def test_what_was_recorded_is_not_trained_again_but_for_its_weights(study, given, trained):
    first = study.Arm("first", "x")
    then = study.Arm("then", "y", {"model.depth": 2}, start={"all": first})
    (some,) = study.runs([then], given).values()
    whole = [f"{n},seed={s}" for s in (0, 1) for n in ("x,10", "y,10,depth=2,all=(x,10)")]
    assert trained == whole and [one.metrics for one in some] == [[{"step": 1, "loss": 2.0}]] * 2
    assert {one.home.parent for one in some} == {given.records}
    for workdir in given.runs.iterdir():
        workdir.rename(given.runs.parent / workdir.name)
    (again,) = study.runs([then], given).values()
    assert trained == whole and study.values(again, "hits") == [2, 4]
    study.runs([first], given)  # what another began as was recorded too
    assert trained == whole
    study.runs([then], given, weights=True)
    assert trained == whole * 2
    given.records = None
    (plain,) = study.runs([then], given).values()
    assert trained == whole * 2 and plain[0].home == plain[0].workdir


def test_what_was_measured_needs_no_weights(study, given, trained):
    """A run is made again for what is measured of it, and only until that is kept."""
    arm, names = study.Arm("first", "x"), ["x,10,seed=0", "x,10,seed=1"]

    def place(one):
        return one.home / "sweep_it.json"

    (some,) = study.measured([arm], given, place).values()
    assert trained == names and not any(place(one).exists() for one in some)
    for one in some:
        place(one).write_text("[]")
    for workdir in given.runs.iterdir():
        workdir.rename(given.runs.parent / workdir.name)
    study.measured([arm], given, place)
    assert trained == names
    place(some[1]).unlink()
    study.measured([arm], given, place)
    assert trained == names * 2


def test_runs_are_told_apart_by_all_that_they_are(study, given):
    base = study.Arm("base", "x")
    others = [
        base,
        base._replace(steps=5),
        base._replace(experiment="y"),
        base._replace(changes={"model.depth": 1}),
        base._replace(changes={"model.depth": 2}),
        base._replace(start={"all": base}),
    ]
    assert len({study.place(arm, seed, given) for arm in others for seed in (0, 1)}) == 12
    assert study.place(base._replace(name="another"), 0, given) == study.place(base, 0, given)


def test_intervals_are_those_of_the_t_distribution(study):
    assert study.interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # 4.303 / sqrt(3)
    assert study.interval([0.5]) == "0.500"
    noise, other = [0.0, 5.0, -3.0], [1.0, 7.0, 0.0]
    assert study.difference(other, noise) == "2.000 ± 2.484"


def test_a_run_of_another_experiment_file_is_not_taken_for_one_of_this(study, tmp_path):
    arm = study.Arm("one", "small_transfusion", {"model.patch": 2})
    e = config.resolve(config.load(str(ROOT / "experiments/small_transfusion.py")), run.families())
    whole = values.to_dict(e)
    changed = whole | {"seed": 5, "steps": 7, "model": whole["model"] | {"patch": 2}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    study.check(arm, tmp_path)
    older = changed | {"evals": whole["evals"] | {"documents": 128}}
    (tmp_path / "config.json").write_text(json.dumps(older))
    with pytest.raises(UserError, match=r"with evals.documents=128, small_transfusion.py has 512"):
        study.check(arm, tmp_path)
    with pytest.raises(UserError, match=r"model.patch=2, small_transfusion.py has 4"):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        study.check(arm._replace(changes={}), tmp_path)


def test_what_a_user_can_mend_is_one_line(study, capsys):
    """And nothing else: a bug keeps its traceback."""

    def fails(error):
        raise error

    with pytest.raises(SystemExit) as end:
        study.begin(lambda: fails(UserError("no data set in x;\nbuild it")))
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(": no data set in x; build it\n")
    with pytest.raises(ZeroDivisionError):
        study.begin(lambda: fails(ZeroDivisionError()))


def test_what_some_runs_lack_is_a_dash(study):
    def one(summary):
        return study.Run([], {n: {"value": x} for n, x in summary.items()}, Path(), Path())

    found = {"a": [one({"hits": 0.5, "nll": 1.0})], "b": [one({"hits": 0.25})]}
    lines = study.table({"hits": "right", "nll": "nats", "none": "no arm has it"}, found).split(
        "\n"
    )
    assert lines[0] == "| | right | nats |"
    assert lines[2:] == ["| a | 0.500 | 1.000 |", "| b | 0.250 | - |"]
    assert study.more(found["b"], found["a"], "hits") == "-0.250"
    assert study.more(found["b"], found["a"], "nll") == "-"


@pytest.fixture
def mot(study, monkeypatch):
    """The comparison of Mixture-of-Transformers."""
    monkeypatch.syspath_prepend(str(EVIDENCE))
    monkeypatch.delitem(sys.modules, "mot_dense", raising=False)
    return importlib.import_module("mot_dense")


def test_shares_of_steps_are_those_of_the_power_law(study, mot):
    """A loss of a s^-b that is r times the dense one is as low after r^(1/b) of the steps."""

    def run(scale):
        steps = range(10, 2001, 10)
        return study.Run([{"step": s, "text": scale * s**-0.5} for s in steps], {}, None, None)

    dense, better, worse = [run(1.0)], [run(0.9)], [run(1.2)]
    assert mot.ratios(better, dense, "text") == pytest.approx([0.9])
    assert mot.shares(better, dense, "text") == pytest.approx([0.81])
    assert mot.shares(worse, dense, "text") == pytest.approx([1.44])
    share, _, count = mot.reached(better, dense, "text").partition(" ")
    assert float(share) == pytest.approx(0.81, abs=0.01) and count == "(1 of 1)"
    assert mot.reached(worse, dense, "text") == "- (0 of 1)"
    assert mot.reached(dense, dense, "text") == "1.000 (1 of 1)"
