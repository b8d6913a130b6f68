"""Every mask against a loop that reads the definition, on random layouts."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batch import VOCABULARY, random_batch

from mmjax import batch as b
from mmjax import flops
from mmjax.batch import IMAGE, TEXT

seeds = st.integers(0, 10_000)


def brute(batch, allowed):
    rows, length = batch.tokens.shape
    out = np.zeros((rows, length, length), bool)
    for r in range(rows):
        for i in range(length):
            for j in range(length):
                same = batch.segment[r, i] == batch.segment[r, j] != 0
                out[r, i, j] = same and allowed(batch, r, i, j)
    return out


def one_picture(batch, r, i, j):
    return batch.image[r, i] == batch.image[r, j] != 0


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_mixed_mask_is_causal_and_bidirectional_inside_a_picture(seed):
    batch = random_batch(seed)
    want = brute(batch, lambda *a: a[3] <= a[2] or one_picture(*a))
    np.testing.assert_array_equal(b.mixed_mask(batch), want)


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_causal_mask_sees_no_later_position(seed):
    batch = random_batch(seed)
    np.testing.assert_array_equal(b.causal_mask(batch), brute(batch, lambda *a: a[3] <= a[2]))


def test_the_two_masks_differ_where_a_picture_is():
    batch = random_batch(0)
    assert (batch.image > 0).any()
    assert (np.asarray(b.mixed_mask(batch)) != np.asarray(b.causal_mask(batch))).any()


def with_registers(seed):
    """Random layouts, some of whose words are registers, and their ids."""
    batch, registers = random_batch(seed), (20, 21, 22, 23)
    rng = np.random.default_rng(seed)
    word = (batch.modality == TEXT) & (batch.segment > 0) & (batch.tokens >= 5)
    made = word & (rng.random(word.shape) < 0.3)
    tokens = np.where(made, rng.integers(20, 24, word.shape), np.where(word, 9, batch.tokens))
    return batch._replace(tokens=tokens.astype(np.int32)), registers


def parted(registers, batch, r, i, j):
    """Whether some register stands between key j and query i, neither of which is one, nor BOS."""
    between = batch.tokens[r, j + 1 : i]
    free = batch.tokens[r, i] in registers or batch.tokens[r, j] in registers
    return not free and batch.position[r, j] > 0 and np.isin(between, registers).any()


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_registers_part_what_follows_from_what_stands_before(seed):
    batch, registers = with_registers(seed)
    rules = (
        (b.mixed_mask, lambda *a: a[3] <= a[2] or one_picture(*a)),
        (b.causal_mask, lambda *a: a[3] <= a[2]),
    )
    for mask, rule in rules:
        want = brute(batch, lambda *a, rule=rule: rule(*a) and not parted(registers, *a))
        np.testing.assert_array_equal(mask(batch, registers), want)
        np.testing.assert_array_equal(mask(batch), brute(batch, rule))


def test_registers_part_some_pairs_and_cost_nothing_where_there_are_none():
    made = [with_registers(seed) for seed in range(9)]
    parted_pairs = [
        np.asarray(b.mixed_mask(batch)).sum() - np.asarray(b.mixed_mask(batch, registers)).sum()
        for batch, registers in made
    ]
    assert sum(parted_pairs) > 100 and min(parted_pairs) >= 0
    jaxprs = [
        str(jax.make_jaxpr(lambda x, r=r: b.mixed_mask(x, r))(made[0][0])) for r in ((), (9,))
    ]
    assert "cumsum" in jaxprs[1] and "cumsum" not in jaxprs[0]


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_flops_count_the_pairs_that_registers_part(seed):
    batch, registers = with_registers(seed)
    for mask, count in ((b.mixed_mask, flops.mixed_counts), (b.causal_mask, flops.causal_counts)):
        pairs = count(batch)[1] - flops.parted(batch, registers)
        assert pairs == np.asarray(mask(batch, registers)).sum()
    assert flops.parted(batch, ()) == 0.0


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_target_weight(seed):
    batch = random_batch(seed)
    got = np.asarray(b.target_weight(batch))
    for r in range(len(batch.tokens)):
        for j in range(batch.tokens.shape[1] - 1):
            here, there = batch.modality[r, j], batch.modality[r, j + 1]
            counted = batch.segment[r, j] == batch.segment[r, j + 1] != 0
            counted &= here == TEXT and there == TEXT
            assert got[r, j] == (batch.weight[r, j + 1] if counted else 0)


def test_target_weight_counts_boi_and_eos_but_not_eoi():
    batch = random_batch(0)
    weight = np.asarray(b.target_weight(batch))
    targets = batch.tokens[:, 1:][weight > 0]
    assert VOCABULARY.boi in targets and VOCABULARY.eos in targets
    assert VOCABULARY.eoi not in targets and VOCABULARY.bos not in targets


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_patches_and_slots(seed):
    batch = random_batch(seed)
    index = np.asarray(b.patch_index(batch.image))
    first, used = (np.asarray(x) for x in b.slot_columns(batch.image, batch.pixels.shape[1]))
    for r in range(len(batch.tokens)):
        for slot in range(1, batch.pixels.shape[1] + 1):
            columns = np.flatnonzero(batch.image[r] == slot)
            assert used[r, slot - 1] == (len(columns) > 0)
            if len(columns):
                assert first[r, slot - 1] == columns[0]
                np.testing.assert_array_equal(index[r, columns], np.arange(len(columns)))
    assert (index[batch.modality == TEXT] == 0).all()


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_precedes_text(seed):
    batch = random_batch(seed)
    got = np.asarray(b.precedes_text(batch, VOCABULARY))
    for r in range(len(batch.tokens)):
        for slot in range(1, batch.pixels.shape[1] + 1):
            columns = np.flatnonzero(batch.image[r] == slot)
            want = False
            if len(columns):
                for j in range(columns[-1] + 1, batch.tokens.shape[1]):
                    same = batch.segment[r, j] == batch.segment[r, columns[0]]
                    want |= bool(same and batch.modality[r, j] == TEXT and batch.tokens[r, j] >= 5)
            assert got[r, slot - 1] == want


def test_precedes_text_has_both_answers():
    got = np.concatenate([b.precedes_text(random_batch(s), VOCABULARY).ravel() for s in range(9)])
    assert got.any() and not got.all()


def test_slot_weight_is_zero_for_empty_slots():
    batch = random_batch(3)
    weight = np.asarray(b.slot_weight(batch))
    used = np.arange(1, batch.pixels.shape[1] + 1)[None] <= batch.image.max(1)[:, None]
    np.testing.assert_array_equal(weight > 0, used)


def test_patches_of_two_pictures_do_not_see_each_other():
    image = np.array([[1, 1, 2, 2, 0]])
    got = np.asarray(b.same_image(image, image))[0]
    assert got[0, 1] and not got[0, 2] and not got[4, 4]


@pytest.mark.parametrize("field", ["segment", "image"])
def test_breaking_a_field_breaks_the_mask(field):
    batch = random_batch(0)
    broken = batch._replace(**{field: np.ones_like(getattr(batch, field))})
    assert (np.asarray(b.mixed_mask(broken)) != np.asarray(b.mixed_mask(batch))).any()
    assert IMAGE != TEXT
