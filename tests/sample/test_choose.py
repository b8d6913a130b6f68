"""Choosing a token against loops that read the definitions, and draws against their frequencies."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.error import UserError
from mmjax.sample import choose as c
from mmjax.sample.choose import choose
from mmjax.sample_config import Choice

B, V = 6, 12
OFF = Choice(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition=1.0)
COLD = replace(OFF, temperature=0.0)
ALL = Choice(temperature=0.7, top_k=5, top_p=0.8, min_p=0.05, repetition=1.3)
CHOOSE = jax.jit(choose, static_argnames="choice")
FILTERED = jax.jit(c.filtered, static_argnames="choice")
TOP_P = jax.jit(c.top_p, static_argnames="p")
CONTRAST = jax.jit(c.contrast, static_argnames="k")
GUIDED3 = jax.jit(c.guided3)
KEYS = jax.random.split(jax.random.key(3), B)


def random_logits(seed: int) -> np.ndarray:
    """Rows that are smooth, tied, flat, extreme, mostly impossible, and with both zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(scale=3, size=(B, V))
    x[1] = np.round(x[1])
    x[2] = 4.0
    x[3] = rng.choice([-3e38, -1e30, 0.0, 50.0, 3e38], V)
    x[4, rng.permutation(V)[: V - 3]] = -np.inf
    x[5] = rng.choice([-0.0, 0.0, -3.0], V)
    return x.astype(np.float32)


def softmax(row):
    e = np.exp(row.astype(np.float64) - row.max())
    return e / e.sum()


def ranked(row):
    """Ids from the likeliest, lower ids first among equals."""
    return sorted(range(len(row)), key=lambda i: (-row[i], i))


def kept_top_k(row, k):
    return set(ranked(row)[: k or len(row)])


def kept_top_p(row, p):
    share, kept, reached = softmax(row), set(), 0.0
    for i in ranked(row):
        kept.add(i)
        reached += share[i]
        if p < 1 and reached >= p - 1e-7:
            break
    return kept


def kept_min_p(row, p):
    share = softmax(row)
    return {i for i in range(len(row)) if share[i] >= p * share.max() * (1 - 1e-6)}


def assert_kept(got, logits, kept):
    """Rows hold their own logits at `kept` ids, where those were possible, and -inf elsewhere."""
    for row, before, ids in zip(np.asarray(got), logits, kept, strict=True):
        want = [x if i in ids else -np.inf for i, x in enumerate(before)]
        np.testing.assert_array_equal(row, np.float32(want))


@pytest.mark.parametrize("k", [0, 1, 3, V - 1, V, V + 5])
def test_top_k_keeps_the_k_likeliest(k):
    cut = jax.jit(partial(c.top_k, k=k))
    for seed in range(15):
        x = random_logits(seed)
        assert_kept(cut(x), x, [kept_top_k(row, k) for row in x])


