"""Numbers with intervals, and the draw of distractors."""

import numpy as np
import pytest

from mmjax.evals import heldout
from mmjax.evals.value import proportion, ratio


def test_wilson_interval_of_a_known_case():
    v = proportion([True] * 8 + [False] * 2, seed=3)
    assert v.value == 0.8 and v.n == 10 and v.seed == 3
    np.testing.assert_allclose((v.low, v.high), (0.4902, 0.9433), atol=1e-4)
    assert v.as_dict() == {"value": 0.8, "n": 10, "seed": 3, "ci95": [v.low, v.high]}


def test_interval_narrows_with_n():
    few, many = proportion([1, 0] * 5, 0), proportion([1, 0] * 500, 0)
    assert many.high - many.low < 0.2 * (few.high - few.low) * 1.5


def test_ratio_weighs_units_by_their_count():
    v = ratio([1.0, 30.0], [1, 10], seed=0)
    assert v.value == pytest.approx(31 / 11)
    assert v.low <= v.value <= v.high
    assert ratio([1.0, 1.0], [1, 1], 0).low == 1.0


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(40):
        x = rng.normal(2.0, 1.0, 60)
        v = ratio(x, np.ones(60), seed)
        hits += v.low <= 2.0 <= v.high
    assert 34 <= hits <= 40


def test_the_interval_of_few_covers_the_mean_too():
    rng = np.random.default_rng(0)
    found = [ratio(rng.normal(2.0, 1.0, 4), np.ones(4), seed) for seed in range(200)]
    assert np.mean([v.low <= 2.0 <= v.high for v in found]) > 0.9


def test_others_are_distinct_and_begin_with_the_truth():
    table = heldout.others(range(30), 10, seed=0)
    assert table.shape == (30, 10)
    np.testing.assert_array_equal(table[:, 0], np.arange(30))
    assert all(len(set(row)) == 10 for row in table)
    assert (table != heldout.others(range(30), 10, seed=1)).any()
    # Of equal names no two are in a row; where there are too few names there is no table.
    names = [f"name {i % 12}" for i in range(30)]
    table = heldout.others(names, 10, seed=0)
    assert table[:, 0].tolist() == [*range(30)] and table.shape == (30, 10)
    assert all(len({names[j] for j in row}) == 10 for row in table)
    assert len(set(table.ravel().tolist())) == 30
    assert heldout.others(names[:9] * 3, 10, seed=0).shape == (0, 10)
