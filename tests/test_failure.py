"""Whatever ends a verb: one line and a code; the traceback of a fault goes to a file."""

import errno
import importlib
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from verb_flags import taken_back

from mmjax import failure
from mmjax.__main__ import run_verb, with_whole_numbers
from mmjax.error import UserError

ROOT = Path(__file__).parent.parent


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


class XlaRuntimeError(RuntimeError):
    """XLA's has this name and says so."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("a\nb"), "a b"),
        (OSError(errno.ENOSPC, "No space left on device", "x/y"), "x/y: No space .*; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; make room"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "ulimit -n"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "x: Permission denied; ask"),
        (OSError("cannot identify image file"), "^cannot identify image file$"),
        (MemoryError(), "^out of memory; lower config.batch"),
        (XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory\n allocating"), "device: .*batch"),
        (ModuleNotFoundError("No module named 'pydicom'", name="pydicom"), "pydicom is not"),
        (chained(ValueError("worse"), OSError(errno.ENOSPC, "No space", "z")), "z: No space"),
    ],
)
def test_what_a_user_can_mend_is_one_line_with_the_remedy(error, words, capsys):
    line = failure.explained(error)
    assert line is not None and re.search(words, line) and "\n" not in line
    assert failure.finish("train", error) == failure.USER
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"mmjax train: {line}\n")


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("a"), ModuleNotFoundError("mmjax.y", name="mmjax.y")]
)
def test_what_no_user_can_mend_is_none_of_these(error):
    assert failure.explained(error) is None


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """An empty directory for reports."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def saved(line: str, reports: Path) -> str:
    """The traceback a line speaks of."""
    assert line.count("\n") == 1 and "this is a bug, please report it: " in line
    (file,) = reports.iterdir()
    assert line.endswith(f"; its traceback is in {file}\n")
    return file.read_text()


def raising(monkeypatch, error: BaseException) -> int:
    def main(rest):
        raise error

    with taken_back(), monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("mmjax.verbs.data"), "main", main)
        return run_verb("data", [])


def test_a_fault_is_one_line_and_a_saved_traceback(monkeypatch, capsys, reports):
    assert raising(monkeypatch, ZeroDivisionError("a\nb")) == failure.BUG
    said = capsys.readouterr().err
    text = saved(said, reports)
    assert "ZeroDivisionError: a b" in said
    assert "Traceback (most recent call last)" in text and "in main" in text


def test_interruptions_and_pipes_have_codes_of_their_own(monkeypatch, capsys, reports):
    assert raising(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "mmjax data: interrupted\n"
    assert os.listdir(reports) == []


def test_where_not_even_a_report_can_be_written_the_traceback_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null/x")
    assert raising(monkeypatch, ZeroDivisionError("a")) == failure.BUG
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_thread_that_dies_is_one_line_too(monkeypatch, capsys, reports):
    def die(error):
        raise error

    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    failure.watch_threads("train")
    for error in (OSError(errno.EIO, "Input/output error", "disk"), ZeroDivisionError("z")):
        thread = threading.Thread(target=die, args=(error,))
        thread.start()
        thread.join()
    first, second = capsys.readouterr().err.splitlines(keepends=True)
    assert first.startswith("mmjax train: disk: Input/output error; the device failed")
    assert "in die" in saved(second, reports)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["--config.steps=1e3"], ["--config.steps=1000"]),
        (["-config.steps=1000.0", "1e3"], ["--config.steps=1000", "1e3"]),
        (["--config.steps", "1.5e+3", "x"], ["--config.steps", "1500", "x"]),
        (["--config.steps=1.5"], None),
        (["--config.steps=1e400"], None),
        (["--config.steps=abc"], None),
        (["--config.other=1e3"], None),
    ],
)
def test_a_whole_number_may_be_written_as_a_float(given, taken):
    value = next(a for a in (given[0].partition("=")[2], *given[1:]) if a)
    complaint = f"flag --config.steps={value}: invalid literal for int() with base 10: '{value}'"
    assert with_whole_numbers(given, complaint) == (taken or given)


EXPERIMENTS = {
    "broken": ("def get_config(:\n", "line 1: SyntaxError"),
    "without": ("x = 1\n", "does not define get_config()"),
    "raises": ("def get_config():\n    return unknown\n", "line 2: NameError: name 'unknown'"),
    "imports": ("import nothing_of_this_name\n", "line 1: ModuleNotFoundError"),
    "other": ("def get_config():\n    return 5\n", "get_config() gave a int"),
    "deep": (
        "def f():\n    return {}['k']\ndef get_config():\n    return f()\n",
        "line 2: KeyError",
    ),
}
DOOR = """
import os, sys
os.environ["MALLOC_ARENA_MAX"] = "1"
from mmjax import __main__ as door
sys.argv = ["mmjax", "train", "--workdir=w", *sys.argv[1:]]
door.main()
"""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_wrong_experiment_file_is_one_line_that_names_the_place(tmp_path, name):
    """In processes of their own: ml_collections remembers what it has read."""
    text, words = EXPERIMENTS[name]
    (tmp_path / f"{name}.py").write_text(text)
    argv = [sys.executable, "-c", DOOR, f"--config={name}.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert words in done.stderr
    if name != "other":
        assert f"experiment file {name}.py" in done.stderr
    assert not (tmp_path / "w").exists()
