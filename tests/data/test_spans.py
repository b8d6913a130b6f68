"""Moved spans: undone exactly, whole pictures, CM3's distribution, and its code's four defects."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.batch import IMAGE, TEXT, Image, Text
from mmjax.data import tokenizer as bpe
from mmjax.data.spans import draw, invert, move, move_spans
from mmjax.error import UserError

TOKENIZER = bpe.train(["red apple and a green pear"] * 3, 300)
VOCAB = bpe.vocabulary(TOKENIZER, codes=16)
ARRAYS = ("tokens", "modality", "image", "position", "weight")


def lay_out(document, patches=3, shared=False, end=True):
    piece = bpe.lay_out(document, TOKENIZER, VOCAB, patches, shared, end)
    piece["pictures"] = [p.data for p in document if isinstance(p, Image)]
    return piece


def same(a, b):
    arrays = all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in ARRAYS)
    return arrays and a["pictures"] == b["pictures"] and a.keys() == b.keys()


def text_of(n):
    """A document of n text positions between BOS and EOS."""
    piece = lay_out([Text("x")])
    at = [0, *[1] * n, len(piece["tokens"]) - 1]
    piece = {**piece, **{k: piece[k][at] for k in ARRAYS}}
    piece["tokens"][1:-1] = np.arange(n) % 256
    piece["position"] = np.arange(n + 2, dtype=np.int32)
    return piece


texts = st.builds(Text, st.text("ab é", max_size=9), st.booleans())
pictures = st.builds(Image, st.binary(min_size=1, max_size=2), st.booleans())
pieces = st.builds(
    lay_out,
    st.lists(texts | pictures, max_size=6),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
generators = st.integers(0, 2**32).map(np.random.default_rng)


@settings(max_examples=300, deadline=None)
@given(pieces, generators, st.integers(0, 9))
def test_moved_spans_are_undone_exactly(piece, rng, count):
    before = {k: v.copy() for k, v in piece.items() if k in ARRAYS}
    moved = move_spans(piece, rng, VOCAB, count, fixed=True)
    assert same(invert(moved, VOCAB), piece)
    assert all(np.array_equal(piece[k], v) for k, v in before.items())  # not written to
    n = np.isin(moved["tokens"], VOCAB.masks).sum() // 2
    assert n <= min(count, len(VOCAB.masks) - 1)
    assert len(moved["tokens"]) == len(piece["tokens"]) + 3 * n
    assert all(len(moved[k]) == len(moved["tokens"]) for k in ARRAYS)
    assert same(moved, piece) == (n == 0)
    added = np.isin(moved["tokens"], [*VOCAB.masks, VOCAB.eoss])
    assert sorted(moved["tokens"][~added]) == sorted(piece["tokens"])  # each token once
    assert (moved["tokens"][-1] == VOCAB.eos) == (piece["tokens"][-1] == VOCAB.eos)


@settings(max_examples=300, deadline=None)
@given(pieces, generators, st.integers(1, 7))
def test_spans_keep_to_one_text_or_one_whole_picture(piece, rng, count):
    end = len(piece["tokens"]) - (piece["tokens"][-1] == VOCAB.eos)
    spans = draw(piece, rng, VOCAB, count)
    assert len(spans) <= count and spans == sorted(spans)
    edge = 1
    for begin, stop in spans:
        assert edge <= begin < stop <= end  # not empty, apart, neither BOS nor EOS
        edge = stop
        inside, kinds = piece["image"][begin:stop], set(piece["modality"][begin:stop])
        if IMAGE in kinds:
            slot = inside.max()
            assert piece["tokens"][begin] == VOCAB.boi and piece["tokens"][stop - 1] == VOCAB.eoi
            assert set(inside[1:-1]) == {slot}
            assert (piece["image"] == slot).sum() == (inside == slot).sum()
        else:
            assert not {VOCAB.boi, VOCAB.eoi} & set(piece["tokens"][begin:stop])


def test_the_order_of_a_moved_document():
    document = [Text("red apple"), Image(b"one"), Text("green pear"), Image(b"two")]
    piece = lay_out(document, patches=2, shared=True)
    bos, a, b, boi, p, _, eoi, c, d, *_ = piece["tokens"].tolist()
    (m0, m1, *_), eoss, eos = VOCAB.masks, VOCAB.eoss, VOCAB.eos
    found = move(piece, [(3, 7), (8, 9)], VOCAB)
    assert found["tokens"].tolist() == [
        bos, a, b, m0, c, m1, boi, p, p, eoi, m0, boi, p, p, eoi, eoss, m1, d, eoss, eos,
    ]  # fmt: skip
    pictures = [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0]
    assert found["image"].tolist() == pictures and found["pictures"] == [b"two", b"one"]
    assert found["modality"].tolist() == [IMAGE if i else TEXT for i in pictures]
    positions = [0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 9, 10, 11, 11, 12, 13, 14, 15, 16, 17]
    assert found["position"].tolist() == positions
    assert found["weight"].tolist() == [0] + [1] * 19
    in_turn = move(lay_out(document, patches=2), [(3, 7), (8, 9)], VOCAB)
    assert in_turn["position"].tolist() == list(range(20))


def test_loss_is_taken_on_sentinels_but_not_on_what_is_only_read():
    piece = lay_out([Text("red apple", loss=False), Image(b"one"), Text("green pear")], 1)
    only_read, written = move(piece, [(1, 2)], VOCAB), move(piece, [(3, 6)], VOCAB)
    #                                   bos m b boi p eoi c d m a eoss eos
    assert only_read["weight"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 1]
    #                                 bos a b m c d m boi p eoi eoss eos
    assert written["weight"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    across = move(lay_out([Text("red", loss=False), Text("pear")]), [(1, 3)], VOCAB)
    assert across["weight"].tolist() == [0, 1, 1, 0, 1, 1, 1]


def test_image_codes_move_with_their_patches():
    piece = lay_out([Text("a"), Image(b"one"), Image(b"two")])
    codes = piece["modality"] == IMAGE
    piece["tokens"][codes] = VOCAB.codes + np.arange(6)
    moved = move(piece, [(2, 7)], VOCAB)
    kept = moved["tokens"][moved["modality"] == IMAGE] - VOCAB.codes
    assert kept.tolist() == [3, 4, 5, 0, 1, 2] and moved["pictures"] == [b"two", b"one"]
    assert same(invert(moved, VOCAB), piece)


def test_a_document_before_its_pictures_are_known():
    piece = lay_out([Text("a"), Image(b"one")])
    del piece["pictures"]
    moved = move(piece, [(2, 7)], VOCAB)
    assert moved.keys() == piece.keys()
    assert np.array_equal(invert(moved, VOCAB)["image"], piece["image"])


@pytest.mark.parametrize(
    "damage", [lambda t: t[t != VOCAB.masks[0]], lambda t: np.where(t == VOCAB.eoss, 9, t)]
)
def test_sentinels_that_do_not_pair_up(damage):
    moved = move(text_of(9), [(1, 3), (4, 6)], VOCAB)
    tokens = damage(moved["tokens"])
    short = {**moved, **{k: moved[k][: len(tokens)] for k in ARRAYS}, "tokens": tokens}
    with pytest.raises(ValueError, match="do not pair up"):
        invert(short, VOCAB)


def test_a_negative_number_of_spans():
    with pytest.raises(UserError, match=r"data\.spans=-1"):
        move_spans(text_of(9), np.random.default_rng(0), VOCAB, -1)


# Four defects of the code that CM3 was trained with, and none here.


@pytest.mark.parametrize("document", [[], [Text("")], [Text("a")], [Image(b"one")]])
@pytest.mark.parametrize("end", [True, False])
def test_documents_with_no_spans_to_move_stay_as_they_are(document, end):
    """There: no spans were None, which the next function took for a list. Also: no EOS, or one."""
    piece, rng = lay_out(document, end=end), np.random.default_rng(0)
    assert move_spans(piece, rng, VOCAB, 0.0) is piece
    seen = [move_spans(piece, rng, VOCAB, 1, fixed=True) for _ in range(50)]
    grown = [len(p["tokens"]) > len(piece["tokens"]) for p in seen]
    assert any(grown) == (document not in ([], [Text("")]))
    assert all(same(invert(p, VOCAB), piece) for p in seen)


def test_spans_that_shrink_to_nothing_or_onto_each_other_are_dropped():
    """There: a span cut off at a border could be empty, or overlap another."""
    piece = lay_out([part for i in range(3) for part in (Text("a"), Image(b"%d" % i))], patches=5)
    rng = np.random.default_rng(0)
    drawn = [draw(piece, rng, VOCAB, 7) for _ in range(200)]
    for spans in drawn:
        assert all(b < e for b, e in spans)
        assert all(e <= b for (_, e), (b, _) in itertools.pairwise(spans))
    # So many candidates fall onto the same pictures that overlaps would have been seen.
    assert 2 < np.mean([len(spans) for spans in drawn]) < 6


@pytest.mark.parametrize("end", [True, False])
def test_documents_with_and_without_their_eos(end):
    """There: a block of tokens without EOS, or with one, had no documents in it."""
    piece = lay_out([Text("red apple"), Image(b"one"), Text("pear")], end=end)
    moved = [move_spans(piece, np.random.default_rng(i), VOCAB, 1.0) for i in range(200)]
    assert all(same(invert(p, VOCAB), piece) for p in moved)
    assert all((p["tokens"][-1] == VOCAB.eos) == end for p in moved)
    assert sum(p["tokens"][-1] == VOCAB.eoss for p in moved) > 90 or end


def test_the_generator_alone_decides():
    """There: NumPy's global generator decided."""
    piece = text_of(40)
    np.random.seed(0)
    first = move_spans(piece, np.random.default_rng(1), VOCAB, 3.0)
    state = np.random.get_state()[1]  # type: ignore[index]
    second = move_spans(piece, np.random.default_rng(1), VOCAB, 3.0)
    assert same(first, second)
    assert np.array_equal(state, np.random.get_state()[1])  # type: ignore[index]
    assert not same(first, move_spans(piece, np.random.default_rng(2), VOCAB, 3.0))


