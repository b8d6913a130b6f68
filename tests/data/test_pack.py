"""First-fit packing, rows, and batches that do not depend on how the work is shared out."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.batch import IMAGE, TEXT
from mmjax.data import tokenizer as bpe
from mmjax.data.pack import (
    BatchIterDataset,
    Place,
    Shape,
    Windows,
    fill,
    first_fit,
    join,
    join_pictures,
)
from mmjax.data.sets import openmoji as data
from mmjax.error import UserError

LENGTH, IMAGES, SIZE = 20, 3, 2
SHAPE = Shape(LENGTH, IMAGES, SIZE)


def could_have_gone_earlier(rows, lengths, slots):
    """Whether some document lies behind a row that had room for it when its turn came."""
    for r, row in enumerate(rows):
        for i in row:
            for earlier in rows[:r]:
                before = [j for j in earlier if j < i]
                free = LENGTH - sum(lengths[j] for j in before)
                room = IMAGES - sum(slots[j] for j in before)
                if lengths[i] <= free and slots[i] <= room:
                    return True
    return False


documents = st.lists(st.tuples(st.integers(1, LENGTH), st.integers(0, IMAGES)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(documents)
def test_first_fit(sizes):
    lengths, slots = [n for n, _ in sizes], [k for _, k in sizes]
    rows = first_fit(lengths, slots, LENGTH, IMAGES)
    assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
    assert all(row == sorted(row) and row for row in rows)
    assert all(sum(lengths[i] for i in row) <= LENGTH for row in rows)
    assert all(sum(slots[i] for i in row) <= IMAGES for row in rows)
    assert not could_have_gone_earlier(rows, lengths, slots)


def test_other_plans_fail_that_test():
    lengths, slots = [12, 12, 8], [1, 1, 1]
    assert first_fit(lengths, slots, LENGTH, IMAGES) == [[0, 2], [1]]
    assert could_have_gone_earlier([[0], [1, 2]], lengths, slots)
    assert could_have_gone_earlier([[0], [1], [2]], lengths, slots)
    assert first_fit([5, 5, 5], [2, 2, 1], LENGTH, IMAGES) == [[0, 2], [1]]  # slots count too


def piece(seed, length=None):
    """A laid-out document: text and up to two pictures of three patches, or `length` of text."""
    rng = np.random.default_rng(seed)
    pictures = int(rng.integers(0, 3)) if length is None else 0
    n = 3 * pictures + int(rng.integers(1, 8)) if length is None else length
    image = np.zeros(n, np.int32)
    image[: 3 * pictures] = np.repeat(np.arange(pictures) + 1, 3)
    return {
        "tokens": rng.integers(5, 99, n).astype(np.int32),
        "modality": np.where(image > 0, IMAGE, TEXT).astype(np.int32),
        "image": image,
        "position": np.arange(n, dtype=np.int32),
        "weight": rng.random(n).astype(np.float32),
        "pictures": list(rng.integers(1, 256, (pictures, SIZE, SIZE, 3)).astype(np.uint8)),
    }


def check_row(row, pieces):
    """One row of a batch against its documents, position by position."""
    at = slot = 0
    for number, p in enumerate(pieces, start=1):
        n = len(p["tokens"])
        for name in ("tokens", "modality", "position", "weight"):
            np.testing.assert_array_equal(row[name][at : at + n], p[name])
        assert (row["segment"][at : at + n] == number).all()
        for j in range(n):
            shown = row["image"][at + j]
            assert (shown > 0) == (p["image"][j] > 0)
            if shown:
                picture = p["pictures"][p["image"][j] - 1]
                np.testing.assert_array_equal(row["pixels"][shown - 1], picture)
        at, slot = at + n, slot + len(p["pictures"])
    assert row["image"].max() == slot
    for name in ("modality", "segment", "position", "image", "weight"):
        assert (row[name][at:] == 0).all()
    assert (row["tokens"][at:] == 7).all()
    assert (row["pixels"][slot:] == 0).all() and row["pixels"][:slot].all()
    return slot


def pictures_of(rows):
    return [picture for row in rows for p in row for picture in p["pictures"]]


def test_join_lays_documents_side_by_side():
    pieces = [piece(s) for s in range(40)]
    lengths, slots = [len(p["tokens"]) for p in pieces], [len(p["pictures"]) for p in pieces]
    plan = first_fit(lengths, slots, LENGTH, IMAGES)
    rows = [[pieces[i] for i in row] for row in plan]
    batch = join_pictures(join(rows, SHAPE, pad=7), rows, pictures_of(rows))
    taken = [
        check_row({name: getattr(batch, name)[r] for name in batch._fields}, row)
        for r, row in enumerate(rows)
    ]
    assert max(taken) == IMAGES and max(map(len, rows)) >= 3
    with pytest.raises(AssertionError):
        check_row({name: getattr(batch, name)[0] for name in batch._fields}, rows[1])
    with pytest.raises((ValueError, IndexError)):
        join([[piece(0, 30), piece(1, 30)]], SHAPE)
    assert join([], SHAPE).tokens.shape == (0, LENGTH)
    assert (join([[]], SHAPE, pad=7).tokens == 7).all()


ALL = slice(0, 4)
START = Place()


def endless(numbers):
    """Documents by number, 45 in an epoch."""
    return [piece(n % 45) for n in numbers]


def build(rows):
    return lambda: join_pictures(join(rows, SHAPE), rows, pictures_of(rows))


def stream(start=START, share=ALL, ahead=0, window=7, streams=None, build=build):
    streams = streams or [(0, lambda: endless)]
    return iter(BatchIterDataset(streams, window, SHAPE, build, 4, share, ahead, start))


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("window", [1, 7, 15, 99])
def test_it_goes_on_bit_exactly_from_every_place(window):
    """A window of 1 is smaller than a batch's rows, one of 99 larger than an epoch."""
    whole = list(itertools.islice(stream(window=window), 12))
    for k, (place, _) in enumerate(whole):
        rest = list(itertools.islice(stream(place, window=window), 11 - k))
        assert [p for p, _ in rest] == [p for p, _ in whole[k + 1 :]]
        assert all(same(a, b) for (_, a), (_, b) in zip(rest, whole[k + 1 :], strict=True))
    assert not same(whole[0][1], whole[1][1])
    again = stream(window=window)
    again.set_state(whole[5][0]._asdict())
    assert again.get_state() == whole[5][0]._asdict()
    assert same(next(again)[1], whole[6][1])
    again.set_state(Place()._asdict())
    assert same(next(again)[1], whole[0][1])


