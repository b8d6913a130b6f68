"""Shards of tar: records by name, and what is left of shards that break off."""

import gzip
import io
import json
import tarfile
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import outcome, picture

from mmjax.batch import Image, Text
from mmjax.data.formats import webdataset
from mmjax.error import UserError

LONG = "/".join(["long" * 15] * 3)  # more than a plain header holds


def shard(path, members, form=tarfile.PAX_FORMAT):
    """Writes a shard -> where each member's data begins."""
    mode = "w" if path.name.endswith(".tar") else "w:gz"
    with tarfile.open(path, mode, format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(path) as tar:
        return [m.offset_data for m in tar]


def pairs(count):
    for i in range(count):
        yield f"{i:03d}.png", picture(i)
        yield f"{i:03d}.txt", f"caption {i}".encode()


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_one_name_are_one_record(tmp_path, ending, form):
    path = tmp_path / f"a.{ending}"
    shard(path, [
        ("./in.1/x.PNG", picture(1)), ("./in.1/x.txt", b"one\n"), ("./in.1/x.cls", b"3"),
        ("./in.2/x.json", json.dumps({"caption": "two"}).encode()),
        ("./in.2/x.left.jpg", picture(2, "jpeg")), ("./in.2/x.right.jpg", picture(3, "jpeg")),
        (f"{LONG}.json", b'{"text": "three"}'), (f"{LONG}.webp", picture(4, "webp")),
        (".hidden.png", b""), ("README", b""),
    ], form)  # fmt: skip
    items = [item for item in webdataset.items(path) if not item.ignored]
    assert [i.source for i in items] == [f"a.{ending}:{k}" for k in ("in.1/x", "in.2/x", LONG)]
    records = [i.read() for i in items]
    assert [r.document for r in records] == [
        (Text("one"), Image(picture(1))),
        (Text("two"), Image(picture(2, "jpeg")), Image(picture(3, "jpeg"))),
        (Text("three"), Image(picture(4, "webp"))),
    ]
    assert records[0].id == items[0].source


def test_damaged_records_are_named_and_the_others_live(tmp_path):
    shard(tmp_path / "a.tar", [
        ("a.png", picture()), ("a.txt", b"good"), ("b.png", picture()), ("c.txt", b"c"),
        ("d.png", picture()), ("d.txt", b" "), ("e.png", picture()[:-99]), ("e.txt", b"e"),
        ("f.png", picture()), ("f.json", b"{}"), ("g.png", picture()), ("g.json", b"["),
        ("h.png", picture()), ("h.txt", b"\xff"), ("i.png", picture()), ("i.png", picture()),
        ("j.png", picture()), ("j.json", b"[]"),
    ])  # fmt: skip
    records, reasons = outcome(webdataset.items(tmp_path))
    assert list(records) == ["a.tar:a"]
    starts = [
        "no caption: looked", "no image: looked for c.png", "empty caption", "damaged picture",
        "no caption", "not JSON", "not UTF-8", "two members are called i.png", ".json is not",
    ]  # fmt: skip
    assert list(reasons) == [f"a.tar:{k}" for k in "bcdefghij"]
    assert reasons["a.tar:b"] == (
        "no caption: looked for b.txt b.caption b.json; there is b.png; call the caption b.txt"
    )
    for reason, start in zip(reasons.values(), starts, strict=True):
        assert reason.startswith(start)


@pytest.mark.parametrize("ending", ["tar", "tgz"])
def test_names_with_dots_are_one_record_up_to_the_last_of_them(tmp_path, ending):
    shard(tmp_path / f"a.{ending}", [
        ("22.05.png", picture(1)), ("22.05.txt", b"may"), ("22.06.png", picture(2)),
        ("22.06.json", b'{"caption": null, "text": "june"}'), ("22.07.png", picture(3)),
        ("v1.2/x.png", picture(4)), ("v1.2/x.txt", b"x"),
        ("y.left.png", picture(5)), ("y.right.png", picture(6)), ("y.txt", b"two"),
        ("z.1.png", picture(7)), ("z.1.txt", b"one"), ("z.png", picture(8)), ("z.txt", b"none"),
    ])  # fmt: skip
    records, reasons = outcome(webdataset.items(tmp_path))
    assert {k.partition(":")[2]: (r.caption, len(r.images)) for k, r in records.items()} == {
        "22.05": ("may", 1), "22.06": ("june", 1), "v1.2/x": ("x", 1), "y": ("two", 2),
        "z.1": ("one", 1), "z": ("none", 1),
    }  # fmt: skip
    (reason,) = reasons.values()
    assert reason.startswith("no caption: looked for 22.07.txt 22.07.caption 22.07.json; there is")


def test_members_need_not_follow_one_another(tmp_path):
    members = sorted(pairs(3), key=lambda pair: pair[0][::-1])  # images, then captions
    shard(tmp_path / "a.tar", members)
    records, reasons = outcome(webdataset.items(tmp_path))
    assert not reasons
    assert {k: (r.caption, r.images) for k, r in records.items()} == {
        f"a.tar:00{i}": (f"caption {i}", [picture(i)]) for i in range(3)
    }
    (tmp_path / "a.tar").unlink()
    shard(tmp_path / "a.tgz", members)  # cannot be gone back in
    records, reasons = outcome(webdataset.items(tmp_path))
    assert not records and len(reasons) == 6
    assert reasons["a.tgz:000"].endswith(
        "there is 000.png; call the caption 000.txt, and put it beside these, or unpack the shard, "
        "whose members then need no order"
    )


def test_a_name_that_comes_again_with_all_it_needs_is_a_record_of_its_own(tmp_path):
    for ending in ("tar", "tgz"):
        shard(tmp_path / f"{ending}.{ending}", [*pairs(2), *pairs(1)])
    records, reasons = outcome(webdataset.items(tmp_path))
    names = [f"{e}.{e}:{k}" for e in ("tar", "tgz") for k in ("000", "001", "000:2")]
    assert not reasons and list(records) == names


def test_other_members_are_counted_and_spellings_of_a_name_are_one(tmp_path):
    shard(tmp_path / "a.tar", [
        (unicodedata.normalize("NFD", "é.png"), picture()), ("b.cls", b"3"), ("b.txt", b"b"),
        (unicodedata.normalize("NFC", "é.txt"), b"accent"), ("b.heic", b"\0\0\0\x18ftypheic"),
        ("._b.png", b""), ("README", b""),
    ])  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    items = list(webdataset.items(tmp_path))
    counted = {item.source: item.ignored for item in items if item.ignored}
    assert counted == {
        "a.tar:b.cls": ".cls", "a.tar:._b.png": "hidden", "a.tar:README": "no ending"
    }  # fmt: skip
    records, reasons = outcome(items)
    assert [r.caption for r in records.values()] == ["accent"]
    assert reasons.keys() == {"a.tar:b", "a.tar:c.png"} and "a link" in reasons["a.tar:c.png"]


def test_a_folder_with_splits(tmp_path):
    (tmp_path / "train").mkdir()
    shard(tmp_path / "train/b.tar", pairs(1))
    shard(tmp_path / "a.tgz", pairs(1))
    found = [(i.source, i.split) for i in webdataset.items(tmp_path)]
    assert found == [("a.tgz:000", None), ("train/b.tar:000", "train")]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("where, kept, said", [
    ("in a picture", 2, "breaks off in record 002"),
    ("in a caption", 2, "breaks off in record 002"),
    ("in a header", 3, "does not end where it should"),
    ("before the end mark", 4, "does not end where it should"),
])  # fmt: skip
def test_a_cut_shard_keeps_the_records_before_the_cut(tmp_path, where, kept, said, packed):
    whole = tmp_path / "whole.tar"
    starts = shard(whole, pairs(4))
    cut = {
        "in a picture": starts[4] + 100,
        "in a caption": starts[5] + 3,
        "in a header": starts[6] - 300,
        "before the end mark": starts[7] + 512,
    }[where]
    path = tmp_path / ("a.tar.gz" if packed else "a.tar")
    data = whole.read_bytes()[:cut]
    path.write_bytes(gzip.compress(data) if packed else data)
    records, reasons = outcome(webdataset.items(path))
    assert list(records) == [f"{path.name}:{i:03d}" for i in range(kept)]
    assert [r.images for r in records.values()] == [[picture(i)] for i in range(kept)]
    assert list(reasons) == [path.name] and said in reasons[path.name]


def test_a_cut_packed_shard_keeps_the_records_before_the_cut(tmp_path):
    path = tmp_path / "a.tar.gz"
    shard(path, pairs(60))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    records, reasons = outcome(webdataset.items(path))
    assert 20 < len(records) < 40
    assert [r.images for r in records.values()] == [[picture(i)] for i in range(len(records))]
    assert list(reasons) == ["a.tar.gz"]
    assert f"breaks off in record {len(records):03d}" in reasons["a.tar.gz"]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_damaged_header_does_not_pass_for_the_end(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    starts = shard(path, pairs(4))
    raw = bytearray(path.read_bytes() if ending == "tar" else gzip.decompress(path.read_bytes()))
    raw[starts[4] - 512 : starts[4] - 400] = b"?" * 112
    path.write_bytes(raw if ending == "tar" else gzip.compress(bytes(raw)))
    records, reasons = outcome(webdataset.items(path))
    assert len(records) == 2
    assert "does not end where it should" in reasons[path.name]


def test_no_tar_at_all_is_a_damaged_shard(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    (tmp_path / "b.tar.gz").write_bytes(b"hello" * 1000)
    shard(tmp_path / "c.tar", pairs(1))
    records, reasons = outcome(webdataset.items(tmp_path))
    assert list(records) == ["c.tar:000"] and list(reasons) == ["a.tar", "b.tar.gz"]


WHOLE = {}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["a.tar", "a.tar.gz"]), st.floats(0, 1))
def test_wherever_it_is_cut_whole_records_come_first(tmp_path_factory, name, share):
    path = tmp_path_factory.getbasetemp() / name
    if name not in WHOLE:
        shard(path, pairs(3))
        WHOLE[name] = path.read_bytes()
    path.write_bytes(WHOLE[name][: 1 + int(share * (len(WHOLE[name]) - 2))])
    records, reasons = outcome(webdataset.items(path))
    for i, record in enumerate(records.values()):
        assert record.document == (Text(f"caption {i}"), Image(picture(i)))
    # Without some of the empty blocks at its end, a tar is whole.
    assert reasons or len(records) == 3


def test_pictures_of_skipped_items_are_not_read(tmp_path):
    starts = shard(tmp_path / "a.tar", pairs(3))
    items = webdataset.items(tmp_path / "a.tar")
    first = next(items)
    with (tmp_path / "a.tar").open("r+b") as raw:
        raw.seek(starts[0])
        raw.write(bytes(200))
    with pytest.raises(ValueError, match="not a picture"):
        first.read()
    assert next(items).read().images == [picture(1)]


def test_a_path_without_shards_is_the_users_mistake(tmp_path):
    for path, message in ((tmp_path / "no", "does not exist"), (tmp_path, "no file in")):
        with pytest.raises(UserError, match=message):
            webdataset.items(path)
