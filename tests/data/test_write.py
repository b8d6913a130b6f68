"""Data sets written as a stream: kills, damage, splits, full disks."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys

import pytest

from mmjax.batch import Image, Text
from mmjax.data import split, store, write
from mmjax.data.record import Item, Record
from mmjax.error import UserError

SHARES = {"validation": 0.1, "test": 0.2}


def item(n: int, size: int = 10) -> Item:
    """Record number n: a tenth are damaged, and a fifth name their split."""

    def read():
        if n % 10 == 3:
            raise ValueError(f"number {n} is damaged")
        picture = random.Random(n).randbytes(32 * size)
        return Record(f"r{n}", (Text(f"text {n}"), Image(picture)), {"n": n})

    return Item(f"source {n}", read, "extra" if n % 5 == 0 else None)


def items(count: int, size: int = 10):
    return (item(n, size) for n in range(count))


def read_all(path) -> dict[str, list[Record]]:
    return {split: list(store.read(path, split)) for split in store.info(path)["splits"]}


def rejects(path) -> list[dict]:
    return [json.loads(line) for line in (path / "rejects.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "set"
    write.write(items(3000), path, {"name": "a"}, SHARES)
    return path


def test_every_item_is_a_record_or_a_reject(whole):
    found = read_all(whole)
    info = store.info(whole)
    assert sorted(r.facts["n"] for part in found.values() for r in part) == [
        n for n in range(3000) if n % 10 != 3
    ]
    assert rejects(whole) == [
        {"source": f"source {n}", "reason": f"number {n} is damaged"} for n in range(3, 3000, 10)
    ]
    assert (info["documents"], info["rejected"]) == (2700, 300)
    assert {s: len(part) for s, part in found.items()} == {
        s: entry["documents"] for s, entry in info["splits"].items()
    }
    assert sorted(os.listdir(whole)) == sorted(
        ["dataset.json", "rejects.jsonl", *(f for e in info["splits"].values() for f in e["files"])]
    )


def test_splits_follow_the_source_or_a_hash(whole):
    found = read_all(whole)
    assert next(iter(found)) == "train" and {r.facts["n"] % 5 for r in found["extra"]} == {0}
    drawn = {s: len(found[s]) / 2100 for s in ("train", "validation", "test")}
    assert abs(drawn["validation"] - 0.1) < 0.025 and abs(drawn["test"] - 0.2) < 0.035
    one = Record("x", (Image(b"same"), Text("one")))
    same, other = Record("y", (Text("two"), Image(b"same"))), Record("z", (Image(b"other"),))
    share = {"test": 0.5}
    assert split.split_of(one, share) == split.split_of(same, share)
    many = {split.split_of(Record("", (Text(str(i)),)), share) for i in range(20)}
    assert many == {"train", "test"}
    grouped = {
        split.split_of(Record("", (Text(str(i)),), {"concept": "c"}), share) for i in range(20)
    }
    assert len(grouped) == 1 and split.split_of(other, {}) == "train"


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_write
from mmjax.data import write
write.ITEMS = 250
def slow():
    for n, one in enumerate(test_write.items(3000)):
        if n % 50 == 0:
            print(n, flush=True)
            time.sleep(0.005)
        yield one
write.write(slow(), sys.argv[1], {{"name": "a"}}, test_write.SHARES)
"""


def test_killed_on_the_way_it_goes_on_and_ends_the_same(whole, tmp_path):
    code = KILLED.format(tests=os.path.dirname(__file__))
    for stop in (400, 1550, 2100):
        args = [sys.executable, "-c", code, str(tmp_path / "set")]
        with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if int(line) >= stop:
                    break
            process.send_signal(signal.SIGKILL)
        draft = json.loads((tmp_path / "set" / "progress.json").read_text())
        assert stop - 300 < draft["items"] <= stop + 50
        with pytest.raises(UserError, match="no data set"):
            store.read(tmp_path / "set", "train")
    write.write(items(3000), tmp_path / "set", {"name": "a"}, SHARES)
    assert read_all(tmp_path / "set") == read_all(whole)
    assert rejects(tmp_path / "set") == rejects(whole)
    a, b = store.info(tmp_path / "set"), store.info(whole)
    assert a["digest"] == b["digest"] and a["splits"] != b["splits"]  # cut into other files
    write.write(items(2999), tmp_path / "other", {"name": "a"}, SHARES)
    assert store.info(tmp_path / "other")["digest"] != b["digest"]


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "ITEMS", 10)
    asked = []

    def counted(stop):
        for n in range(40):

            def read(n=n):
                asked.append(n)
                if n == stop:
                    raise KeyboardInterrupt
                return Record(str(n), (Text(str(n)),))

            yield Item(str(n), read)

    with pytest.raises(KeyboardInterrupt):
        write.write(counted(25), tmp_path / "set", {"name": "a"}, {})
    assert asked == list(range(26))
    asked.clear()
    write.write(counted(None), tmp_path / "set", {"name": "a"}, {})
    assert asked == list(range(20, 40))
    assert [r.id for r in store.read(tmp_path / "set", "train")] == [str(n) for n in range(40)]


