"""What a codec is told it keeps: measured on held-out pictures, against the mean picture."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny import tiny_codec, tiny_codec_config

from mmjax import config, run
from mmjax.batch import Image, Text
from mmjax.codecs import efficientnet
from mmjax.data import build, pipeline
from mmjax.evals import frechet, heldout, reconstruction
from mmjax.trained import Trained

ONE = jax.devices()[:1]
COUNT = 14


def codec(data, **changes) -> Trained:
    """A codec that was never trained."""
    c = tiny_codec_config(data, **changes)
    c.evals.documents = COUNT
    parts = run.prepare(config.resolve(c, run.families()), ONE)
    return Trained(parts, parts.init().params, 0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("reconstruction") / "scenes"
    build.build("scenes", path, options={"count": 150, "size": 16, "level": 3})
    return path


@pytest.fixture(scope="module")
def untrained(scenes) -> Trained:
    return codec(scenes)


@pytest.fixture(scope="module")
def true(untrained):
    split = next(iter(heldout.splits(untrained)))
    return reconstruction.pictures(untrained, heldout.draw(untrained, split, COUNT, 0))


def test_every_split_has_its_distances_and_its_sheet(untrained, tmp_path):
    values = reconstruction.evaluate(untrained, 0, tmp_path)
    splits = heldout.splits(untrained)
    names = [f"{m}{b}" for m in reconstruction.MEASURES for b in ("", "_mean_picture")]
    wanted = {f"{n}{s}" for n in names for s in splits.values()}
    for name in ("codes_used", "perplexity"):
        wanted |= {name} | {f"{name}_heldout{s}" for s in splits.values()}
    assert set(values) == wanted and 0 < values["codes_used"].value <= 1
    held = values["codes_used_heldout"]
    assert held.n < values["codes_used"].n and 0 < held.value <= values["codes_used"].value
    assert 1 <= values["perplexity"].value <= 12
    assert values["psnr_mean_picture"].value > values["psnr"].value  # it has learnt nothing yet
    for split in splits:
        with PILImage.open(tmp_path / f"reconstructed_{split}.png") as sheet:
            assert sheet.width > 300


def test_a_perfect_codec_is_told_so_and_a_noisy_one_is_not(untrained, true, tmp_path, monkeypatch):
    monkeypatch.setattr(reconstruction, "reconstruct", lambda trained, pixels: pixels)
    best = reconstruction.evaluate(untrained, 0, tmp_path)
    assert best["absolute"].value == 0.0 and best["psnr"].value > 100
    np.testing.assert_allclose(best["ssim"].value, 1.0, rtol=1e-5)
    noise = np.random.default_rng(0).integers(-20, 21, (COUNT, 8, 8, 3))

    def noisy(trained, pixels):
        return np.clip(pixels + noise[: len(pixels)], 0, 255).astype(np.uint8)

    monkeypatch.setattr(reconstruction, "reconstruct", noisy)
    worse = reconstruction.evaluate(untrained, 0, tmp_path)
    assert worse["psnr"].value < 30 and worse["ssim"].value < 0.99
    assert worse["psnr_mean_picture"] == best["psnr_mean_picture"]


def test_codes_are_counted_over_all_pictures(untrained, true):
    found = reconstruction.usage(untrained, true, 0)
    ids = reconstruction.in_parts(untrained, reconstruction.encode, true)
    share = np.bincount(ids.ravel(), minlength=12) / ids.size
    assert found["codes_used"].value == (share > 0).mean()
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    np.testing.assert_allclose(found["perplexity"].value, np.exp(entropy), rtol=1e-5)
    one = reconstruction.usage(untrained, true[:1], 0)
    assert one["perplexity"].value < found["perplexity"].value


def test_codes_of_several_books_are_counted_book_by_book(scenes, monkeypatch):
    """Two books of six: of the first one code is used, of the second all."""
    two = codec(scenes, model__codec=tiny_codec(kind="rvq", depth=2, codes=6))
    ids = np.stack([np.full(60, 3), 6 + np.arange(60) % 6], axis=-1)
    monkeypatch.setattr(reconstruction, "in_parts", lambda *_: ids.reshape(5, 24))
    found = reconstruction.usage(two, np.zeros((5, 8, 8, 3), np.uint8), 0)
    np.testing.assert_allclose(found["perplexity"].value, (1 + 6) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["codes_used"].value, 7 / 12, rtol=1e-6)


@pytest.mark.skipif(not efficientnet.installed(), reason="needs the extra `perceptual`")
def test_reconstructions_are_compared_as_a_distribution(untrained, true, tmp_path, monkeypatch):
    names = {f"frechet_lite0{t}{s}" for t in ("", "_true") for s in ("", "_concepts")}
    bad = frechet.reconstructed(untrained, 0, tmp_path)
    assert set(bad) == names and bad["frechet_lite0"].value > bad["frechet_lite0_true"].value
    monkeypatch.setattr(frechet, "reconstruct", lambda trained, pixels: pixels)
    best = frechet.reconstructed(untrained, 0, tmp_path)
    assert abs(best["frechet_lite0"].value) < 1e-6
    assert best["frechet_lite0_true"] == bad["frechet_lite0_true"]


@pytest.mark.skipif(not efficientnet.installed(), reason="needs the extra `perceptual`")
def test_drawings_are_shown_beside_what_their_codec_can(untrained, tmp_path, monkeypatch):
    def perfect(trained, split, count, seed):
        records = heldout.draw(trained, split, count, seed)
        return records, reconstruction.pictures(trained, records)

    monkeypatch.setattr(heldout, "drawings", perfect)
    count, how = untrained.run.experiment.evals.drawings, partial(frechet.both_ways, untrained)
    found = frechet.evaluate(untrained, 0, tmp_path)
    alone = frechet.compare(untrained, count, 0, {"": how})
    for ending in ("", "_concepts"):
        assert abs(found[f"frechet_lite0{ending}"].value) < 1e-6
        assert found[f"frechet_lite0_codec{ending}"] == alone[f"frechet_lite0{ending}"]
        assert found[f"frechet_lite0_codec{ending}"].value > 1.0
    assert len(found) == 6


def test_without_the_feature_network_nothing_is_compared(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet, "installed", lambda: False)
    assert frechet.reconstructed(untrained, 0, tmp_path) == {}


def test_pictures_are_measured_whatever_stands_beside_them(untrained, scenes):
    """A codec reads no text: there may be none, or one longer than a row of its training."""
    patches = untrained.run.experiment.data.patches
    short = codec(scenes, data__length=patches + 5)
    for split in ("train", *heldout.splits(untrained)):
        there = len(pipeline.records(short.run.experiment.data, "openmoji", split))
        assert len(heldout.draw(short, split, COUNT, 0)) == min(COUNT, there) > 9
    record = pipeline.records(short.run.experiment.data, "openmoji", "train")[0]
    bare = replace(record, document=tuple(p for p in record.document if isinstance(p, Image)))
    blank = replace(record, document=tuple(p for p in record.document if isinstance(p, Text)))
    assert heldout.is_asked(short, record) and heldout.is_asked(short, bare)
    assert not heldout.is_asked(short, blank)
    e = replace(short.run.experiment, family="transfusion")
    reader = replace(short, run=replace(short.run, experiment=e))
    assert heldout.is_asked(reader, record) and not heldout.is_asked(reader, bare)
    assert heldout.draw(reader, "train", COUNT, 0) == []


def test_without_pictures_there_is_nothing_to_measure(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "draw", lambda *_: [])
    assert reconstruction.evaluate(untrained, 0, tmp_path) == {}