@pytest.mark.parametrize("p", [1e-6, 0.3, 2 / 3, 0.9, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p):
    for seed in range(15):
        x = random_logits(seed)
        assert_kept(TOP_P(x, p), x, [kept_top_p(row, p) for row in x])


def test_top_p_stops_at_the_very_id_that_reaches_p():
    half = np.log(np.float32([[0.125, 0.5, 0.125, 0.25]]))
    for p, want in ((0.5, {1}), (0.51, {1, 3}), (0.75, {1, 3})):
        assert_kept(TOP_P(half, p), half, [want])
    # Twelfths, rounded, add up to less than 2 / 3 after eight of them.
    flat = np.zeros((B, V), np.float32)
    assert_kept(TOP_P(flat, 2 / 3), flat, [set(range(8))] * B)


def test_top_p_just_below_one_keeps_what_rounding_cannot_tell():
    flat = np.zeros((1, 3001), np.float32)
    assert np.isfinite(TOP_P(flat, 1 - 1e-9)).all()
    assert np.isfinite(TOP_P(flat, 0.5)).sum() == 1501


@pytest.mark.parametrize("p", [0.0, 0.1, 0.6, 1.0])
def test_min_p_keeps_what_is_near_the_likeliest(p):
    cut = jax.jit(partial(c.min_p, p=p))
    for seed in range(15):
        x = random_logits(seed)
        assert_kept(cut(x), x, [kept_min_p(row, p) for row in x])


@pytest.mark.parametrize("k,p,least", [(5, 0.8, 0.2), (3, 0.6, 0.3), (0, 0.7, 0.3), (4, 1.0, 0.2)])
def test_filters_together_keep_what_each_alone_would(k, p, least):
    choice = replace(OFF, top_k=k, top_p=p, min_p=least)
    decided = [k == 0, p == 1, least == 0]  # whether each was the one to drop some id
    for seed in range(15):
        x = random_logits(seed)
        kept = [(kept_top_k(r, k), kept_top_p(r, p), kept_min_p(r, least)) for r in x]
        assert_kept(FILTERED(x, choice), x, [set.intersection(*each) for each in kept])
        for by_k, by_p, by_min in kept:
            decided[0] |= bool(by_p & by_min - by_k)
            decided[1] |= bool(by_k & by_min - by_p)
            decided[2] |= bool(by_k & by_p - by_min)
    assert all(decided)


def test_filters_judge_the_distribution_before_any_of_them():
    """Judged after top-k = 2, top-p = 0.5 would be content with the first id."""
    x = np.log(np.float32([[0.4, 0.35, 0.25]]))
    choice = replace(OFF, top_k=2, top_p=0.5)
    assert_kept(FILTERED(x, choice), x, [{0, 1}])
    assert_kept(FILTERED(FILTERED(x, replace(OFF, top_k=2)), replace(OFF, top_p=0.5)), x, [{0}])


def test_allow_leaves_nothing_else():
    x = random_logits(0)
    allowed = np.random.default_rng(1).random((B, V)) < 0.5
    assert_kept(c.allow(x, allowed), x, [set(np.flatnonzero(row)) for row in allowed])
    assert_kept(c.allow(x, allowed[:1]), x, [set(np.flatnonzero(allowed[0]))] * B)


def test_the_penalty_lowers_what_was_seen_whatever_its_sign():
    x = np.float32([[2.0, -2.0, 0.0, 2.0, -2.0, -np.inf]])
    seen = np.array([[True, True, True, False, False, True]])
    want = [[1.6, -2.5, 0.0, 2.0, -2.0, -np.inf]]
    np.testing.assert_allclose(c.penalise(x, seen, 1.25), want, rtol=1e-6)
    np.testing.assert_array_equal(c.penalise(x, seen, 1.0), x)


def test_guidance_by_words_and_pictures_apart():
    full, image, blank = np.random.default_rng(0).normal(size=(3, B, V)).astype(np.float32)
    want = blank + 1.2 * (image - blank) + 3.0 * (full - image)
    np.testing.assert_allclose(GUIDED3(full, image, blank, 3.0, 1.2), want, atol=1e-5)
    assert np.abs(GUIDED3(full, image, blank, 1.2, 3.0) - want).max() > 0.1
    for scales, stream in (((1.0, 1.0), full), ((0.0, 1.0), image), ((0.0, 0.0), blank)):
        np.testing.assert_allclose(GUIDED3(full, image, blank, *scales), stream, atol=1e-6)
    # Without pictures to tell apart it is the two-way form.
    np.testing.assert_allclose(
        GUIDED3(full, blank, blank, 3.0, 1.2), c.guided(full, blank, 3.0), atol=1e-5
    )


@pytest.mark.parametrize("alpha,k", [(1.0, 1), (0.1, 1), (0.5, 4), (1.0, 4), (0.3, V)])
def test_contrast_scores_what_is_plausible_by_the_ratio(alpha, k):
    rng = np.random.default_rng(0)
    for _ in range(15):
        x, y = (rng.normal(scale=2, size=(B, V)).astype(np.float32) for _ in range(2))
        got = np.asarray(CONTRAST(x, y, alpha, k))
        for row, p, q in zip(got, map(softmax, x), map(softmax, y), strict=True):
            floor = alpha * sorted(p)[-k] * (1 - 1e-6)
            want = np.where(p >= floor, np.log(p) - np.log(q), -np.inf)
            np.testing.assert_allclose(row, want, atol=1e-5)


def test_contrast_with_more_than_all_takes_all():
    x, y = np.random.default_rng(0).normal(size=(2, B, V)).astype(np.float32)
    np.testing.assert_array_equal(CONTRAST(x, y, 0.3, V + 5), CONTRAST(x, y, 0.3, V))


def test_contrast_prefers_what_only_the_condition_makes_likely():
    conditional, unconditional = np.log(np.float32([[[0.5, 0.4, 0.1]], [[0.6, 0.1, 0.3]]]))
    score = np.asarray(CONTRAST(conditional, unconditional, 0.5, 1))
    assert score.argmax() == 1 and conditional.argmax() == 0 and score[0, 2] == -np.inf
    # Swapped, the unconditional decides what is plausible and gets the sign.
    swapped = np.asarray(CONTRAST(unconditional, conditional, 0.4, 1))
    assert swapped.argmax() == 2 and swapped[0, 1] == -np.inf
    # Half of the second largest, 0.2, lets nothing more in; half of the third does.
    assert np.isfinite(CONTRAST(conditional, unconditional, 0.5, 2)).sum() == 2
    assert np.isfinite(CONTRAST(conditional, unconditional, 0.5, 3)).sum() == 3


def expected(row, seen, choice):
    """The distribution `choose` is to draw from, [v]."""
    row = row.astype(np.float64)
    if seen is not None:
        small = np.where(row > 0, row / choice.repetition, row * choice.repetition)
        row = np.where(seen, small, row)
    row = row / choice.temperature
    kept = kept_top_k(row, choice.top_k) & kept_top_p(row, choice.top_p)
    kept &= kept_min_p(row, choice.min_p)
    return softmax(np.array([x if i in kept else -np.inf for i, x in enumerate(row)]))


@pytest.mark.parametrize("choice", [OFF, replace(OFF, temperature=2.0), ALL])
def test_draws_are_as_frequent_as_they_are_probable(choice):
    n = 6000
    rng = np.random.default_rng(5)
    row, seen = rng.normal(size=V).astype(np.float32), rng.random(V) < 0.5
    keys = jax.random.split(jax.random.key(0), n)
    rows = (np.broadcast_to(x, (n, V)) for x in (row, seen))
    got = CHOOSE(next(rows), choice, keys, next(rows))
    assert got.dtype == jnp.int32
    found = np.bincount(got, minlength=V) / n

    def off(p):
        """Largest distance in standard deviations; ids that cannot be must not be."""
        sigma = np.sqrt(np.maximum(p * (1 - p), 1e-12) / n)
        return (np.abs(found - p) / sigma).max()

    assert off(expected(row, seen, choice)) < 4
    # At another temperature or without the penalty the frequencies are others.
    assert off(expected(row, seen, replace(choice, temperature=choice.temperature + 0.3))) > 4
    if choice.repetition != 1:
        assert off(expected(row, seen, replace(choice, repetition=1.0))) > 4


def test_zero_temperature_takes_the_likeliest_after_the_penalty():
    x = np.float32([[1.0, 3.0, 3.0, 2.9], [-1.0, -1.2, -5.0, -np.inf]])
    seen = np.array([[False, True, True, False], [True, False, False, False]])
    choice = replace(COLD, repetition=1.5, top_k=2, top_p=0.5, min_p=0.9)
    np.testing.assert_array_equal(CHOOSE(x, choice, KEYS[:2], seen), [3, 1])
    np.testing.assert_array_equal(CHOOSE(x, choice, KEYS[:2]), [1, 0])  # the lower of equal ids
    assert CHOOSE(x, choice, KEYS[:2]).dtype == jnp.int32


def test_the_penalty_comes_before_the_temperature():
    """Only so does a filter see the penalised distribution: top-k = 1 then takes the other id."""
    x = np.float32([[2.0, 1.9]])
    seen = np.array([[True, False]])
    choice = replace(OFF, repetition=1.5, top_k=1)
    assert CHOOSE(x, choice, KEYS[:1], seen)[0] == 1
    assert CHOOSE(x, choice, KEYS[:1])[0] == 0


def test_small_and_large_temperatures_stay_finite():
    x = random_logits(2)
    x[5, 3], x[5, 7] = 1e10, 2e10  # divided by 1e-30, both are beyond f32
    hot = np.asarray(CHOOSE(x, replace(ALL, temperature=1e30), KEYS))
    cold = np.asarray(CHOOSE(x, replace(ALL, temperature=1e-30, top_k=1), KEYS))
    np.testing.assert_array_equal(cold, x.argmax(-1))
    assert (x[np.arange(B), hot] > -np.inf).all() and (hot != cold).any()
    tied = np.broadcast_to(np.float32([0.0, 3e38, 3e38]), (64, 3))
    ids = CHOOSE(tied, replace(OFF, temperature=0.5), jax.random.split(jax.random.key(0), 64))
    assert set(ids.tolist()) == {1, 2}


@pytest.mark.parametrize("temperature,want", [(1.0, {0}), (4.0, {0, 1})])
def test_the_filters_come_after_the_temperature(temperature, want):
    """The second id is a ninth as likely as the first; at temperature 4, 0.58 times."""
    x = np.log(np.broadcast_to(np.float32([0.9, 0.1]), (64, 2)))
    keys = jax.random.split(jax.random.key(0), 64)
    ids = CHOOSE(x, replace(OFF, temperature=temperature, min_p=0.2), keys)
    assert set(ids.tolist()) == want


def test_a_row_does_not_depend_on_its_neighbours():
    x = random_logits(7)
    seen = np.random.default_rng(8).random((B, V)) < 0.5
    for choice in (OFF, ALL):
        ids = np.asarray(CHOOSE(x, choice, KEYS, seen))
        order = np.random.default_rng(9).permutation(B)
        moved = CHOOSE(x[order], choice, KEYS[order], seen[order])
        np.testing.assert_array_equal(moved, ids[order])
        for r in range(B):
            y, keys, other = random_logits(20 + r), jax.random.split(jax.random.key(r), B), ~seen
            y[r], keys, other[r] = x[r], keys.at[r].set(KEYS[r]), seen[r]
            assert CHOOSE(y, choice, keys, other)[r] == ids[r]
    # Keys do matter, and they are a row's own.
    same = np.zeros((B, V), np.float32)
    several = [
        np.asarray(CHOOSE(same, OFF, jax.random.split(jax.random.key(s), B))) for s in (0, 1)
    ]
    assert len(set(several[0])) > 1 and (several[0] != several[1]).any()


def test_a_row_without_any_id_gives_zero_and_harms_no_other():
    x = random_logits(4)
    want = {choice: np.asarray(CHOOSE(x, choice, KEYS)) for choice in (OFF, COLD, ALL)}
    x[1] = -np.inf
    for choice, ids in want.items():
        got = np.asarray(CHOOSE(x, choice, KEYS))
        np.testing.assert_array_equal(got, np.where(np.arange(B) == 1, 0, ids))
        assert choice == COLD or np.isneginf(FILTERED(x, choice)[1]).all()
    assert any(ids[1] != 0 for ids in want.values())


def sorts(choice: Choice) -> int:
    """How often the compiled choice sorts, wholly or in part."""
    text = str(jax.make_jaxpr(partial(choose, choice=choice))(random_logits(0), keys=KEYS))
    return sum(text.count(f"{name}[") for name in ("sort", "top_k"))


def test_filters_that_are_off_cost_nothing_and_all_share_one_sort():
    assert sorts(OFF) == sorts(replace(ALL, temperature=0.0)) == 0
    assert sorts(replace(OFF, min_p=0.1)) == 0
    assert sorts(replace(OFF, top_k=3)) == sorts(replace(OFF, top_p=0.9)) == sorts(ALL) == 1


def test_with_top_k_only_k_ids_are_sorted():
    """What XLA makes of it: 18 times as fast with 8 rows of 65,536 and k = 50."""
    wide = np.zeros((B, 300), np.float32)
    partial_sort, full_sort = (
        CHOOSE.lower(wide, choice, KEYS).compile().as_text()
        for choice in (ALL, replace(ALL, top_k=0))
    )
    assert " sort(" not in partial_sort and "TopK" in partial_sort
    assert " sort(" in full_sort


@pytest.mark.parametrize(
    "name,value",
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition", 0.0),
    ],
)
def test_a_choice_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=f"{name}={value} must lie between"):
        replace(OFF, **{name: value})