def stopped(path, monkeypatch):
    """A set of source "a" whose making was stopped on the way."""
    monkeypatch.setattr(write, "ITEMS", 10)

    def broken():
        yield from items(25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write.write(broken(), path, {"name": "a"}, {})


def test_another_source_starts_over_and_foreign_files_are_left_alone(tmp_path, monkeypatch):
    stopped(tmp_path / "set", monkeypatch)
    write.write(items(5), tmp_path / "set", {"name": "b"}, {})
    assert store.info(tmp_path / "set")["documents"] == 4 and len(rejects(tmp_path / "set")) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        write.write(items(5), tmp_path / "mine", {"name": "b"}, {})
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_damaged_notes_of_progress_are_one_line(tmp_path, monkeypatch):
    stopped(tmp_path / "set", monkeypatch)
    file = tmp_path / "set" / write.DRAFT
    for text in (file.read_text()[:-5], "{}", '{"source": {}, "much": 1}'):
        file.write_text(text)
        with pytest.raises(UserError, match=r"progress.json is damaged .*; remove .*, begin again"):
            write.write(items(5), tmp_path / "set", {"name": "a"}, {})


def test_nothing_readable(tmp_path):
    bad = [item(3), item(13)]
    with pytest.raises(UserError, match=r"no record could be read \(.*number 3 is damaged"):
        write.write(bad, tmp_path / "set", {"name": "a"}, {})
    assert os.listdir(tmp_path / "set") == ["rejects.jsonl"]
    write.write([item(1)], tmp_path / "set", {"name": "a"}, {})  # mended, and said again
    assert store.info(tmp_path / "set")["documents"] == 1


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "ITEMS", 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*make room.*same command goes on"):
            write.write(grow(300), tmp_path / "set", {"name": "a"}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert json.loads((tmp_path / "set" / "progress.json").read_text())["items"] == 100
    write.write(grow(300), tmp_path / "set", {"name": "a"}, {})
    write.write(grow(300), tmp_path / "other", {"name": "a"}, {})
    assert read_all(tmp_path / "set") == read_all(tmp_path / "other")


def test_more_splits_than_files_may_be_open(tmp_path):
    """A column of names taken for splits; before, all behind the limit was called damaged."""
    code = f"""
import resource, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_write import item
from mmjax.data import write
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), hard))
named = (item(1)._replace(split=f"s{{n}}") for n in range(300))
try:
    place = {str(tmp_path)!r} + "/" + sys.argv[1]
    print(write.write(named, place, {{"name": "a"}}, {{}})["documents"])
except write.UserError as error:
    print(error)
"""
    for limit, said in (("256", "^300$"), ("64", r"Too many open files; raise .*`ulimit -n`")):
        argv = [sys.executable, "-c", code, limit]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
        assert re.search(said, done.stdout.strip()), done.stdout + done.stderr


def grow(count):
    """Items that are small at first and large later."""
    return (item(n, 1 if n < 100 else 200) for n in range(count))


def test_damage_on_disk_is_one_line(whole, tmp_path):
    write.write(items(500, 300), tmp_path / "set", {"name": "a"}, {})
    file = max((tmp_path / "set").glob("train-*"), key=lambda p: p.stat().st_size)
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 4096] = b"\xff" * 4096
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"damaged.*make it again"):
        list(store.read(tmp_path / "set", "train"))
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        list(store.read(tmp_path / "set", "train"))
    with pytest.raises(UserError, match="no split 'dev'; have: train"):
        store.read(tmp_path / "set", "dev")
    assert list(store.read(whole, "test"))  # the whole one reads
