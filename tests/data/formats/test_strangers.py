"""Files from strangers: what they name is read below the source alone, and so much of it."""

import gzip
import io
import itertools
import json
import os
import socket
import tarfile
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import outcome, picture

from mmjax.data import build, source
from mmjax.data.formats import (
    array,
    caption,
    dicom,
    folder,
    jsonl,
    llava,
    pages,
    parquet,
    text,
    webdataset,
)
from mmjax.error import UserError


@pytest.fixture
def place(tmp_path):
    """A source beside a directory of somebody else's, and names that lead out of the source."""
    home, other = tmp_path / "home", tmp_path / "other"
    (home / "in").mkdir(parents=True)
    other.mkdir()
    (home / "in/a.png").write_bytes(picture(1))
    (other / "b.png").write_bytes(picture(2))
    (other / "secret.txt").write_text("secret")
    (home / "link.png").symlink_to(other / "b.png")
    (home / "inner.png").symlink_to(home / "in/a.png")
    (home / "folder").symlink_to(other)
    os.mkfifo(home / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        cwd = os.getcwd()
        os.chdir(home)  # a socket's path is short
        try:
            listener.bind("s.png")
        finally:
            os.chdir(cwd)
        yield home


OUTSIDE = "lies outside the source's directory"
NAMES = {
    "in/a.png": "", "./in/../in/a.png": "", "inner.png": "", "{home}/in/a.png": "",
    "../other/b.png": OUTSIDE, "{home}/../other/b.png": OUTSIDE, "link.png": OUTSIDE,
    "folder/b.png": OUTSIDE, "/dev/zero": OUTSIDE, "/etc/passwd": OUTSIDE, "pipe.png": "is a pipe,",
    "s.png": "is a pipe, socket or device", "in": "is a directory", "gone.png": "no such file",
    "a\0.png": "no such file, its name holds a null", "in/a.png/b": "no such file",
}  # fmt: skip


def named_by(form, home, name):
    """The items of a file of a format that names one image."""
    said = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    if form == "llava":
        (home / "a.json").write_text(json.dumps([{"image": name, "conversations": said}]))
        return home / "a.json", llava.items
    line = {"image": name, "caption": "x"} if form == "pair" else {"parts": [{"image": name}]}
    (home / "a.jsonl").write_text(json.dumps(line))
    return home / "a.jsonl", jsonl.items


@pytest.mark.parametrize("form", ["pair", "parts", "llava"])
def test_images_are_regular_files_below_the_source(place, form):
    for name, reason in NAMES.items():
        path, items = named_by(form, place, name.format(home=place))
        records, reasons = outcome(items(path))
        if reason:
            assert reason in "".join(reasons.values()) and not records, name
        else:
            assert [r.images for r in records.values()] == [[picture(1)]] and not reasons, name


@pytest.mark.parametrize("form", ["pair", "parts", "llava"])
def test_or_below_the_directory_that_a_flag_names(place, form):
    other = place.parent / "other"
    for name in ("b.png", "../other/b.png", f"{other}/b.png", "link.png", "folder/b.png"):
        path, items = named_by(form, place, name)
        assert [r.images for r in outcome(items(path, images=str(other)))[0].values()] == [
            [picture(2)]
        ]
    (place.parent / "third.png").write_bytes(picture())
    for name in ("/etc/passwd", "../third.png"):
        path, items = named_by(form, place, name)
        assert OUTSIDE in str(outcome(items(path, images=str(other)))[1])
    for images in (other / "gone", other / "b.png"):
        with pytest.raises(UserError, match=r"does not exist|is a file"):
            items(path, images=str(images))


@pytest.mark.parametrize("form", ["pair", "llava"])
def test_links_are_followed_when_that_is_asked_for(place, form):
    for name, read in (("link.png", True), ("folder/b.png", True), ("../other/b.png", False)):
        path, items = named_by(form, place, name)
        assert bool(outcome(items(path, follow_links=True))[0]) == read


def test_no_link_makes_any_file_a_caption_or_report(place, tmp_path):
    secret = place.parent / "other/secret.txt"
    (place / "in/a.txt").symlink_to(secret)
    records, reasons = outcome(folder.items(place))
    assert not records and "in/a.png" in reasons
    from test_dicom import RAMP, scan

    scan(tmp_path / "scans/a.dcm", RAMP)
    (tmp_path / "scans/a.txt").symlink_to(secret)
    records, reasons = outcome(dicom.items(tmp_path / "scans"))
    assert not records and "a.txt leads outside" in reasons["a.dcm"]


@pytest.mark.parametrize("read", [jsonl.items, llava.items, text.items, webdataset.items])
def test_a_pipe_that_is_named_as_the_source_does_not_hang(tmp_path, read):
    for name in ("a.jsonl", "a.json", "a.txt", "a.tar"):
        os.mkfifo(tmp_path / name)
        try:
            records, _ = outcome(read(tmp_path / name))
        except UserError:
            continue
        assert not records


@pytest.fixture
def small(monkeypatch):
    """Limits of a test's size."""
    for module, name in itertools.product((source, caption, webdataset), ("LINE", "BYTES", "CELL")):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, 10_000)
    monkeypatch.setattr(array, "CHUNK", 1_000)
    monkeypatch.setattr(webdataset, "HEADERS", 5_000)