# Distributions; the bounds are four standard errors or wider.


def counts(spans, fixed, n=2000):
    piece, rng = text_of(400), np.random.default_rng(0)
    found = (move_spans(piece, rng, VOCAB, spans, fixed)["tokens"] for _ in range(n))
    return np.array([len(tokens) - 402 for tokens in found]) // 3


def test_the_number_of_spans():
    poisson = counts(1.0, fixed=False)
    assert abs((poisson == 0).mean() - np.exp(-1)) < 0.045
    # Of four candidates no two may be apart: then one span is left of two.
    assert -0.045 < (poisson == 1).mean() - np.exp(-1) < 0.12 and 0.75 < poisson.mean() < 1
    two = counts(2, fixed=True, n=500)
    assert two.max() == 2 and 1.5 < two.mean() < 1.9
    one = counts(1, fixed=True, n=500)
    assert one.max() == 1 and one.mean() > 0.98  # ends may meet
    # One sentinel stays unused.
    assert len(VOCAB.masks) == 8 and counts(50.0, fixed=False, n=200).max() <= 7
    seven = counts(50, fixed=True, n=200)
    assert seven.max() == 7 and seven.mean() > 4
    few = dataclasses.replace(VOCAB, masks=VOCAB.masks[:3])
    spans = [move_spans(text_of(99), np.random.default_rng(i), few, 9.0) for i in range(50)]
    assert max(len(p["tokens"]) for p in spans) == 101 + 3 * 2


