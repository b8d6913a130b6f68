"""First-fit packing, rows, and a state that restores at every position."""

import itertools
import json

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.batch import IMAGE, TEXT
from mmjax.data import openmoji as data
from mmjax.data import tokenizer as bpe
from mmjax.data.pack import PackIterDataset, fill, first_fit, join
from mmjax.error import UserError

LENGTH, IMAGES, SIZE = 20, 3, 2


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
        "pixels": rng.integers(0, 256, (pictures, SIZE, SIZE, 3)).astype(np.uint8),
    }


def test_join_lays_documents_side_by_side():
    pieces = next(
        [piece(3 * s + i) for i in range(3)]
        for s in range(99)
        if 2 <= sum(len(piece(3 * s + i)["pixels"]) for i in range(3)) <= IMAGES
        and len(piece(3 * s)["pixels"]) > 0
    )
    row = join(pieces, 40, IMAGES, SIZE)
    at = slot = 0
    for number, p in enumerate(pieces, start=1):
        n = len(p["tokens"])
        for name in ("tokens", "modality", "position", "weight"):
            np.testing.assert_array_equal(getattr(row, name)[at : at + n], p[name])
        assert (row.segment[at : at + n] == number).all()
        for j in range(n):
            shown = row.image[at + j]
            assert (shown > 0) == (p["image"][j] > 0)
            if shown:
                picture = p["pixels"][p["image"][j] - 1]
                np.testing.assert_array_equal(row.pixels[shown - 1], picture)
        at, slot = at + n, slot + len(p["pixels"])
    assert row.image.max() == slot >= 2
    for name in row._fields[:6]:
        assert (getattr(row, name)[at:] == 0).all()
    assert (row.pixels[slot:] == 0).all() and row.pixels[:slot].any()
    with pytest.raises(ValueError):
        join([piece(0, 30), piece(1, 30)], 40, IMAGES, SIZE)


def packed(window, count=45):
    source = grain.MapDataset.source([piece(s) for s in range(count)]).to_iter_dataset()
    return PackIterDataset(source, window, LENGTH, IMAGES, SIZE)


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("window", [1, 7, 15, 99])
def test_it_restores_bit_exactly_at_every_position(window):
    """45 documents: 7 leaves a short last window, 15 none, 99 is a single one."""
    iterator, states, rows = iter(packed(window)), [], []
    while True:
        states.append(json.dumps(iterator.get_state()))
        try:
            rows.append(next(iterator))
        except StopIteration:
            break
    assert max(map(len, states)) < 100
    assert sum(row.segment.max() for row in rows) == 45
    for k, state in enumerate(states):
        again = iter(packed(window))
        again.set_state(json.loads(state))
        assert json.dumps(again.get_state()) == state
        rest = list(again)
        assert len(rest) == len(rows) - k
        assert all(map(same, rest, rows[k:]))
    # Also put back into an iterator that has gone on, to the middle and to the start.
    for k in (len(rows) // 2, 0):
        iterator.set_state(json.loads(states[k]))
        assert all(map(same, iterator, rows[k:]))
    assert not same(rows[0], rows[1])


def test_windows_are_packed_on_their_own():
    rows = list(packed(7))
    assert len(rows) > len(list(packed(99)))
    first = list(packed(99, count=7))
    assert all(map(same, rows, first)) and len(first) < len(rows)


def test_documents_larger_than_a_row_are_left_out():
    def read(window, pieces):
        source = grain.MapDataset.source(pieces).to_iter_dataset()
        return list(PackIterDataset(source, window, LENGTH, IMAGES, SIZE))

    pieces = [piece(s) for s in range(10)]
    large = piece(0, LENGTH + 1)
    mixed = [*pieces[:5], large, *pieces[5:]]
    assert all(map(same, read(99, mixed), read(99, pieces)))
    assert read(99, pieces)
    with pytest.raises(UserError, match=r"none of 4 documents fits.*data.length=20"):
        read(4, [large] * 8)


def test_rows_of_real_documents_are_nearly_full(openmoji):
    """16 patches a picture, 128 positions a row, as in experiments/quickstart.py."""
    tokenizer = bpe.load(openmoji / "tokenizer.json")
    records = data.read(openmoji, "train")
    lengths = [20 + len(bpe.encode(tokenizer, records[i]["caption"])) for i in range(1024)]
    shares = []
    for start in (0, 512):
        part = lengths[start : start + 512]
        rows = first_fit(part, [1] * len(part), 128, 6)
        shares.append(sum(part) / (128 * len(rows)))
    assert min(shares) >= 0.88
    alone = sum(lengths) / (128 * len(lengths))
    assert alone < 0.3


def test_fill_is_the_share_that_holds_documents():
    row = join([piece(0, 5)], LENGTH, IMAGES, SIZE)
    assert fill(row) == 5 / LENGTH
