"""What a codec is told it keeps: measured on held-out pictures, against the mean picture."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny import tiny_codec_config

from mmjax import config, run
from mmjax.codecs import efficientnet
from mmjax.data import build
from mmjax.evals import frechet, heldout, reconstruction
from mmjax.trained import Trained

ONE = jax.devices()[:1]
COUNT = 14


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Trained:
    """A codec that was never trained, on scenes."""
    home = tmp_path_factory.mktemp("reconstruction") / "scenes"
    build.build("scenes", home, options={"count": 150, "size": 16, "level": 3})
    c = tiny_codec_config(home)
    c.evals.documents = COUNT
    parts = run.prepare(config.resolve(c, run.families()), ONE)
    return Trained(parts, parts.init().params, 0)


@pytest.fixture(scope="module")
def true(untrained):
    split = next(iter(heldout.splits(untrained)))
    return reconstruction.pictures(untrained, heldout.draw(untrained, split, COUNT, 0))


def test_every_split_has_its_distances_and_its_sheet(untrained, tmp_path):
    values = reconstruction.evaluate(untrained, 0, tmp_path)
    splits = heldout.splits(untrained)
    names = [f"{m}{b}" for m in reconstruction.MEASURES for b in ("", "_mean_picture")]
    wanted = {f"{n}{s}" for n in names for s in splits.values()} | {"codes_used", "perplexity"}
    assert set(values) == wanted and 0 < values["codes_used"].value <= 1
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


@pytest.mark.skipif(not efficientnet.installed(), reason="needs the extra `perceptual`")
def test_reconstructions_are_compared_as_a_distribution(untrained, true, tmp_path, monkeypatch):
    names = {f"frechet_lite0{t}{s}" for t in ("", "_true") for s in ("", "_concepts")}
    bad = frechet.reconstructed(untrained, 0, tmp_path)
    assert set(bad) == names and bad["frechet_lite0"].value > bad["frechet_lite0_true"].value
    monkeypatch.setattr(frechet, "reconstruct", lambda trained, pixels: pixels)
    best = frechet.reconstructed(untrained, 0, tmp_path)
    assert abs(best["frechet_lite0"].value) < 1e-6
    assert best["frechet_lite0_true"] == bad["frechet_lite0_true"]


def test_without_the_feature_network_nothing_is_compared(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet, "installed", lambda: False)
    assert frechet.reconstructed(untrained, 0, tmp_path) == {}


def test_pictures_without_texts_are_no_trouble(untrained, tmp_path, monkeypatch):
    monkeypatch.setattr(heldout, "draw", lambda *_: [])
    assert reconstruction.evaluate(replace(untrained), 0, tmp_path) == {}
