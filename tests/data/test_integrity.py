"""Data sets whose files are not those that were written: what is on disk is looked at, not told."""

import json
import shutil

import pytest

from mmjax.batch import Image, Text
from mmjax.data import build, integrity, pipeline, store, write
from mmjax.data import tokenizer as bpe
from mmjax.data.record import Item, Record
from mmjax.error import UserError

COUNT = 60


def made(path, word="text", count=COUNT, seed=0, cut=1000):
    """A data set of two shards a split (`cut` items each), and its tokenizer."""
    whole, write.ITEMS = write.ITEMS, cut
    try:
        items = []
        for n in range(count):
            noise = bytes((seed + n * 7 + i * i * 31) % 256 for i in range(3000))
            record = Record(f"{n}", (Text(f"{word} {n}"), Image(noise)))
            items.append(Item(f"{n}", lambda r=record: r, "test" if n % 3 == 0 else "train"))
        write.write(items, path, {"name": "a"}, {})
    finally:
        write.ITEMS = whole
    build._tokenizer(path, 280, "")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return made(tmp_path_factory.mktemp("home") / "set", cut=30)


@pytest.fixture
def copy(home, tmp_path):
    shutil.copytree(home, tmp_path / "set")
    return tmp_path / "set"


def shards(path, split):
    return [path / name for name in store.info(path)["splits"][split]["files"]]


def edit(path, change):
    found = store.info(path)
    change(found)
    (path / store.INFO).write_text(json.dumps(found))


def test_what_was_written_passes_both_checks(home, copy):
    assert integrity.verify(copy) == COUNT
    assert integrity.summary(copy) == integrity.summary(home)
    edit(copy, lambda found: found.pop("files"))  # of an older version
    assert integrity.verify(copy) == COUNT and integrity.summary(copy) == integrity.summary(home)


def test_other_records_under_the_same_digest_are_seen_at_once(home, copy, tmp_path):
    """As many records of the same sizes, and dataset.json says that they are the old ones."""
    other = made(tmp_path / "other", seed=1, cut=30)
    for name in store.info(copy)["files"]:
        assert (other / name).stat().st_size == (copy / name).stat().st_size
        shutil.copyfile(other / name, copy / name)
    assert pipeline.digest(copy) == pipeline.digest(home)
    with pytest.raises(UserError, match=r"array_record is not the file that was written"):
        integrity.summary(copy)
    # Even where the outlines in dataset.json were made to fit:
    edit(copy, lambda found: found.update(files=store.info(other)["files"]))
    assert integrity.summary(copy) != integrity.summary(home)
    with pytest.raises(UserError, match=r"holds other records than its dataset.json tells of"):
        integrity.verify(copy)
    paths, old = {"x": copy}, {"x": integrity.summary(home)}
    with pytest.raises(UserError, match=r"holds other records"):
        integrity.check_same(paths, old, {"x": integrity.summary(copy)})


def test_a_flipped_bit_is_seen_by_reading(copy):
    file = shards(copy, "train")[0]
    raw = bytearray(file.read_bytes())
    raw[next(at for at in range(1200, len(raw)) if raw[at])] ^= 4  # not in the zeros between
    file.write_bytes(raw)
    with pytest.raises(UserError, match=r"is not the file|is damaged"):
        integrity.verify(copy)
    edit(copy, lambda found: found.pop("files"))
    with pytest.raises(UserError, match=r"is damaged|holds other records"):
        integrity.verify(copy)


@pytest.mark.parametrize("change", ["swapped", "cut", "gone", "longer", "to the other split"])
def test_shards_that_are_not_their_own(copy, change):
    first, second = shards(copy, "train")
    if change == "swapped":
        data = first.read_bytes(), second.read_bytes()
        first.write_bytes(data[1])
        second.write_bytes(data[0])
    elif change == "cut":
        first.write_bytes(first.read_bytes()[:-100])
    elif change == "longer":
        first.write_bytes(first.read_bytes() + bytes(100))
    elif change == "gone":
        first.unlink()
    else:
        shutil.copyfile(shards(copy, "test")[0], first)
    with pytest.raises(
        UserError, match=rf"{first.name} is (missing|not the file that was written)"
    ):
        integrity.summary(copy)


def test_an_edited_table_of_splits_changes_the_summary(home, copy):
    def swap(found):
        splits = found["splits"]
        splits["train"]["files"] = splits["train"]["files"][::-1]

    edit(copy, swap)
    assert pipeline.digest(copy) == pipeline.digest(home)
    assert integrity.summary(copy) != integrity.summary(home)
    with pytest.raises(UserError, match=r"holds other records"):
        integrity.verify(copy)


def test_a_table_that_tells_of_fewer_records_is_refused(copy):
    edit(copy, lambda found: found["splits"]["train"].update(documents=39))
    with pytest.raises(UserError, match=r"holds 40 records, but dataset.json tells of 39"):
        store.read(copy, "train")[0]


def test_the_same_records_in_other_files_are_the_same(home, tmp_path):
    """A build that was stopped elsewhere cuts elsewhere; resuming on it is no change of data."""
    other = made(tmp_path / "other", cut=17)
    old, new = integrity.summary(home), integrity.summary(other)
    assert old != new and pipeline.digest(home) == pipeline.digest(other)
    integrity.check_same({"x": other}, {"x": old}, {"x": new})
    integrity.check_same({"x": other}, {}, {"x": new})  # a checkpoint of an older version


def test_an_edited_tokenizer_is_named(copy):
    words = bpe.load(copy / store.TOKENIZER)
    other = build.train_tokenizer([copy], 275)
    assert words.to_str() != other.to_str()
    build.save(other, copy / store.TOKENIZER)
    with pytest.raises(UserError, match=r"tokenizer.json is not the tokenizer that the set was"):
        integrity.verify(copy)
    (copy / store.BUILT).write_text("[")
    with pytest.raises(UserError, match=r"built.json is damaged"):
        integrity.verify(copy)


def test_a_set_of_tfds_is_told_by_its_files(openmoji, tmp_path):
    shutil.copytree(openmoji, tmp_path / "set")
    before = integrity.summary(openmoji)
    assert integrity.summary(tmp_path / "set") == before
    file = max((tmp_path / "set").glob("*array_record*"), key=lambda f: f.stat().st_size)
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 10_000] = bytes(10_000)
    file.write_bytes(raw)
    after = integrity.summary(tmp_path / "set")
    assert after != before
    with pytest.raises(UserError, match=r"are not those of before"):
        integrity.check_same({"x": tmp_path / "set"}, {"x": before}, {"x": after})