def test_a_choice_can_be_a_static_argument():
    assert hash(OFF) == hash(replace(OFF)) and OFF == replace(OFF) and OFF != COLD


def test_a_choice_whose_numbers_are_arguments_chooses_the_same():
    """One program for many choices, bit for bit what each is alone."""
    logits = 3.0 * jax.random.normal(jax.random.key(7), (64, 90))
    seen = jax.random.bernoulli(jax.random.key(8), 0.3, logits.shape)
    keys = jax.random.split(jax.random.key(9), 64)
    programs = jax.jit(partial(choose))
    sizes = set()
    for choice in (
        ALL,
        replace(ALL, top_k=17, temperature=1.3),
        replace(ALL, top_p=1.0, min_p=0.0, repetition=1.0),
        replace(ALL, temperature=0.0),
        replace(OFF, min_p=0.2),
        OFF,
        replace(OFF, top_p=0.5),
    ):
        rule = c.rule_of(choice)
        sizes.add(rule.ranked)
        np.testing.assert_array_equal(
            programs(logits, rule, keys, seen), CHOOSE(logits, choice, keys, seen)
        )
    assert programs._cache_size() == len(sizes) == 3
    for k in (1, 4, 90):
        exact = CONTRAST(logits[:32], logits[32:], 0.1, k=k)
        found = jax.jit(c.contrast, static_argnums=4)(logits[:32], logits[32:], 0.1, k, 128)
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(exact))
