"""The reconstruction-alignment score: its arithmetic, and on tiny runs of both families."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reconstructing import CASES, blinded, pairs

from mmjax.batch import Image, Text
from mmjax.data.tokenizer import encode
from mmjax.evals import EVALS, alignment, heldout
from mmjax.evals.alignment import at_k, derangement, score, strata
from mmjax.evals.heldout import Pair

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.5, 2.0, 300)  # how hard each picture is


def noisy(scale: float = 0.02) -> np.ndarray:
    return BASE + RNG.normal(0, scale, len(BASE))


def test_a_model_that_ignores_pictures_scores_nothing():
    found = score(noisy(), noisy(), noisy(), seed=0)
    errors = {f"ras_error_{name}" for name in ("true", "shuf", "prior")}
    assert set(found) == {"ras", "ras_prior", "ras_shuf"} | errors
    for name in ("ras_prior", "ras_shuf"):
        assert found[name].low < 0 < found[name].high and abs(found[name].value) < 0.01
    seeing = score(0.8 * BASE, noisy(), noisy(), seed=0)
    assert seeing["ras"].low > 0.15
    alone = at_k(np.repeat(BASE[:, None], 16, axis=1), seed=0)  # the same error whatever it read
    assert alone.low < 1 / 16 < alone.high
    lots = at_k(BASE[:, None] + RNG.normal(0, 1, (300, 16)), seed=0)
    assert lots.low < 1 / 16 < lots.high


def test_a_copier_scores_one_and_a_misled_model_less_than_nothing():
    assert score(1e-9 * BASE, BASE, BASE, 0)["ras"].value > 0.999999
    own = np.eye(300, 16)[:, :1] * 0
    assert at_k(np.hstack([own, np.ones((300, 15))]), 0).value == 1.0
    assert at_k(np.hstack([own + 2, np.ones((300, 15))]), 0).value == 0.0
    assert score(2 * BASE, BASE, BASE, 0)["ras"].value == pytest.approx(-1.0)


def test_the_score_is_the_smaller_ratio_of_means():
    true, shuf, prior = 0.5 * BASE, 0.8 * BASE, BASE[::-1]
    found = score(true, shuf, prior, seed=1)
    assert found["ras_shuf"].value == pytest.approx(1 - 0.5 / 0.8)
    assert found["ras_prior"].value == pytest.approx(0.5)
    assert found["ras"].value == found["ras_shuf"].value
    assert score(true, shuf, 0.7 * BASE, 1)["ras"].value == pytest.approx(1 - 0.5 / 0.7)
    only = score(true, shuf, None, 1)
    same = ("ras_shuf", "ras_error_true", "ras_error_shuf")
    assert only == {name: found[name] for name in same}
    bare = score(true, shuf, None, 1, bare=prior)
    assert bare["ras_bare"] == found["ras_prior"] != found["ras_shuf"] and "ras" not in bare
    means = [found[f"ras_error_{name}"].value for name in ("true", "shuf", "prior")]
    assert means == pytest.approx([e.mean() for e in (true, shuf, prior)])
    # A mean of ratios would be another number.
    assert abs((1 - true / prior).mean() - 0.5) > 0.05


def test_intervals_keep_a_pictures_errors_together():
    """Errors that go up and down together leave the ratio nearly fixed; unpaired they would not."""
    true = 0.5 * BASE + RNG.normal(0, 1e-3, 300)
    paired = score(true, BASE, BASE, 0)["ras"]
    apart = score(RNG.permutation(true), BASE, BASE, 0)["ras"]
    assert paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)


def test_a_constant_changes_ratios_and_no_order():
    errors = RNG.uniform(1, 2, (300, 16))
    assert at_k(errors + 5, 0) == at_k(errors, 0)
    a, b = score(0.5 * BASE, BASE, BASE, 0), score(0.5 * BASE + 5, BASE + 5, BASE + 5, 0)
    assert 0 < b["ras"].value < a["ras"].value


def test_the_order_of_pictures_does_not_matter():
    true, shuf, prior, order = noisy() * 0.7, noisy(), noisy(), RNG.permutation(300)
    a, b = score(true, shuf, prior, 0), score(true[order], shuf[order], prior[order], 0)
    for name, value in a.items():
        assert b[name].value == pytest.approx(value.value)
    mixed = score(true[order], shuf, prior, 0)
    assert mixed["ras"].value == pytest.approx(a["ras"].value)  # of means; the interval is not
    assert mixed["ras"].low < a["ras"].low


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 99))
def test_nothing_keeps_its_place_and_strata_are_kept(labels, seed):
    labels = np.array(labels)
    other = derangement(labels, seed)
    assert sorted(other) == list(range(len(labels))) and (other != np.arange(len(labels))).all()
    np.testing.assert_array_equal(other, derangement(labels, seed))
    counts = np.bincount(labels)
    if counts[counts > 0].min() >= 2:
        np.testing.assert_array_equal(labels[other], labels)


def test_derangements_differ_by_seed_and_need_two():
    labels = np.zeros(50, int)
    assert (derangement(labels, 0) != derangement(labels, 1)).any()
    with pytest.raises(ValueError, match="1 pictures cannot change places"):
        derangement(np.zeros(1, int), 0)


def test_strata_are_quarters_by_length():
    lengths = RNG.integers(3, 40, 101)
    found = strata(lengths)
    assert sorted(set(found)) == [0, 1, 2, 3] and np.bincount(found).min() >= 25
    for low, high in ((0, 1), (1, 2), (2, 3)):
        assert lengths[found == low].max() <= lengths[found == high].min()


def test_pictures_that_stand_twice_are_taken_once():
    pairs = [Pair("a", b"1"), Pair("b", b"2"), Pair("c", b"1"), Pair("d", b"3")]
    assert [p.caption for p in alignment.distinct(pairs)] == ["a", "b", "d"]


@pytest.mark.parametrize("family", CASES)
def test_a_run_is_scored_with_its_own_bottleneck(family, reconstructing, tmp_path):
    model = reconstructing[family]
    found = EVALS["alignment"](model, 0, tmp_path)
    told = family == "transfusion"
    errors = {f"ras_error_{n}" for n in ("true", "shuf", "prior" if told else "bare")}
    names = {"ras_shuf", "ras_at_16"} | ({"ras", "ras_prior"} if told else {"ras_bare"}) | errors
    want = {f"{n}_{CASES[family]}" for n in names} | {"grounding_gap", "grounding_gap_token"}
    suffixes = list(heldout.splits(model).values())
    assert set(found) == {n + s for n in want for s in suffixes} and found
    for name, value in found.items():
        assert value.low <= value.value <= value.high and np.isfinite(value.value), name
    assert all(found[f"{n}_{CASES[family]}"].value > 0 for n in errors)
    again = EVALS["alignment"](model, 0, tmp_path)
    assert again == found
    assert abs(found[f"ras_shuf_{CASES[family]}"].value) < 0.5  # two steps


def parts_of(model):
    return alignment.layout_of(model), pairs(model)


@pytest.mark.parametrize("family", CASES)
def test_errors_do_not_depend_on_what_else_is_scored(family, reconstructing, monkeypatch):
    model = reconstructing[family]
    layout, records = parts_of(model)
    numbers = np.arange(6)
    some = [alignment.document(layout, records[n + 1], records[n]) for n in numbers]
    whole = alignment.picture_errors(model, some, numbers, 0, 2)
    assert np.unique(whole).size == 6
    monkeypatch.setattr(alignment, "ROWS", 4)
    np.testing.assert_allclose(
        alignment.picture_errors(model, some, numbers, 0, 2), whole, rtol=1e-4
    )
    back = alignment.picture_errors(model, some[::-1], numbers[::-1], 0, 2)[::-1]
    np.testing.assert_allclose(back, whole, rtol=1e-4)
    # Equal numbers meet equal noise, others meet other noise: where there is any.
    same = alignment.picture_errors(model, some[:1] * 2, np.array([7, 7]), 0, 2)
    other = alignment.picture_errors(model, some[:1] * 2, np.array([7, 8]), 0, 2)
    assert same[0] == same[1]
    assert (other[0] != other[1]) == (family == "transfusion")


@pytest.mark.parametrize("family", CASES)
def test_an_untrained_answer_is_compared_with_equal_noise(family, reconstructing):
    """Weights that cannot see: with attention's output at zero, all conditions are equal."""
    model = reconstructing[family]
    layout, records = parts_of(model)
    blind = blinded(model)
    answers = np.arange(4)
    reads = ([records[n] for n in answers], [records[n + 4] for n in answers])
    if layout.told:
        reads += ([None] * 4,)

    def errors(at, some):
        documents = [
            alignment.document(layout, r, records[n]) for n, r in zip(answers, some, strict=True)
        ]
        return alignment.picture_errors(at, documents, answers, 0, 2)

    found = [errors(blind, some) for some in reads]
    alone = [(Image(records[n].image),) for n in answers]
    found.append(alignment.picture_errors(blind, alone, answers, 0, 2))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)
    seen = [errors(model, some) for some in reads]
    assert all((np.abs(other - seen[0]) > 1e-6).any() for other in seen[1:])


