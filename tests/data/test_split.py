"""Splits of few records: as large as asked for, kept together, and never all of them held out."""

import collections
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.batch import Text
from mmjax.data import split, store, write
from mmjax.data.formats.files import damaged, ignored
from mmjax.data.record import Item, Record
from mmjax.data.scenes.items import items as scenes
from mmjax.error import UserError


def items(names):
    """A text a name; equal names are equal texts."""
    records = [Record(f"{n}", (Text(name),)) for n, name in enumerate(names)]
    return [Item(r.id, lambda r=r: r) for r in records]


def counts(path) -> dict[str, int]:
    return {name: entry["documents"] for name, entry in store.info(path)["splits"].items()}


VALUES = st.one_of(st.none(), st.sampled_from([0.0, 0.01, 0.05, 0.3, 0.5, 0.9, 0.99]))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 30), VALUES, VALUES, st.integers(1, 30))
def test_no_flags_leave_few_records_without_training(count, validation, test, kinds):
    shares = {"validation": validation, "test": test}
    if sum(share or 0 for share in shares.values()) >= 1:
        with pytest.raises(UserError, match="leave nothing for training"):
            split.check_shares(shares)
        return
    split.check_shares(shares)
    made = items(f"text {n % kinds}" for n in range(count))
    chosen = split.choose(lambda: iter(made), shares)
    found = collections.Counter(chosen[split.key_of(item.read())] for item in made)
    wanted = split.wanted(count, shares)
    assert found["train"] >= 1 and found.total() == count
    for name, share in shares.items():
        assert share != 0 or found[name] == 0
        if kinds >= count:  # nothing belongs together
            assert found[name] == wanted[name]
        if share and count > 3 and wanted[name]:
            assert abs(wanted[name] - share * count) < 1.01 or sum(wanted.values()) == count - 1


@pytest.mark.parametrize("count", [1, 2, 7, 30])
@pytest.mark.parametrize("shares", [{"validation": 0.5, "test": 0.49}, {"test": 0.99}, {}])
def test_a_written_set_has_them(tmp_path, count, shares):
    made = items(map(str, range(count)))
    chosen = split.choose(lambda: iter(made), shares)
    write.write(made, tmp_path / "set", {}, shares, chosen=chosen)
    assert counts(tmp_path / "set")["train"] >= 1
    assert sum(counts(tmp_path / "set").values()) == count


def test_few_hold_out_enough_to_measure_unless_told_otherwise():
    default = {"validation": None, "test": None}
    assert split.wanted(60, default) == {"validation": 3, "test": 10}
    assert split.wanted(20, default) == {"validation": 1, "test": 4}
    assert split.wanted(4, default) == {"validation": 0, "test": 0}
    assert split.wanted(1000, default) == {"validation": 50, "test": 50}
    assert split.wanted(60, {"validation": 0.0, "test": 0.05}) == {"validation": 0, "test": 3}
    assert split.wanted(10, {"test": 0.01}) == {"test": 1}


def test_records_of_one_key_stay_together_and_the_source_goes_first():
    made = items(["same"] * 8 + ["a", "b"])
    made += [item._replace(split="test") for item in items(["same", "c"])]
    made += [damaged("x", "cut"), ignored("y", ".xmp")]
    chosen = split.choose(lambda: iter(made), {"test": 0.5})
    assert collections.Counter(chosen.values()) == {"train": 1, "test": 2}
    assert chosen[split.key_of(made[0].read())] == "train"
    assert set(split.assign({"a": 5, "b": 5}, {"test": 1}).values()) == {"train", "test"}
    assert split.assign({"a": 5, "b": 3}, {"test": 1}) == {"a": "train", "b": "test"}
    assert split.assign({"a": 5}, {"test": 1}) == {"a": "train"}


def test_many_are_drawn_and_not_read_for_it(monkeypatch):
    monkeypatch.setattr(split, "FEW", 5)
    made = [Item(str(n), lambda: pytest.fail("read")) for n in range(6)]
    assert split.choose(lambda: iter(made), {"test": 0.5}) == {}


def test_many_of_one_key_are_trained_on(tmp_path):
    """Drawn by a hash, all of them come to one split, whichever that is."""
    for name in "abcdefgh":
        write.write(items([name] * 20), tmp_path / name, {}, {"test": 0.5, "validation": 0.4})
        assert counts(tmp_path / name) == {"train": 20}
    # The source's own word is not changed.
    told = [item._replace(split="test") for item in items("abc")]
    write.write(told, tmp_path / "told", {}, {"test": 0.5})
    assert counts(tmp_path / "told") == {"test": 3}


def test_few_scenes_are_refused_where_none_trains():
    told = []
    for seed in range(30):
        try:
            found = list(scenes(count=1, seed=seed, size=16))
            assert found[0].split == "train"
        except UserError as error:
            told.append(str(error))
    assert 0 < len(told) < 15 and "--count=1 leaves no scene for training" in told[0]


@pytest.mark.parametrize("value", [math.nan, -0.1, 1.0, math.inf])
def test_what_is_no_share_is_refused(value):
    with pytest.raises(UserError, match=r"--test=.* must be a share from 0"):
        split.check_shares({"validation": None, "test": value})
