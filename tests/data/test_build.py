"""From a user's files to a data set that trains: build, describe, show."""

import io
import json
import os

import numpy as np
import PIL.Image
import pytest

from mmjax.data import build, pipeline, store
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError

WORDS = ("red", "green", "blue", "yellow", "black", "white")


def picture(n: int, size=(24, 16)) -> bytes:
    out = io.BytesIO()
    noise = np.random.default_rng(n).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Forty pictures with captions, one damaged, one twice."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(40):
        (folder / f"{n:02d}.png").write_bytes(picture(n))
        caption = f"a {WORDS[n % 3]} noise beside a {WORDS[n // 20]} one"
        (folder / f"{n:02d}.txt").write_text(caption)
    (folder / "40.png").write_bytes(picture(0))
    (folder / "40.txt").write_text("the first one once more")
    (folder / "41.png").write_bytes(picture(1)[:-40])
    (folder / "41.txt").write_text("cut off")
    return folder


def test_a_folder_becomes_a_data_set(photos, tmp_path):
    found = build.build(str(photos), tmp_path / "set", "folder")
    assert (found["documents"], found["rejected"]) == (41, 1)
    assert store.info(tmp_path / "set") == found
    (line,) = (tmp_path / "set" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["source"] == "41.png" and "damaged" in json.loads(line)["reason"]
    tokenizer = bpe.load(tmp_path / "set" / "tokenizer.json")
    record = store.read(tmp_path / "set", "train")[0]
    assert bpe.decode(tokenizer, bpe.encode(tokenizer, record.caption)) == record.caption
    assert record.images[0] == picture(int(record.id[:2]))  # encoded as it was
    splits = {s: [r.images[0] for r in store.read(tmp_path / "set", s)] for s in found["splits"]}
    with_first = [s for s, pictures in splits.items() if picture(0) in pictures]
    assert len(with_first) == 1 and splits[with_first[0]].count(picture(0)) == 2


def test_again_nothing_is_done_unless_the_source_changed(photos, tmp_path):
    build.build(str(photos), tmp_path / "set", "folder")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()}
    build.build(str(photos), tmp_path / "set", "folder")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()} == before
    (photos / "00.txt").write_text("something else")
    with pytest.raises(UserError, match=r"before its source changed \(84 files then, 84 now\); "):
        build.build(str(photos), tmp_path / "set", "folder")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()} == before


