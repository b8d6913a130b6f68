"""The score of what is drawn again: on drawings made for it, and on tiny runs of both families."""

import numpy as np
import pytest
from reconstructing import CASES, blinded, pairs

from mmjax.codecs import efficientnet
from mmjax.evals import EVALS, alignment, heldout, reconstruction, redrawing
from mmjax.evals.alignment import score


@pytest.mark.parametrize("family", CASES)
def test_a_run_is_scored_by_what_it_draws(family, reconstructing, tmp_path):
    model = reconstructing[family]
    found = EVALS["redrawing"](model, 0, tmp_path)
    which = ["ras_shuf", "ras_error_true", "ras_error_shuf"]
    which += ["ras", "ras_prior", "ras_error_prior"] * (family == "transfusion")
    kinds = ["pixels"] + ["features"] * efficientnet.installed()
    names = {f"{w}_drawn_{k}_{CASES[family]}" for w in which for k in kinds}
    splits = heldout.splits(model)
    assert set(found) == {n + s for n in names for s in splits.values()}
    assert all(value.low <= value.value <= value.high for value in found.values())
    assert all((tmp_path / f"redrawn_{split}.png").is_file() for split in splits)


@pytest.mark.parametrize("family", CASES)
def test_errors_begin_at_what_the_codec_loses(family, reconstructing):
    """Its own reconstructions are as near as can be, and score one."""
    model = reconstructing[family]
    true = reconstruction.pictures(model, pairs(model))
    best = reconstruction.reconstruct(model, true) if family == "chameleon" else true
    near, far = (np.where(true < 128, true + by, true - by).astype(np.uint8) for by in (60, 90))
    whole = redrawing.errors_of(model, true, {"true": [best], "shuf": [near, far]})
    for errors in whole.values():
        assert score(errors["true"], errors["shuf"], None, 0)["ras_shuf"].value == pytest.approx(1)
    floor = ((best.astype(float) - true) ** 2).mean()
    half = redrawing.errors_of(model, true, {"true": [near], "shuf": [near, far]})["pixels"]
    assert half["true"].mean() == pytest.approx(60**2 - floor)
    assert half["shuf"].mean() == pytest.approx((60**2 + 90**2) / 2 - floor)
    assert (floor > 100) == (family == "chameleon")


@pytest.mark.parametrize("family", CASES)
def test_conditions_meet_equal_noise_and_differ_by_what_is_read(family, reconstructing):
    model = reconstructing[family]
    records, layout = pairs(model)[:6], alignment.layout_of(model)
    other = np.roll(np.arange(6), 1)
    seen = redrawing.redrawn(model, layout, records, other, 0)
    blind = redrawing.redrawn(blinded(model), layout, records, other, 0)
    assert set(seen) == {"true", "shuf"} | ({"prior"} if layout.told else set())
    for one, same in zip(blind["true"], blind["shuf"], strict=True):
        np.testing.assert_array_equal(one, same)
    for one, none in zip(blind["true"], blind.get("prior", blind["true"]), strict=True):
        np.testing.assert_allclose(one, none, atol=1)  # rows of another length, the same noise
    assert all((a != b).any() for a, b in zip(seen["true"], seen["shuf"], strict=True))
    draws = seen["true"]
    assert len(draws) == redrawing.DRAWS and (draws[0] != draws[1]).any()