def held(function):
    """What a function returns, and the most memory Python held meanwhile."""
    tracemalloc.start()
    try:
        return function(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


MOST = 3_000_000  # where files here unpack to 20,000,000
LONG = b" " * 20_000_000


def line(words):
    return json.dumps({"text": words}).encode() + b"\n"


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_a_line_has_a_limit_and_the_next_is_read(tmp_path, small, ending):
    data = line("a") + b'{"text": "' + LONG + b'"}\n' + line("b")
    packed = gzip.compress(data, 1) if ending.endswith("gz") else data
    (tmp_path / f"a.{ending}").write_bytes(packed)
    del data, packed
    (records, reasons), most = held(lambda: outcome(jsonl.items(tmp_path)))
    assert [r.caption for r in records.values()] == ["a", "b"]
    assert reasons == {f"a.{ending}:2": "line of more than 10,000 bytes"} and most < MOST


def chat(words):
    said = [{"from": "human", "value": words}, {"from": "gpt", "value": 'x "\\ ]}'}]
    return json.dumps({"conversations": said})


def test_a_conversation_has_a_limit_and_the_next_is_read(tmp_path, small):
    bad = ['{"a": ' + "1" * 5000 + "}", "[" * 5000 + "]" * 5000, " ", '"' + "x\\\\" * 9000 + '"']
    long = chat("y" + LONG.decode())
    entries = [chat("a"), long, chat("b"), *bad[:2], bad[3], "1" * 3, chat("c" * 2500), chat("d")]
    (tmp_path / "a.json").write_text(" [\n" + " ,\r\n".join(entries) + "\n] ")
    del long, entries[1]
    (records, reasons), most = held(lambda: outcome(llava.items(tmp_path / "a.json")))
    assert [r.caption[0] for r in records.values()] == ["a", "b", "c", "d"] and most < MOST
    assert list(records) == [f"a.json:{n}" for n in (1, 3, 8, 9)]
    assert reasons["a.json:2"] == "it has more than 10,000 characters"
    assert "digits" in reasons["a.json:4"] and "nested too deeply" in reasons["a.json:5"]
    assert reasons["a.json:7"] == "not a JSON object"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 10_000])
