"""The Fréchet distance of samples whose distance is known, and of pictures."""

import numpy as np
import pytest
from scipy import linalg

from mmjax.codecs import efficientnet
from mmjax.evals.frechet import distance_value, features, frechet

RNG = np.random.default_rng(0)


def direct(a, b):
    """By the definition, with a matrix square root."""
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    mean = a.mean(0) - b.mean(0)
    return mean @ mean + np.trace(covariances[0] + covariances[1] - 2 * root)


def test_it_is_the_definition():
    a, b = RNG.normal(size=(200, 8)), RNG.normal(size=(150, 8)) @ RNG.normal(size=(8, 8)) + 1.0
    np.testing.assert_allclose(frechet(a, b), direct(a, b), rtol=1e-9)
    np.testing.assert_allclose(frechet(b, a), frechet(a, b), rtol=1e-9)
    assert frechet(a, a) < 1e-9 < frechet(a, b)


def test_fewer_samples_than_numbers_are_no_trouble():
    a = RNG.normal(size=(20, 64))
    assert abs(frechet(a, a)) < 1e-9
    np.testing.assert_allclose(frechet(a, a + 0.5), 64 * 0.25, rtol=1e-9)  # only the mean moves


def test_the_interval_holds_the_value_and_shrinks_with_n():
    small, large = (
        distance_value(RNG.normal(size=(n, 4)), RNG.normal(size=(n, 4)) + 1.0, 0) for n in (50, 800)
    )
    assert small.low < small.value < small.high
    assert large.high - large.low < 0.5 * (small.high - small.low)
    assert large.low < 4.0 < large.high  # the truth: mean difference 1 in four places


@pytest.mark.skipif(not efficientnet.installed(), reason="needs the extra `perceptual`")
def test_noise_is_farther_from_pictures_than_pictures_are():
    from mmjax.data.scenes.items import items

    params = efficientnet.load()
    from mmjax.data.pixels import decode_image

    shown = [decode_image(i.read().images[0], 16, "pil_box") for i in items(96, size=16)]
    found = features(params, np.stack(shown))
    noise = features(params, RNG.integers(0, 256, (48, 16, 16, 3)).astype(np.uint8))
    assert found.shape == (96, 1280)
    assert frechet(found[:48], found[48:]) < 0.5 * frechet(found[:48], noise)