def test_processes_share_out_one_and_the_same_stream():
    whole = list(itertools.islice(stream(), 12))
    halves = [stream(share=slice(2 * p, 2 * p + 2)) for p in range(2)]
    for place, batch in whole:
        (a, left), (b, right) = (next(half) for half in halves)
        assert a == b == place
        assert same(map(np.concatenate, zip(left, right, strict=True)), batch)
        assert not same(left, right)


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_what_is_begun_ahead_changes_neither_batches_nor_places(ahead):
    begun = []

    def counted(rows):
        begun.append(rows)
        return build(rows)

    whole = list(itertools.islice(stream(), 9))
    early = stream(ahead=ahead, build=counted)
    for number, (place, batch) in enumerate(whole):
        assert early.get_state()["batch"] == number
        got = next(early)
        assert got[0] == place and same(got[1], batch)
        assert len(begun) == number + 1 + ahead
    early.set_state(whole[2][0]._asdict())  # what was begun is forgotten
    assert same(next(early)[1], whole[3][1])


def test_windows_are_used_up_whole_and_packed_on_their_own():
    windows = Windows(endless, 9, SHAPE)
    place, rows = Place(), []
    while place.window < 5:
        place, row = windows.take(place, 1)
        rows += row
    tokens = sorted(tuple(p["tokens"]) for row in rows for p in row)
    assert tokens == sorted(tuple(piece(n)["tokens"]) for n in range(45))
    first = []
    place = Place()
    while place.window < 1:
        place, row = Windows(lambda numbers: endless(numbers), 9, SHAPE).take(place, 1)
        first += row
    assert len(first) < len(rows)
    for a, b in zip(first, rows, strict=False):
        assert [tuple(p["tokens"]) for p in a] == [tuple(p["tokens"]) for p in b]


def test_stages_begin_at_their_batch_whatever_came_before():
    def other(numbers):
        return [piece(1000 + n) for n in numbers]

    streams = [(0, lambda: endless), (5, lambda: other)]
    both = list(itertools.islice(stream(streams=streams), 9))
    only = list(itertools.islice(stream(streams=[(0, lambda: other)]), 4))
    plain = list(itertools.islice(stream(), 9))
    assert all(same(a, b) for (_, a), (_, b) in zip(both[:5], plain[:5], strict=True))
    assert all(same(a, b) for (_, a), (_, b) in zip(both[5:], only, strict=True))
    assert not same(both[5][1], plain[5][1])
    for k in (3, 4, 6):  # before, at and after the change
        rest = itertools.islice(stream(both[k][0], streams=streams), 8 - k)
        assert all(same(a, b) for (_, a), (_, b) in zip(rest, both[k + 1 :], strict=True))


def test_documents_larger_than_a_row_are_left_out_and_counted():
    large = piece(0, LENGTH + 1)

    def some(numbers):
        return [large if n % 9 == 4 else piece(n) for n in numbers]

    place, rows = Place(), []
    windows = Windows(some, 9, SHAPE)
    while place.window < 3:
        place, row = windows.take(place, 1)
        rows += row
    assert place.left_out == 3 and sum(map(len, rows)) == 24
    with pytest.raises(UserError, match=r"none of 4 documents fits.*data.length=20"):
        Windows(lambda numbers: [large for _ in numbers], 4, SHAPE).take(Place(), 1)


def test_rows_of_real_documents_are_nearly_full(openmoji):
    """16 patches a picture, 128 positions a row, as in experiments/base.py."""
    tokenizer = bpe.load(openmoji / "tokenizer.json")
    records = data.read(openmoji, "train")
    lengths = [20 + len(bpe.encode(tokenizer, records[i].caption)) for i in range(1024)]
    shares = []
    for start in (0, 512):
        part = lengths[start : start + 512]
        rows = first_fit(part, [1] * len(part), 128, 6)
        shares.append(sum(part) / (128 * len(rows)))
    assert min(shares) >= 0.88
    alone = sum(lengths) / (128 * len(lengths))
    assert alone < 0.3


def test_fill_is_the_share_that_holds_documents():
    row = join([[piece(0, 5)]], SHAPE)
    assert fill(row) == 5 / LENGTH
