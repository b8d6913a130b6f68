"""What commands may replace: what mmjax made, never what is read nor what is somebody's."""

import importlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from test_conversion import theirs
from tiny import ROOT
from verb_flags import taken_back

from mmjax import conversion, destination, run
from mmjax.__main__ import run_verb
from mmjax.convert import hub
from mmjax.error import UserError, some
from mmjax.sheet import Cell, is_sheet, sheet


def verb(name: str, *words: str) -> int:
    """A verb's exit code."""
    with taken_back():
        return run_verb(name, list(words))


def tree(path: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """P, with a model of theirs, a workdir made of it and an export of that."""
    place = tmp_path_factory.mktemp("home")
    work = conversion.convert(theirs("llama", place / "model"), place / "work", said=lambda _: None)
    conversion.convert(work, place / "out", said=lambda _: None)
    return place


@pytest.mark.parametrize(
    ("src", "dst", "words"),
    [
        ("model", ".", "overlaps"),
        ("model", "model", "overlaps"),
        ("model", "link", "overlaps"),
        ("link", "model", "overlaps"),
        ("model", "model/deep", "overlaps"),
        ("model", "nothing/../model", "overlaps"),
        ("work", "work", "overlaps"),
        ("work", "work/checkpoints", "overlaps"),
        ("work", "..", "overlaps"),
        ("model", "photos", "did not make all that is in it (a.png)"),
        (
            "model",
            "other",
            "did not make all that is in it (config.json, deep, inputs.npz and 2 more)",
        ),
        ("model", "used", "did not make all that is in it (notes.txt)"),
        ("model", "exported", "did not make all that is in it (README.md)"),
        ("model", "file", "did not make all that is in it (file)"),
        ("work", "photos", "did not make all that is in it (a.png)"),
    ],
)
def test_convert_replaces_nothing_that_is_read_or_is_not_ours(
    home, tmp_path, capsys, src, dst, words
):
    """With --overwrite; not one byte changes, and nothing is left beside."""
    place = tmp_path / "P"
    shutil.copytree(home, place)
    (place / "link").symlink_to(place / "model")
    (place / "model" / "deep").mkdir()
    (place / "model" / "deep" / "x").write_text("mine")
    for name, file in (("photos", "a.png"), ("used", "notes.txt"), ("exported", "README.md")):
        made = {"used": "work", "exported": "out"}.get(name)
        shutil.copytree(place / made, place / name) if made else (place / name).mkdir()
        (place / name / file).write_text("mine")
    shutil.copytree(place / "model", place / "other")
    (place / "file").write_text("mine")
    before = tree(tmp_path)
    assert verb("convert", f"--src={place / src}", f"--dst={place / dst}", "--overwrite") == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert tree(tmp_path) == before


def test_directories_of_others_that_are_called_as_ours_would_be_stay(home, tmp_path, capsys):
    """X.partial and X.replaced beside the destination may be somebody's."""
    for name in ("new.partial", "new.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("kept")
    before, words = tree(tmp_path), [f"--src={home / 'model'}", f"--dst={tmp_path / 'new'}"]
    assert verb("convert", *words) == 2
    assert "new.partial, where the result would be made, is there" in capsys.readouterr().err
    assert tree(tmp_path) == before
    shutil.rmtree(tmp_path / "new.partial")
    assert verb("convert", *words) == verb("convert", *words, "--overwrite") == 0
    assert (tmp_path / "new.replaced" / "mine").read_text() == "kept"


def test_the_old_one_goes_last(home, tmp_path, monkeypatch):
    """Where the new cannot take its place, the old is as it was."""
    dst = tmp_path / "out"
    shutil.copytree(home / "out", dst)
    before, rename = tree(dst), Path.rename

    def full(self, to):
        if self.name.endswith(".partial"):
            assert not dst.exists() and list(tmp_path.glob("out.replaced.*/out/config.json"))
            raise OSError(28, "No space left on device")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        conversion.convert(home / "work", dst, overwrite=True)
    assert tree(dst) == before and not list(tmp_path.glob("out.replaced*"))
    monkeypatch.undo()
    conversion.convert(home / "work", dst, overwrite=True, said=lambda _: None)
    assert os.listdir(tmp_path) == ["out"]


def test_a_destination_by_a_link_keeps_the_link(home, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    conversion.convert(home / "model", tmp_path / "link", said=lambda _: None)
    conversion.convert(home / "model", tmp_path / "link", overwrite=True, said=lambda _: None)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "config.json").is_file()


def test_a_refusal_while_weights_are_read_leaves_nothing(home, tmp_path, monkeypatch):
    def damaged(*args):
        raise UserError("damaged")

    monkeypatch.setattr(conversion, "stacked", damaged)
    with pytest.raises(UserError, match="damaged"):
        conversion.convert(home / "model", tmp_path / "a" / "b" / "work")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("x", "x", True), ("x/y", "x", True), ("x", "x/y/z", True), ("x/../y", "y", True),
     ("x", "xy", False), ("x/y", "x/z", False), ("link/y", "x", True)],
)  # fmt: skip
def test_what_overlaps(tmp_path, a, b, wanted):
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert destination.overlaps(tmp_path / a, tmp_path / b) == wanted


