"""`mmjax data`: what its actions take, say and refuse."""

import json
import re
import sys

import pytest
from verb_flags import taken_back

from mmjax import __main__ as door

ACTIONS = ("build", "describe", "show", "tokenizer")


@pytest.fixture
def data(monkeypatch, capsys, tmp_path):
    """Runs `mmjax data ...` in an empty directory, each time afresh -> code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["mmjax", "data", *argv])
        with taken_back():
            code = door.run_verb("data", [*argv])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def notes(tmp_path):
    (tmp_path / "notes").mkdir()
    for n in range(20):
        (tmp_path / "notes" / f"{n}.txt").write_text(f"note number {n}")
    (tmp_path / "notes" / "a.rst").write_text("x")
    return "--src=notes"


def refused(result) -> str:
    code, out, err = result
    assert (code, out) == (2, "") and err.count("\n") == 1
    return err


def test_help_is_that_of_an_action(data):
    code, out, _ = data("--help")
    assert code == 0 and "--vocabulary" not in out.replace("--vocabulary=", "")
    for action in ACTIONS:
        assert re.search(rf"^  {action} +\w", out, re.MULTILINE)
    flags = {}
    for action in ACTIONS:
        code, out, _ = data(action, "--help")
        assert code == 0 and f"mmjax data {action} " in out
        flags[action] = set(re.findall(r"^  --(\w+)  \w", out, re.MULTILINE))
    assert flags["describe"] >= {"src", "verify"} and "split" not in flags["describe"]
    assert flags["show"] == {"src", "split", "out", "count"}
    assert flags["tokenizer"] == {"src", "dst", "vocabulary"}
    assert flags["build"] >= {"src", "dst", "format", "test", "size", "follow_links"}
    assert not flags["build"] & {"out", "split", "verify"}


@pytest.mark.parametrize(("argv", "words"), [
    (["bulid", "--src=x"], "'bulid' is no action (did you mean 'build'?); say what to do: mmjax"),
    (["nothing"], "'nothing' is no action; say"),
    (["build"], "--src is missing; see mmjax data build --help"),
    (["build", "now", "--src=x"], "'now' is not understood"),
    (["build", "--src=openmojy", "--dst=x"], "openmojy is unknown (did you mean 'openmoji'?); ha"),
    (["build", "--src=notes", "--format=txt", "--dst=x"], "(did you mean 'text'?); have: folder"),
    (["build", "--src=notes", "--dst=x", "--split=a"], "--split is no flag of `mmjax data build`"),
    (["describe", "--src=x", "--dst=y"], "--dst is no flag of `mmjax data describe`; have: --"),
    (["tokenizer", "--src=x", "--dst=y", "--test=0.5"], "--test is no flag of `mmjax data toke"),
    (["build", "--src=notes", "--format=text", "--dst=x", "--size=3"], "--size is no option of te"),
    (["build", "--src=notes", "--format=text", "--dst=x", "--test=nan"], "--test=nan must be a s"),
    (["build", "--src=notes", "--format=text", "--dst=x", "--test=0.5", "--validation=0.5"],
     "--validation=0.5 and --test=0.5 leave nothing for training"),
    (["build", "--src=scenes", "--dst=x", "--test=0.5"], "--test is no option of scenes, which"),
    (["build", "--src=openmoji", "--dst=x", "--count=9"], "--count is no option of openmoji"),
    (["build", "--src=x", "--dst=y", "--vocabulary=9", "--tokenizer=z"], "--tokenizer names one"),
])  # fmt: skip
def test_what_is_mistaken_is_named(data, notes, tmp_path, argv, words):
    assert words in refused(data(*argv))
    assert [p.name for p in tmp_path.iterdir()] == ["notes"]


def test_built_described_verified_and_refused_otherwise(data, notes, tmp_path):
    build = ("build", notes, "--format=text", "--dst=set", "--vocabulary=300")
    code, out, _ = data(*build)
    assert code == 0
    ignored = "ignored, as no document is made of it: .rst: 1 (a.rst)"
    assert ignored in out and "documents" in out
    code, again, _ = data(*build)
    assert (code, again) == (0, out)
    line, other = refused(data(*build, "--test=0.3")), (*build[:-1], "--vocabulary=400")
    assert "--test=(the default), not 0.3" in line
    assert "--vocabulary=300, not --vocabulary=400" in refused(data(*other))
    code, out, _ = data("describe", "--src=set", "--verify")
    assert code == 0 and "verified: 20 records are those that were written" in out
    assert ignored in out
    line = refused(data("show", "--src=set", "--split=tset"))
    assert "set has no split 'tset' (did you mean 'test'?); have: train, validation, test" in line
    info = json.loads((tmp_path / "set/dataset.json").read_text())
    info["splits"]["train"]["documents"] -= 1
    (tmp_path / "set/dataset.json").write_text(json.dumps(info))
    assert "records, but dataset.json tells of" in refused(
        data("describe", "--src=set", "--verify")
    )


@pytest.mark.parametrize("width", [20, 40, 80])
def test_nothing_of_a_table_is_cut(data, tmp_path, monkeypatch, width):
    """In a pipe lines are as long as they are; in a terminal their text wraps."""
    monkeypatch.setenv("COLUMNS", str(width))
    splits = ["train", "validation", "test", "a_split_of_a_rather_long_name", "another_one"]
    lines = [json.dumps({"text": f"the text of {s} {n}", "split": s}) for s in splits
             for n in range(3)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    code, out, _ = data("build", "--src=a.jsonl", "--format=jsonl", "--dst=set", "--vocabulary=300")
    assert code == 0 and "…" not in out
    for split in splits:
        assert f" {split} " in out
    assert "repeated pictures" in out and "en 100%" in out