def test_errors_of_codes_are_the_likelihood_of_the_answer_alone(reconstructing):
    model = reconstructing["chameleon"]
    layout, records = parts_of(model)
    made = alignment.document(layout, records[1], records[0])
    error = alignment.picture_errors(model, [made], np.array([0]), 0, 1)
    logs = model.call(alignment.text_log_likelihood, model.rows([made]))
    p = model.run.model.parts.config.tokens
    at = np.flatnonzero(np.asarray(model.rows([made]).image[0]) == 2)
    assert len(at) == p
    np.testing.assert_allclose(error, -logs[0, at].mean(), rtol=1e-5)
    read = np.flatnonzero(np.asarray(model.rows([made]).image[0]) == 1)
    assert abs(error[0] + logs[0, read].mean()) > 1e-4


def test_the_grounding_gap_is_a_difference_of_scores(reconstructing):
    model = reconstructing["transfusion"]
    _, records = parts_of(model)
    other = derangement(np.zeros(len(records), int), 0)
    found = alignment.grounding(model, records, other, 0)
    own = model.score([[Image(r.image), Text(r.caption)] for r in records])
    changed = model.score(
        [[Image(records[n].image), Text(r.caption)] for n, r in zip(other, records, strict=True)]
    )
    tokens = sum(len(encode(model.run.tokenizer, r.caption)) + 1 for r in records)
    assert found["grounding_gap"].value == pytest.approx((own - changed).mean(), abs=1e-4)
    want = (own - changed).sum() / tokens
    assert found["grounding_gap_token"].value == pytest.approx(want, abs=1e-5)
    nothing = alignment.grounding(model, records, np.arange(len(records)), 0)
    assert nothing["grounding_gap"].value == pytest.approx(0, abs=1e-4)
    assert abs(found["grounding_gap"].value) > 1e-4


def test_rows_too_short_are_not_scored(reconstructing, tmp_path):
    model = reconstructing["transfusion"]
    e = model.run.experiment
    small = replace(model.run, experiment=replace(e, data=replace(e.data, length=40)))
    assert alignment.evaluate(replace(model, run=small), 0, tmp_path) == {}
    assert alignment.layout_of(model).bottleneck == "registers"
