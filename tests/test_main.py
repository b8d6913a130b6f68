"""The command line: a user's mistake is one line on stderr, exit code 2, and nothing written."""

import os
import subprocess
import sys

import pytest
from tiny import ROOT
from verb_flags import taken_back

from mmjax import __main__ as door

QUICKSTART = f"--config={ROOT}/experiments/base.py"
# How ml_collections reads an experiment file.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\):DeprecationWarning")


@pytest.fixture
def mmjax(monkeypatch, capsys, tmp_path):
    """Runs a command line in an empty directory -> exit code, stdout, lines of stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # else this process would be replaced

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["mmjax", *argv])
        with pytest.raises(SystemExit) as stop:
            door.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err.splitlines()

    with taken_back():
        yield call


def refused(result) -> str:
    code, out, lines = result
    assert (code, out, len(lines)) == (2, "", 1)
    assert os.listdir() == []
    return lines[0]


def test_an_unknown_verb_gets_the_list(mmjax):
    line = refused(mmjax("trian", "--x=1"))
    have = ", ".join(door.VERBS)
    assert line == f"mmjax: no verb 'trian' (did you mean 'train'?); have: {have}"


@pytest.mark.parametrize(("argv", "code"), [([], 2), (["--help"], 0), (["-h"], 0), (["help"], 0)])
def test_usage_has_a_line_a_verb(mmjax, argv, code):
    got, out, lines = mmjax(*argv)
    assert (got, lines) == (code, [])
    for verb in door.VERBS:
        assert any(
            line.split()[:1] == [verb] and len(line.split()) > 3 for line in out.splitlines()
        )


@pytest.mark.parametrize("verb", door.VERBS)
def test_help_of_a_verb_names_its_flags(mmjax, verb):
    code, out, lines = mmjax(verb, "--help")
    assert (code, lines) == (0, [])
    assert f"mmjax {verb}" in out
    wanted = {
        "train": ["--config", "--workdir"],
        "data": ["build", "describe"],  # whose flags are told by their own help
        "convert": ["--src", "--dst", "--verify"],
    }
    for flag in wanted.get(verb, ["--workdir"]):
        assert f"  {flag} " in out


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.stepz=3", ["stepz"]),
        ("--config.optim.peek=3", ["peek"]),
        ("--config.steps=abc", ["steps", "abc"]),
        ("--config.steps=0", ["config.steps=0", "at least 1"]),
        ("--config.steps=1.5", ["config.steps=1.5", "give a whole number"]),
        ("--config.steps=1e3 --config.batch=0.0", ["config.batch=0 must be at least 1"]),
        ("--config.seed=-1", ["config.seed=-1 must be 0 or more"]),
        ("--config.seed=4294967296", ["config.seed=4294967296", "below 2**32"]),
        ("--config.optim.peak=nan", ["config.optim.peak=nan must be a number"]),
        ("--config.optim.clip=0", ["optim.clip=0.0 must be above 0"]),
        ("--config.data.workers=-1", ["data.workers=-1"]),
        ("--config.batch=16 --config.accumulate=3", ["config.batch=16", "try 15 or 18"]),
        ("--config.family=clap", ["config.family='clap'", "transfusion"]),
        ("--stepz=3", ["stepz"]),
        ("stray", ["--workdir"]),
        ("--config=none.py", ["experiment file none.py does not exist"]),
        ("--config=none.py --config.steps=3", ["none.py"]),
    ],
)
def test_a_wrong_flag_is_named(mmjax, flag, words):
    line = refused(mmjax("train", QUICKSTART, "--workdir=run", *flag.split()))
    assert line.startswith("mmjax train: ")
    for word in words:
        assert word in line


def test_what_is_missing_is_asked_for(mmjax):
    assert "--workdir=DIR" in refused(mmjax("train", QUICKSTART))


@pytest.mark.parametrize(
    ("kit", "said"),
    [
        ("8b", "'8b' is no kit: 7b, 34b"),
        ("7b,-foo", "'-foo' is no change: -qk_norm, -z_loss, -dropout, +dropout"),
    ],
)
def test_what_an_experiment_says_is_all_that_is_said(mmjax, kit, said):
    config = f"--config={ROOT}/experiments/chameleon_stability.py:{kit}"
    assert refused(mmjax("train", config, "--workdir=run")) == f"mmjax train: {said}"


def test_train_without_a_config(mmjax):
    assert "--config=NAME" in refused(mmjax("train", "--workdir=run"))


def test_the_first_command_builds_and_describes_its_data(mmjax, openmoji):
    code, out, lines = mmjax("data", "build", "--src=openmoji", f"--dst={openmoji}")
    assert (code, lines) == (0, [])
    assert out.startswith(f"data set in {openmoji}\n") and "compositional" in out


def test_missing_data_names_the_command_that_makes_it(mmjax):
    line = refused(mmjax("train", QUICKSTART, "--workdir=run"))
    assert "no data set in out/data/openmoji" in line
    assert "`mmjax data build --src=openmoji --dst=out/data/openmoji`" in line


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sample", "--workdir=none"], "--prompt"),
        (["sample", "--workdir=none", "--prompt=none.png"], "picture none.png does not exist"),
        (
            ["sample", "--workdir=none", "--prompt=none.jsonl"],
            "prompt file none.jsonl does not exist",
        ),
        (["sample", "--workdir=none", "--prompt=a cat"], "none/config.json does not exist"),
        (["sample", "--workdir=none", "--prompt=a cat", "--steps=0"], "steps"),
        (["evaluate"], "--workdir=DIR"),
        (["evaluate", "--workdir=none"], "none/config.json does not exist"),
        (["train", QUICKSTART, "--workdir=run", "--evals=luck"], "--evals=luck is unknown; trans"),
        (["data"], "build|describe|show|tokenizer"),
        (["data", "bild", "--src=openmoji"], "build|describe|show|tokenizer"),
        (["data", "build", "--src=openmoji"], "--dst"),
        (["data", "build", "--src=mnist", "--dst=x"], "--src=mnist is unknown; have: openmoji"),
        (["data", "build", "--src=digits", "--dst=/dev/null/x"], "/dev/null/x: Not a directory"),
        (["data", "build", "--src=digits", "--dst=/proc/x"], "/proc/x: No such file or directory"),
        (["data", "build", "--src=openmoji", "--dst=/proc/x"], ": No such file or directory"),
        (["data", "describe", "--src=/dev/null/x"], "/dev/null/x holds no data set"),
        (["convert", "--src=/dev/null/x", "--dst=y"], "/dev/null/x is a file; give the directory"),
        (["evaluate", "--workdir=/dev/null/x"], "/dev/null/x/config.json does not exist"),
        (["data", "describe", "--src=none"], "none holds no data set"),
        (["data", "show", "--src=none"], "none holds no data set"),
    ],
)
def test_mistakes_with_the_other_verbs(mmjax, argv, words):
    line = refused(mmjax(*argv))
    assert line.startswith(f"mmjax {argv[0]}: ") and words in line


def test_the_same_from_a_shell(tmp_path):
    """A process of its own, with the relaunch: same code, one line, nothing written."""
    argv = ["train", QUICKSTART, "--workdir=run", "--config.stepz=3"]
    command = [sys.executable, "-m", "mmjax", *argv]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mmjax train: ") and done.stderr.count("\n") == 1
    assert "stepz" in done.stderr
    assert os.listdir(tmp_path) == []
