"""Edits held against the truth: what counts as changed as asked, and for whom."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny import tiny_chameleon_config

from mmjax import config, run
from mmjax.data import build, pipeline
from mmjax.data.pixels import decode_image
from mmjax.data.scenes import oracle
from mmjax.evals import edits, heldout
from mmjax.trained import Trained

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Trained:
    """A Chameleon that was never trained, on edits and captions."""
    home = tmp_path_factory.mktemp("edits")
    for name, told in (("changes", True), ("plain", False)):
        options = {"count": 150, "size": 32, "edits": told}
        build.build("scenes", home / name, options=options)
    c = tiny_chameleon_config(home / "plain", data__length=96, start={})
    source = c.data.sources.openmoji.to_dict()
    c.data.sources = {n: source | {"path": str(home / n)} for n in ("changes", "plain")}
    c.data.tokenizer = str(home / "plain" / "tokenizer.json")
    c.evals.drawings = 10
    parts = run.prepare(config.resolve(c, run.families()), ONE)
    return Trained(parts, parts.init().params, 0)


@pytest.fixture(scope="module")
def records(untrained):
    data = replace(untrained.run.experiment.data, coded=False)
    return list(pipeline.records(data, "changes", "test"))


def shown(records, which: int) -> np.ndarray:
    return np.stack([decode_image(r.images[which], 32, "pil_box") for r in records])


def test_the_truth_is_right_and_what_was_before_is_not(records):
    best, copied = (edits.judged(shown(records, i), records) for i in (1, 0))
    assert all(np.mean(column) > 0.9 for column in best.values())
    assert not any(copied["all"])
    kinds = [r.facts["edit"] for r in records]
    assert set(kinds) == set(edits.KINDS)
    for kind, ground, objects in zip(kinds, copied["background"], copied["objects"], strict=True):
        assert (not ground, objects) == ((kind == "ground"),) * 2  # each sees what it is named for


def test_the_background_counts_and_noise_on_it_does_not(records):
    after = shown(records, 1)
    noisy = np.clip(after + np.random.default_rng(0).integers(-9, 10, after.shape), 0, 255)
    for picture, rough, record in zip(after, noisy, records, strict=True):
        assert oracle.ground(picture) == record.facts["background"]
        assert oracle.ground(rough.astype(np.uint8)) == record.facts["background"]


def test_an_untrained_model_changes_nothing_as_asked(untrained, tmp_path):
    values = edits.evaluate(untrained, 0, tmp_path)
    for suffix in heldout.SPLITS.values():
        what, who = ("colours", "objects", "background", "all"), ("", "_blind", "_copied", "_codec")
        assert {f"edited_{a}{b}{suffix}" for a in what for b in who} <= set(values)
        ones = [values[f"edited_all{b}{suffix}"].value for b in ("", "_copied")]
        assert ones == [0.0, 0.0]
    for split in heldout.SPLITS:
        with PILImage.open(tmp_path / f"edited_{split}.png") as sheet:
            assert sheet.width > 300


def test_who_draws_the_truth_is_right_and_the_blind_are_asked_about_another_picture(
    untrained, records, tmp_path, monkeypatch
):
    e = untrained.run.experiment
    large = replace(e, data=replace(e.data, image=32, patch=8))
    whole = replace(untrained, run=replace(untrained.run, experiment=large))
    truth = {r.images[0]: p for r, p in zip(records, shown(records, 1), strict=True)}
    asked = []

    def draw(self, documents, seed=0, **options):
        asked.append(documents)
        return np.stack([truth[d[0].data] for d in documents])

    monkeypatch.setattr(Trained, "draw", draw)
    monkeypatch.setattr(edits.reconstruction, "reconstruct", lambda trained, pixels: pixels)
    found = edits.edited(whole, records, "test", 0, tmp_path)
    assert found["all"].value > 0.9 > 0.1 > found["all_blind"].value
    assert found["all_codec"].value == found["all"].value
    kinds = [found[f"all_{kind}"] for kind in edits.KINDS]
    assert sum(v.n for v in kinds) == len(records) and all(v.value > 0.8 for v in kinds)
    first, other = asked
    assert [d[0].data for d in first] == [r.images[0] for r in records]
    assert [d[0].data for d in other] == [r.images[0] for r in [*records[1:], records[0]]]
    assert [d[1] for d in first] == [d[1] for d in other] == [r.document[1] for r in records]


def test_models_of_captions_are_not_asked(untrained, tmp_path):
    e = untrained.run.experiment
    plain = replace(e.data, sources={"plain": e.data.sources["plain"]})
    other = replace(untrained.run, experiment=replace(e, data=plain))
    assert edits.evaluate(replace(untrained, run=other), 0, tmp_path) == {}