def test_the_elements_of_an_array_are_those_of_json(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(array, "CHUNK", chunk)
    monkeypatch.setattr(array, "MARGIN", 10_000)  # chunks are small
    values = [
        1,
        -2.5e3,
        123456,
        'a"b\\',
        "",
        {},
        [],
        [[1, {"x": "]"}]],
        None,
        True,
        "ü\u2028\u0085",
    ]
    for indent in (None, 1):
        (tmp_path / "a").write_text(json.dumps(values, indent=indent, ensure_ascii=False))
        assert list(array.elements(tmp_path / "a")) == values
    for broken in (
        "[1 2]",
        "[1, 2",
        "[1,, 2]",
        '["a',
        "[tru]",
        '[{"a" 1}]',
        "1",
        "",
        "[1}",
        "[1,]",
    ):
        (tmp_path / "a").write_text(broken)
        with pytest.raises(ValueError):
            list(array.elements(tmp_path / "a"))


def test_what_follows_damage_in_a_list_is_told(tmp_path):
    (tmp_path / "a.json").write_text(f"[{chat('a')}, {chat('b')}, {chat('c')} {chat('d')}]")
    records, reasons = outcome(llava.items(tmp_path / "a.json"))
    assert list(records) == ["a.json:1", "a.json:2", "a.json:3"]
    assert "cannot be read from here on: not JSON" in reasons["a.json:4"]


def test_a_text_of_one_line_is_cut_into_documents_whatever_its_length(tmp_path):
    words = " ".join(f"{n:07d}" for n in range(500_000))
    (tmp_path / "a.txt").write_text(words + "\n\nend")
    found, most = held(lambda: sum(len(i.read().caption.split()) for i in text.items(tmp_path)))
    assert found == 500_001 and most < 3_000_000 < len(words)
    (tmp_path / "a.txt").write_bytes("ü ".encode() * 100_000)  # cut within letters
    assert "".join(i.read().caption for i in text.items(tmp_path)).count("ü") == 100_000


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_has_limits_and_the_next_row_is_read(tmp_path, small, kind):
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(picture())
    if kind == "csv":
        rows = ["file,caption", "a.png,A", "b.png," + LONG.decode(), 'c.png,"C"x', "d.png,D"]
    else:
        rows = [json.dumps({"file": f"{n}.png", "caption": t}) for n, t in
                (("a", "A"), ("b", LONG.decode()), ("d", "D"))]  # fmt: skip
        rows[2:2] = ['{"file": "c.png"}']
    (tmp_path / f"t.{kind}").write_text("\n".join(rows))
    del rows
    entries, most = held(lambda: list(caption.rows(tmp_path / f"t.{kind}", "caption")))
    assert [(e.file, e.caption) for e in entries if not e.reason] == [
        ("a.png", "A"), ("d.png", "D")
    ]  # fmt: skip
    assert len(entries) == 4 and most < MOST and all(e.reason for e in entries[1:3])


MARKS = "one\x0btwo\x0cthree\x1cfour\x1dfive\x1esix\x85seven\u2028eight\u2029nine"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_text_is_cut_at_newlines_alone(tmp_path, ends):
    rows = ["file,caption", f'a.png,"{MARKS}"', f"b.png,{MARKS}", f'c.png,"x{ends}{ends}y"']
    (tmp_path / "t.csv").write_bytes(("\ufeff" + ends.join(rows)).encode())
    entries = list(caption.rows(tmp_path / "t.csv", "caption"))
    assert [(e.file, e.caption, e.reason) for e in entries] == [
        ("a.png", MARKS, ""), ("b.png", MARKS, ""), ("c.png", f"x{ends}{ends}y", "")
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"file": "a.png", "caption": MARKS}, ensure_ascii=False) + "\n"
    )
    (entry,) = caption.rows(tmp_path / "t.jsonl", "caption")
    assert entry.caption == MARKS
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "a.txt").write_text(f"a {MARKS} z")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": MARKS}, ensure_ascii=False))
    assert outcome(folder.items(tmp_path))[0]["a.png"].caption == f"a {MARKS} z"
    assert outcome(jsonl.items(tmp_path / "b.jsonl"))[0]["b.jsonl:1"].caption == MARKS
    assert next(text.items(tmp_path / "a.txt")).read().caption == f"a {MARKS} z"


def test_of_a_table_only_the_row_that_is_not_utf8_is_left_out(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'file,caption\na.png,K\xe4se\nb.png,"x\ny"\n')
    bad, good = caption.rows(tmp_path / "t.csv", "caption")
    assert bad.reason == "not UTF-8" and (good.line, good.caption) == (4, "x\ny")


def packed(path, *members):
    """A .tar.gz of (name, bytes, type or None) members."""
    with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_member_has_a_limit_and_the_next_record_is_read(tmp_path, small):
    packed(tmp_path / "a.tar.gz", ("a.png", picture()), ("a.txt", b"a"), ("b.png", LONG),
           ("b.txt", b"b"), ("c.png", picture()), ("c.txt", LONG), ("d.png", picture()),
           ("d.txt", b"d"), ("e.txt", b"e"), *((f"e.{n}.png", LONG[:4000]) for n in range(5)),
           ("f.png", picture()), ("f.txt", b"f"))  # fmt: skip
    (records, reasons), most = held(lambda: outcome(webdataset.items(tmp_path)))
    assert [r.caption for r in records.values()] == ["a", "d", "f"] and most < MOST
    assert set(reasons) == {f"a.tar.gz:{k}" for k in "bce"}
    assert "more than 10,000 bytes" in reasons["a.tar.gz:b"]
    with gzip.open(tmp_path / "a.tar.gz") as raw:
        (tmp_path / "a.tar.gz").with_name("b.tar").write_bytes(raw.read())
    (records, reasons), most = held(lambda: outcome(webdataset.items(tmp_path / "b.tar")))
    assert [r.caption for r in records.values()][:2] == ["a", "d"] and most < MOST


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_headers_of_a_tar_have_a_limit(tmp_path, small, kind):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(LONG)
    with tarfile.open(tmp_path / "good.tar", "w") as tar:
        for name, data in (("a.png", picture()), ("a.txt", b"a")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        end = tar.offset
    data = (tmp_path / "good.tar").read_bytes()[:end] + info.tobuf() + LONG
    (tmp_path / "good.tar").unlink()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data, 1))
    del data
    (records, reasons), most = held(lambda: outcome(webdataset.items(tmp_path)))
    assert [r.caption for r in records.values()] == ["a"] and most < MOST
    assert "a header has more than 5,000 bytes" in reasons["a.tar.gz"]


