"""Everything below a source is accounted for: read, rejected with a reason, or counted."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from pictures import outcome, picture
from test_formats import make

from mmjax.data import build
from mmjax.data.formats import FORMATS, files, folder, reader
from mmjax.data.formats.picture import ENDINGS
from mmjax.error import UserError

WALKING = [form for form in FORMATS if form != "llava"]  # which reads one file


def rejects(path) -> dict[str, str]:
    rows = map(json.loads, (path / "rejects.jsonl").read_text().splitlines())
    return {row["source"]: row["reason"] for row in rows}


@pytest.fixture
def locked(monkeypatch):
    """Makes folders unreadable, also for root."""
    names, scandir = set(), os.scandir

    def refusing(path):
        if os.fspath(path) in names:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    return lambda path: names.add(os.fspath(path))


@pytest.mark.parametrize("form", WALKING)
def test_what_is_not_read_is_named_and_links_are_followed_only_if_asked(tmp_path, locked, form):
    source, away = make(form, tmp_path / "in"), make(form, tmp_path / "away")
    (source / "test").symlink_to(away)
    (source / "validation").mkdir()
    locked(source / "validation")
    (source / "gone.txt").symlink_to(tmp_path / "nothing")
    (source / "round").symlink_to(source / "round")
    (source / "again").symlink_to(source)
    os.mkfifo(source / "pipe")
    (source / "a.xmp").write_text("x")
    (source / "b.XMP").write_text("x")
    (source / ".DS_Store").write_text("x")
    (source / "LICENSE").write_text("x")
    plain = build.build(str(source), tmp_path / "plain", form, vocabulary=300)
    found = rejects(tmp_path / "plain")
    assert plain["rejected"] == len(found) == 6 and plain["documents"] == 3
    assert "test" not in plain["splits"] or plain["splits"]["test"]["documents"] < 3
    for name, reason in {
        "test": f"a link to {away}, outside the source; --follow_links reads it",
        "validation": "folder cannot be read: permission denied",
        "gone.txt": "which does not exist",
        "round": "link",
        "pipe": "neither a file nor a folder",
    }.items():
        assert reason in found[name]
    kinds = plain["ignored"]
    assert kinds[".xmp"] == {"count": 2, "names": ["a.xmp", "b.XMP"]}
    assert kinds["hidden"] == {"count": 1, "names": [".DS_Store"]}
    assert kinds["no ending"] == {"count": 1, "names": ["LICENSE"]}
    assert kinds[files.TWICE] == {"count": 1, "names": ["again"]}
    options = {"follow_links": True}
    both = build.build(str(source), tmp_path / "both", form, vocabulary=300, options=options)
    assert both["documents"] == 6 and both["splits"]["test"]["documents"] == 3
    assert "test" not in rejects(tmp_path / "both")


@pytest.mark.parametrize("form", WALKING)
def test_nothing_is_said_of_a_source_without_anything_else(tmp_path, form):
    source = make(form, tmp_path / "in")
    used = {".txt": 1} if form in ("jsonl", "parquet", "webdataset") else {}
    found = build.build(str(source), tmp_path / "set", form, vocabulary=300)
    assert found["ignored"].keys() == used.keys() and found["rejected"] == 1


def test_links_within_the_source_are_read_once(tmp_path):
    (tmp_path / ".store/test").mkdir(parents=True)
    (tmp_path / ".store/test/a.png").write_bytes(picture(1))
    (tmp_path / ".store/test/a.txt").write_text("a")
    (tmp_path / "test").symlink_to(tmp_path / ".store/test")  # hidden, so not read otherwise
    (tmp_path / "train").mkdir()
    (tmp_path / "train/b.png").symlink_to(tmp_path / ".store/test/a.png")
    (tmp_path / "train/b.txt").write_text("b")
    (tmp_path / "train/back").symlink_to(tmp_path)
    (tmp_path / "more").symlink_to(tmp_path / "train")
    items = list(folder.items(tmp_path))
    records, reasons = outcome(items)
    assert {k: r.caption for k, r in records.items()} == {"test/a.png": "a", "train/b.png": "b"}
    assert not reasons
    left = sorted(item.source for item in items if item.ignored == files.TWICE)
    assert left == ["more", "train/back"]


def test_two_folders_that_link_to_each_other_come_to_an_end(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(picture(1))
        (tmp_path / name / "x.txt").write_text(name)
        (tmp_path / name / other).symlink_to(tmp_path / other)
    records, reasons = outcome(folder.items(tmp_path / "a", follow_links=True))
    assert list(records) == ["b/x.png", "x.png"] and not reasons


def test_every_ending_of_an_image_is_read_or_rejected(tmp_path):
    names = [*ENDINGS, ".heic", ".JFIF", ".jxl"]
    for n, ending in enumerate(names):
        (tmp_path / f"{n}{ending}").write_bytes(picture(n, "jpeg"))
        (tmp_path / f"{n}.txt").write_text("x")
    (tmp_path / "0.txt").unlink()
    (tmp_path / "13.heic").write_bytes(b"\0\0\0\x18ftypheic")
    items = list(folder.items(tmp_path))
    assert not any(item.ignored for item in items)
    records, reasons = outcome(items)
    assert len(records) + len(reasons) == len(names)
    assert reasons.keys() == {"0.png", "13.heic"}


def test_an_error_names_what_there_is_instead(tmp_path, locked):
    for name in ("a.mp4", "b.mp4", "c.csv"):
        (tmp_path / name).write_text("x")
    (tmp_path / "shut").mkdir()
    locked(tmp_path / "shut")
    for form in FORMATS:
        if form in ("text", "llava"):
            continue
        wanted = r"; there is \.csv \(1\), \.mp4 \(2\), shut \(folder cannot be read: permission"
        with pytest.raises(UserError, match=wanted):
            reader(form)(tmp_path)


def test_counts_go_on_where_a_build_was_stopped(tmp_path, monkeypatch):
    from mmjax.data import store, write

    monkeypatch.setattr(write, "ITEMS", 4)
    items = [files.ignored(f"{n}.xmp", ".xmp") for n in range(9)]
    good = [item for item in folder_of(tmp_path / "in") if not item.ignored]

    def stopped():
        yield from [*good[:1], *items[:6]]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write.write(stopped(), tmp_path / "set", {}, {})
    write.write([*good[:1], *items], tmp_path / "set", {}, {})
    found = store.info(tmp_path / "set")
    assert found["ignored"] == {".xmp": {"count": 9, "names": ["0.xmp", "1.xmp", "2.xmp"]}}
    said = store.left_out(tmp_path / "set", found)
    assert said.splitlines()[1:] == [
        "ignored, as no document is made of it: .xmp: 9 (0.xmp, 1.xmp, 2.xmp, ...)"
    ]


def folder_of(path):
    path.mkdir()
    (path / "a.png").write_bytes(picture())
    (path / "a.txt").write_text("a")
    return folder.items(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_folder_without_permission_is_named_without_faking_it():
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        (path / "shut").mkdir(mode=0o700)
        (path / "a.txt").write_text("x")
        os.seteuid(65534)
        try:
            tree = files.walk(path)
        finally:
            os.seteuid(0)
        assert tree.bad == [(path / "shut", "folder cannot be read: permission denied")]
        assert tree.files == [path / "a.txt"]