def test_the_length_and_place_of_a_span():
    rng, n = np.random.default_rng(0), 400
    found = [draw(text_of(n), rng, VOCAB, 1)[0] for _ in range(3000)]
    begin, end = np.array(found).T
    length, middle = (end - begin) / n, ((begin + end) / 2 - 1) / n
    # Distance of two uniform draws: density 2 (1 - x), mean 1/3, variance 1/18.
    assert abs(length.mean() - 1 / 3) < 0.018
    assert abs(length.var() - 1 / 18) < 0.006
    assert abs((length < 0.5).mean() - 0.75) < 0.032
    assert abs(middle.mean() - 0.5) < 0.015
    many = [e - b for _ in range(100) for b, e in draw(text_of(n), rng, VOCAB, 7)]
    assert np.mean(many) / n < 0.2 < length.mean()  # seven share the document
    assert begin.min() == 1 and end.max() == n + 1


def test_any_text_and_any_picture_may_move():
    piece = lay_out([Text("red apple"), Image(b"0"), Image(b"1"), Text("pear")])
    rng = np.random.default_rng(0)
    spans = [span for _ in range(300) for span in draw(piece, rng, VOCAB, 2)]
    moved = np.zeros(len(piece["tokens"]), int)
    for begin, end in spans:
        moved[begin:end] += 1
    assert moved[0] == moved[-1] == 0 and (moved[1:-1] > 0).all()


@pytest.mark.parametrize(("room", "most"), [(0, 0), (2, 0), (3, 1), (8, 2), (100, 5)])
def test_no_more_spans_than_a_row_has_room_for(room, most):
    """A document that fits a row still does; one that did not loses nothing more."""
    piece, length = text_of(40), 42 + room
    found = [
        move_spans(piece, np.random.default_rng(seed), VOCAB, 5, fixed=True, length=length)
        for seed in range(60)
    ]
    grown = [(len(p["tokens"]) - 42) // 3 for p in found]
    assert max(grown) == most and all(len(p["tokens"]) <= length for p in found)
    longer = move_spans(piece, np.random.default_rng(0), VOCAB, 5, fixed=True, length=41)
    assert same(longer, piece)