def test_a_data_set_is_not_built_within_what_it_is_made_of(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "photos" / "a.png")
    before = tree(tmp_path)
    for dst in ("photos", "photos/set", "."):
        words = [f"--src={tmp_path / 'photos'}", f"--dst={tmp_path / dst}", "--format=folder"]
        assert verb("data", "build", *words) == 2
        assert "overlaps" in capsys.readouterr().err
    assert tree(tmp_path) == before
    words[1] = f"--dst={tmp_path / 'taken'}"
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.array_record").write_text("mine")
    assert verb("data", "build", *words) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "taken" / "a.array_record").read_text() == "mine"


def test_files_that_data_writes_replace_their_own_kind_alone(tmp_path, capsys, openmoji):
    mine = tmp_path / "photo.png"
    PIL.Image.new("RGB", (4, 4)).save(mine)
    before = mine.read_bytes()
    show = ["data", "show", f"--src={openmoji}", "--count=2"]
    assert verb(*show, f"--out={mine}") == 2
    assert "exists and was not written by this command" in capsys.readouterr().err
    assert verb(*show, f"--out={tmp_path}") == 2
    assert "is a directory; name a file" in capsys.readouterr().err
    assert mine.read_bytes() == before
    page = tmp_path / "page.png"
    assert verb(*show, f"--out={page}") == 0 == verb(*show, f"--out={page}")
    for there in (mine, openmoji / "tokenizer.json"):
        before = there.read_bytes()
        words = ["data", "tokenizer", f"--src={openmoji}", f"--dst={there}", "--vocabulary=300"]
        assert verb(*words) == 2
        assert "exists and was not written by this command" in capsys.readouterr().err
        assert there.read_bytes() == before


def test_a_contact_sheet_is_known_again(tmp_path):
    page = tmp_path / "sheet.png"
    sheet([Cell([], ["words"])], page, "one")
    assert is_sheet(page)
    PIL.Image.open(page).convert("L").save(page)
    assert not is_sheet(page) and not is_sheet(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints", "tokenizer.json"])
def test_training_does_not_write_over_what_no_training_left(home, tmp_path, name):
    """As in a model of theirs, whose config.json and tokenizer.json would be gone."""
    run.check_workdir(home / "work")
    run.check_workdir(tmp_path)
    place = tmp_path / name
    place.mkdir() if name == "checkpoints" else place.write_text('{"model_type": "llama"}')
    (tmp_path / "notes.txt").write_text("stay")
    with pytest.raises(UserError, match=f"is no workdir of `mmjax train`, but has {name}, which"):
        run.check_workdir(tmp_path)
    place.rmdir() if name == "checkpoints" else place.unlink()
    run.check_workdir(tmp_path)  # what training does not write is in nobody's way


@pytest.mark.filterwarnings(r"ignore:the load_module\(\):DeprecationWarning")
def test_train_asks_before_anything_is_done(home, tmp_path, capsys):
    """The check is made by the command, not only there to be made."""
    shutil.copytree(home / "model", tmp_path / "model")
    before = tree(tmp_path)
    flag = f"--config={ROOT}/experiments/base.py"
    assert verb("train", flag, f"--workdir={tmp_path / 'model'}") == 2
    assert "is no workdir of `mmjax train`, but has config.json" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_samples_replace_samples_alone(tmp_path):
    with taken_back():
        sample = importlib.import_module("mmjax.verbs.sample")
        out = tmp_path / "out"
        sample.check_out(out, ["a cat"])
        out.mkdir()
        (out / "notes.txt").write_text("in nobody's way")
        sample.check_out(out, ["a cat", "x" * 5000])
        for name in ("000.png", "017_3.png", "sheet.png", "samples.jsonl"):
            (out / name).write_text("{}")
            with pytest.raises(UserError, match=f"has {name}, which would be replaced"):
                sample.check_out(out, ["a cat"])
            (out / name).unlink()
        (out / "000.png").write_text("made")
        (out / "samples.jsonl").write_text(
            json.dumps({"prompt": "a cat", "image": "000.png"}) + "\n"
        )
        sample.check_out(out, ["a cat", str(tmp_path / "000.png")])
        told = tmp_path / "prompts.jsonl"
        told.write_text(json.dumps({"parts": [{"image": "out/000.png"}, {"make": "text"}]}) + "\n")
        for prompt in (str(out / "000.png"), str(told), str(out / "samples.jsonl")):
            with pytest.raises(UserError, match="a prompt, lies in --out="):
                sample.check_out(out, [prompt])
        with pytest.raises(UserError, match="is a file; name a directory"):
            sample.check_out(out / "000.png", [])


def test_lists_in_messages_are_short():
    assert some(["a", "b"]) == "a, b"
    assert some([str(n) for n in range(4003)]) == "0, 1, 2 and 4,000 more"


def test_a_marked_directory_is_known_by_what_is_in_it(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(1))
    assert not destination.marked(tmp_path)
    (tmp_path / hub.CONFIG).write_text("{}")
    (tmp_path / destination.MARK).write_text('{"made_by": "somebody"}')
    assert not destination.marked(tmp_path)