def test_a_flag_that_changed_is_named_with_both_values(photos, tmp_path):
    """Nothing is left as it was while another result is asked for."""
    path, src = tmp_path / "set", str(photos)
    build.build(src, path, "folder", 300)
    given = tmp_path / "mine.json"
    build.save(build.train_tokenizer([path], 280), given)
    before = {p: p.read_bytes() for p in path.iterdir()}
    half = {"validation": None, "test": 0.5}
    for change, words in [
        (
            dict(shares=half),
            r"with --test=\(the default\), not 0.5: .*choose another --dst",
        ),
        (
            dict(vocabulary=400),
            "izer.json was made with --vocabulary=300, not --vocabulary=400",
        ),
        (dict(tokenizer=str(given)), "with --vocabulary=300, not --tokenizer=.*mine.json"),
        (dict(options={"follow_links": True}), "--follow_links=False, not True"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            build.build(src, path, "folder", **{"vocabulary": 300} | change)
        assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in path.iterdir()} == before
    build.build(src, path, "folder", 300, options={"follow_links": False})  # the default, said
    build.build(src, tmp_path / "b", "folder", tokenizer=str(given), shares=half)
    for change, words in [
        (dict(tokenizer=""), "with a --tokenizer that was given, not --vocabulary=1024"),
        (dict(shares=half | {"test": 0.25}), r"--test=0.5, not 0.25"),
        (dict(shares=None), r"--test=0.5, not \(the default\)"),
    ]:
        asked = dict(tokenizer=str(given), shares=half) | change
        with pytest.raises(UserError, match=words):
            build.build(src, tmp_path / "b", "folder", **asked)


def test_a_flag_of_a_set_that_changed_is_named_too(openmoji, tmp_path):
    path = tmp_path / "set"
    options = {"count": 40, "size": 16, "level": 1}
    build.build("scenes", path, options=options)
    build.build("scenes", path, options=options | {"seed": 0})
    for name, value, was in (
        ("size", 24, 16), ("level", 2, 1), ("count", 41, 40), ("seed", 1, 0), ("edits", True, False)
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"was built with --{name}={was}, not {value}"):
            build.build("scenes", path, options=options | {name: value})
    with pytest.raises(UserError, match="was built with --src=scenes, not prose: say"):
        build.build("prose", path)
    with pytest.raises(UserError, match="--test is no option of scenes, which has splits of its"):
        build.build("scenes", path, shares={"test": 0.1}, options=options)
    for options, words in (({"size": 16}, "--size is no option of openmoji"),):
        with pytest.raises(UserError, match=words):
            build.build("openmoji", openmoji, options=options)
    held = bpe.vocabulary(bpe.load(openmoji / "tokenizer.json")).size
    with pytest.raises(UserError, match=f"not --vocabulary={held - 1}"):
        build.build("openmoji", openmoji, vocabulary=held - 1)


def test_a_set_of_an_older_version_is_known_again(photos, tmp_path):
    path = tmp_path / "set"
    build.build(str(photos), path, "folder")
    found = store.info(path)
    del found["source"]["shares"], found["source"]["options"], found["files"], found["ignored"]
    (path / "dataset.json").write_text(json.dumps(found))
    (path / "built.json").unlink()
    assert build.build(str(photos), path, "folder") == found
    with pytest.raises(UserError, match="made with another tokenizer, not --vocabulary=270"):
        build.build(str(photos), path, "folder", vocabulary=270)


def test_shares_and_tokenizer_as_asked(photos, tmp_path):
    shares = {"validation": 0.4, "test": 0.3}
    build.build(str(photos), tmp_path / "a", "folder", shares=shares)
    documents = {s: e["documents"] for s, e in store.info(tmp_path / "a")["splits"].items()}
    assert documents["validation"] > 8 and documents["test"] > 5 and sum(documents.values()) == 41
    given = str(tmp_path / "a" / "tokenizer.json")
    build.build(str(photos), tmp_path / "b", "folder", tokenizer=given)
    same = [(tmp_path / d / "tokenizer.json").read_text() for d in "ab"]
    assert same[0] == same[1]
    build.build(str(photos), tmp_path / "c", "folder", vocabulary=300)
    assert bpe.vocabulary(bpe.load(tmp_path / "c" / "tokenizer.json")).size == 300


def test_a_tokenizer_of_several_sets(photos, tmp_path):
    build.build(str(photos), tmp_path / "a", "folder")
    (tmp_path / "words.txt").write_text("zymurgy zymurgy quixotic\n\n" * 40)
    build.build(str(tmp_path / "words.txt"), tmp_path / "b", "text", shares={"test": 0.0})
    one = build.train_tokenizer([tmp_path / "a"], 400)
    both = build.train_tokenizer([tmp_path / "a", tmp_path / "b"], 400)
    assert len(bpe.encode(both, "zymurgy")) == 1 < len(bpe.encode(one, "zymurgy"))
    assert len(bpe.encode(both, "noise")) == 1
    build.save(both, tmp_path / "new" / "tokenizer.json")
    assert bpe.vocabulary(bpe.load(tmp_path / "new" / "tokenizer.json")) == bpe.vocabulary(both)


def test_describe_counts(photos, tmp_path):
    build.build(str(photos), tmp_path / "set", "folder", shares={"test": 0.3})
    table = build.describe(tmp_path / "set")
    assert list(table) == ["train", "test"]
    assert sum(row["documents"] for row in table.values()) == 41
    assert table["train"]["sides"] == "16 ... 24" and "en" in table["train"]["languages"]
    records = list(store.read(tmp_path / "set", "train"))
    tokenizer = bpe.load(tmp_path / "set" / "tokenizer.json")
    assert table["train"]["tokens"] == sum(len(bpe.encode(tokenizer, r.caption)) for r in records)
    assert table["train"]["bytes"] == sum(
        len(r.images[0]) + len(r.caption.encode()) for r in records
    )
    captions = {r.caption for r in records}
    again = sum(r.caption in captions for r in store.read(tmp_path / "set", "test"))
    assert table["test"]["repeated text"] == again > 0 == table["train"]["repeated text"]
    assert table["test"]["repeated pictures"] == 0  # one picture is never in two splits


def test_a_picture_in_two_splits_is_counted(photos, tmp_path):
    for split, number in (("train", 0), ("test", 0), ("test", 1)):
        folder = tmp_path / "split" / split
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(picture(number))
        (folder / f"{number}.txt").write_text(f"{split} {number}")
    build.build(str(tmp_path / "split"), tmp_path / "set", "folder")
    assert build.describe(tmp_path / "set")["test"]["repeated pictures"] == 1


def test_a_contact_sheet_of_pictures_and_of_texts(photos, tmp_path):
    build.build(str(photos), tmp_path / "set", "folder")
    build.show(tmp_path / "set", "train", tmp_path / "sheet.png", 12)
    with PIL.Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 300 and len(sheet.getcolors(1 << 24)) > 1000
    (tmp_path / "prose.txt").write_text("One paragraph.\n\n" + "Another one. " * 60)
    build.build(str(tmp_path / "prose.txt"), tmp_path / "text", "text")
    split = pipeline.splits(tmp_path / "text")[0]
    build.show(tmp_path / "text", split, tmp_path / "text.png", 12)
    with PIL.Image.open(tmp_path / "text.png") as sheet:
        assert 1 < len(sheet.getcolors(1 << 24)) < 500 and sheet.height < 200


@pytest.mark.parametrize(
    ("src", "form", "options", "words"),
    [
        ("nothing", "", {}, r"--src=nothing is unknown; have: openmoji.*--format=folder\|jsonl"),
        ("photos", "zip", {}, "--format=zip is unknown; have: folder, jsonl"),
        ("photos", "folder", {"level": 3}, "--level is no option of folder; have: --follow_links"),
        ("no/such", "folder", {}, "no/such does not exist"),
    ],
)
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(
    photos, tmp_path, monkeypatch, src, form, options, words
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as error:
        build.build(src, "set", form, options=options)
    assert "\n" not in str(error.value)
    assert not os.path.exists("set")
