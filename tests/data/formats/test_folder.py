"""Pictures in a folder: which caption goes with which, and what happens to those without."""

import json
import unicodedata
from functools import partial

import pytest
from pictures import outcome, picture

from mmjax.batch import Image, Text
from mmjax.data.formats import folder, reader
from mmjax.error import UserError


def table(path, *lines):
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))


def test_captions_beside_pictures(tmp_path):
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds/owl.PNG").write_bytes(picture(1))
    (tmp_path / "birds/owl.txt").write_text(" ein Käuzchen\n", encoding="utf-8-sig")
    (tmp_path / "a.jpeg").write_bytes(picture(2, "jpeg"))
    (tmp_path / "a.txt").write_text("a thing")
    (tmp_path / "notes.txt").write_text("no picture")
    for hidden in (".cache/b.png", "._owl.png"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(picture())
    records, reasons = outcome(reader("folder")(tmp_path))
    assert not reasons and list(records) == ["a.jpeg", "birds/owl.PNG"]
    owl = records["birds/owl.PNG"]
    assert owl.id == "birds/owl.PNG"
    assert owl.document == (Text("ein Käuzchen"), Image(picture(1)))
    assert owl.images != records["a.jpeg"].images


def test_splits_are_folders_of_the_first_level_only(tmp_path):
    for name in ("test/a.png", "train/test/b.png", "other/validation/c.png", "test.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture())
    found = {item.source: item.split for item in folder.items(tmp_path)}
    assert found == {
        "other/validation/c.png": None,
        "test.png": None,
        "test/a.png": "test",
        "train/test/b.png": "train",
    }


def test_a_table_gives_several_captions_and_goes_before_text_files(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.txt").write_text("not this one")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.gif").write_bytes(picture(2, "gif"))
    two = [{"file": "a.png", "caption": "first"}, {"file": "in/../a.png", "caption": "second"}]
    table(tmp_path / "captions.jsonl", *two)
    table(tmp_path / "in/captions.jsonl", {"file": "b.gif", "caption": "third"})
    items = [item for item in folder.items(tmp_path) if not item.ignored]
    records = [item.read() for item in items]
    assert [(r.id, r.caption) for r in records] == [
        ("a.png", "first"), ("a.png:2", "second"), ("in/b.gif", "third")
    ]  # fmt: skip
    assert records[0].images == records[1].images != records[2].images


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_however_their_accents_are_spelled(tmp_path, forms):
    mine, theirs = (partial(unicodedata.normalize, form) for form in forms)
    for n, name in enumerate(("é", "ü/ñ")):
        (tmp_path / mine(name)).parent.mkdir(exist_ok=True)
        (tmp_path / mine(f"{name}.png")).write_bytes(picture(n))
    (tmp_path / theirs("é.TXT")).write_text("beside")
    table(tmp_path / "captions.jsonl", {"file": theirs("ü/ñ.png"), "caption": "in a table"})
    records, reasons = outcome(folder.items(tmp_path))
    assert not reasons and [r.caption for r in records.values()] == ["beside", "in a table"]
    items = folder.items(tmp_path)
    assert not any(item.ignored for item in items)


def test_damage_is_told_record_by_record(tmp_path):
    for name in ("bare", "blank", "latin", "cut", "good"):
        (tmp_path / f"{name}.png").write_bytes(picture())
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "bare.txt").unlink()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("Käuzchen".encode("latin-1"))
    (tmp_path / "cut.png").write_bytes(picture()[:-200])
    table(
        tmp_path / "captions.jsonl",
        {"file": "gone.png", "caption": "x"},
        "{no json",
        {"file": "good.png"},
        [1],
        {"file": "good.png", "caption": 3},
        "",
        {"file": "good.png", "caption": "\ud800"},
    )
    records, reasons = outcome(folder.items(tmp_path))
    assert not records
    assert reasons.pop("bare.png").startswith("no caption: write bare.txt")
    assert reasons.pop("blank.png") == "empty caption"
    assert reasons.pop("latin.png") == "not UTF-8 at byte 1"
    assert reasons.pop("cut.png").startswith("damaged picture")
    assert reasons.pop("good.png").startswith("caption holds half a character")
    assert reasons.pop("captions.jsonl:2").startswith("not JSON")
    assert reasons == {
        "captions.jsonl:1": "no image gone.png",
        "captions.jsonl:3": "no field 'caption'",
        "captions.jsonl:4": "not a JSON object",
        "captions.jsonl:5": "no field 'caption'",
    }


def test_listing_reads_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    items = folder.items(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "a.txt").write_text("gone")
    (item,) = items
    with pytest.raises(FileNotFoundError, match=r"^a.png: no such file or directory$"):
        item.read()


@pytest.mark.parametrize("name, message", [
    ("absent", "does not exist"), ("file.png", "is a file"), ("empty", "no images in"),
])  # fmt: skip
def test_a_path_without_pictures_is_the_users_mistake(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("a")
    (tmp_path / "file.png").write_bytes(picture())
    with pytest.raises(UserError, match=f"{name}.*{message}|{message}.*{name}"):
        folder.items(tmp_path / name)