def test_members_of_one_name_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MEMBERS", 3)
    packed(
        tmp_path / "a.tar.gz", *[("a.png", picture())] * 5, ("b.png", picture()), ("b.txt", b"b")
    )
    items = list(webdataset.items(tmp_path))
    assert sum("a.tar.gz:a.png" == item.source for item in items) == 2
    assert items[-1].read().caption == "b"


def test_a_cell_of_parquet_has_a_limit_and_the_next_is_read(tmp_path, small):
    images = [picture(0), LONG, picture(1)]
    pq.write_table(pa.table({"image": images, "text": ["a", "b", "c"]}), tmp_path / "a.parquet")
    records, reasons = outcome(parquet.items(tmp_path))
    assert [r.caption for r in records.values()] == ["a", "c"]
    assert reasons == {"a.parquet:1": "image has more than 10,000 bytes"}


@pytest.mark.parametrize("how", [
    {}, {"use_dictionary": False}, {"compression": "zstd"}, {"data_page_version": "2.0"},
    {"write_page_checksum": True}, {"compression": "gzip", "use_byte_stream_split": False},
])  # fmt: skip
def test_the_largest_page_of_a_row_group_is_told(tmp_path, how):
    images = [{"bytes": picture(i, size=20 + 10 * i), "path": "x"} for i in range(20)]
    texts = [f"text {i}" for i in range(20)]
    where = tmp_path / "a.parquet"
    columns = pa.table({"image": images, "text": texts, "n": range(20)})
    pq.write_table(columns, where, row_group_size=10, data_page_size=1, write_batch_size=1, **how)
    known = pq.read_metadata(where)
    each = [len(image["bytes"]) for image in images]
    for group in (0, 1):
        mine = each[10 * group : 10 * group + 10]
        size = pages.largest(where, known, group, {"image"})
        whole = how.get("use_dictionary", True)  # then all of a group's values stand on one page
        assert (sum(mine) if whole else max(mine)) <= size < sum(mine) + 200
        assert size > 10 * pages.largest(where, known, group, {"text"}) > 0
    raw = bytearray(where.read_bytes())
    raw[4:40] = b"\xff" * 36
    where.write_bytes(raw)
    with pytest.raises(ValueError):
        pages.largest(where, known, 0, {"image"})


def test_a_page_of_parquet_has_a_limit_and_the_next_group_is_read(tmp_path, monkeypatch):
    images = [picture(0), picture(1), bytes(2_000_000), picture(2), picture(3), picture(4)]
    table = pa.table({"image": images, "text": list("abcdef")})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", row_group_size=2)
    monkeypatch.setattr(parquet, "PAGE", 1_000_000)
    records, reasons = outcome(parquet.items(tmp_path))
    assert [r.caption for r in records.values()] == ["a", "b", "e", "f"]
    assert list(reasons) == ["a.parquet:2"]
    assert "row group of 2 rows with a page of 2,000" in reasons["a.parquet:2"]


def test_a_file_has_a_limit(tmp_path, small):
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.png").write_bytes(picture(seed))
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "b.png").write_bytes(picture() + bytes(20_000))
    records, reasons = outcome(folder.items(tmp_path))
    assert list(records) == ["a.png"] and reasons == {"b.png": "b.png has more than 10,000 bytes"}


def test_a_directory_of_images_is_part_of_what_a_set_was_built_from(tmp_path):
    for name in ("home", "other"):
        (tmp_path / name).mkdir()
    for i in range(12):
        (tmp_path / f"other/{i}.png").write_bytes(picture(i))
    lines = [json.dumps({"image": f"{i}.png", "caption": f"image {i}"}) for i in range(12)]
    (tmp_path / "home/a.jsonl").write_text("\n".join(lines))

    def built(images):
        src, options = str(tmp_path / "home"), {"images": str(images)}
        return build.build(src, tmp_path / "set", "jsonl", 300, options=options)

    found = built(tmp_path / "other")
    assert found["documents"] == 12 and found["rejected"] == 0
    assert built(tmp_path / "other") == found
    (tmp_path / "other/0.png").write_bytes(picture(99))
    with pytest.raises(UserError, match="source"):
        built(tmp_path / "other")
    with pytest.raises(UserError, match="gone does not exist"):
        build.build(str(tmp_path / "home"), tmp_path / "b", "jsonl", 300,
                    options={"images": str(tmp_path / "gone")})  # fmt: skip
