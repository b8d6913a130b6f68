"""Distances of pictures against plain numpy and scipy."""

import jax
import numpy as np
import pytest
from scipy.ndimage import correlate1d

from mmjax.codecs import measure

RNG = np.random.default_rng(0)
A = RNG.uniform(-1, 1, (2, 16, 20, 3)).astype(np.float32)
B = np.clip(A + RNG.normal(0, 0.3, A.shape), -1, 1).astype(np.float32)


def smooth(x, size=11, sigma=1.5):
    """Gaussian mean of one channel [h, w] in f64, where the whole window fits."""
    at = np.arange(size) - (size - 1) / 2
    bell = np.exp(-(at**2) / (2 * sigma**2))
    for axis in (0, 1):
        x = correlate1d(x, bell / bell.sum(), axis)
    cut = size // 2
    return x[cut : x.shape[0] - cut, cut : x.shape[1] - cut]


def ssim_of(a, b):
    """Wang et al. 2004, equation 13, one channel as numbers from 0 to 255."""
    a, b = (127.5 * (x.astype(np.float64) + 1) for x in (a, b))
    ma, mb = smooth(a), smooth(b)
    va, vb = smooth(a * a) - ma**2, smooth(b * b) - mb**2
    cov = smooth(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * ma * mb + c1) * (2 * cov + c2)
    return (top / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def test_absolute_and_psnr_by_their_definitions():
    error = (A - B).astype(np.float64)
    np.testing.assert_allclose(measure.absolute(A, B), abs(error).mean((1, 2, 3)), rtol=1e-5)
    want = 10 * np.log10(4 / (error**2).mean((1, 2, 3)))
    np.testing.assert_allclose(measure.psnr(A, B), want, rtol=1e-5)
    half = np.asarray(measure.psnr(A, A + 0.5 * (B - A)))
    np.testing.assert_allclose(half - want, 20 * np.log10(2), rtol=1e-4)  # half the error, 6 dB


def test_psnr_of_equal_pictures_is_finite():
    assert np.isfinite(measure.psnr(A, A)).all()
    assert (measure.psnr(A, A) > 100).all()


def test_ssim_by_its_definition():
    want = [
        np.mean([ssim_of(a[..., c], b[..., c]) for c in range(3)])
        for a, b in zip(A, B, strict=True)
    ]
    np.testing.assert_allclose(jax.jit(measure.ssim)(A, B), want, atol=1e-4)
    flipped = np.asarray(measure.ssim(A, B[:, ::-1]))
    assert (abs(flipped - want) > 0.1).all()


def test_ssim_is_one_for_equals_and_falls_with_noise():
    np.testing.assert_allclose(measure.ssim(A, A), 1.0, atol=1e-5)
    found = [np.asarray(measure.ssim(A, A + s * (B - A))) for s in (0.1, 0.3, 1.0)]
    assert (np.diff(found, axis=0) < -0.005).all()


def test_ssim_sees_what_the_mean_square_does_not():
    """A shift of brightness and noise of the same energy: the structure is in the first one."""
    smooth_picture = np.broadcast_to(np.linspace(-0.8, 0.5, 20), A.shape[:3])[..., None] * np.ones(
        3
    )
    noise = RNG.choice([-0.2, 0.2], A.shape)
    brighter, noisy = smooth_picture + 0.2, smooth_picture + noise
    pictures = [x.astype(np.float32) for x in (smooth_picture, brighter, noisy)]
    np.testing.assert_allclose(*(measure.psnr(pictures[0], x) for x in pictures[1:]), rtol=1e-3)
    better, worse = (np.asarray(measure.ssim(pictures[0], x)) for x in pictures[1:])
    assert (better > worse + 0.2).all()


@pytest.mark.parametrize("size", [8, 10])
def test_pictures_smaller_than_the_window_get_a_smaller_one(size):
    """One window over all of it: means and variances weighted by the bell."""
    a, b = A[:, :size, :size], B[:, :size, :size]
    bell = np.exp(-((np.arange(size) - (size - 1) / 2) ** 2) / (2 * 1.5**2))
    bell = np.outer(bell, bell)[None, :, :, None] / bell.sum() ** 2
    x, y = (127.5 * (z.astype(np.float64) + 1) for z in (a, b))
    mx, my = ((bell * z).sum((1, 2), keepdims=True) for z in (x, y))
    vx, vy, cov = (
        (bell * z).sum((1, 2)) for z in ((x - mx) ** 2, (y - my) ** 2, (x - mx) * (y - my))
    )
    mx, my, c1, c2 = mx[:, 0, 0], my[:, 0, 0], (0.01 * 255) ** 2, (0.03 * 255) ** 2
    want = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    np.testing.assert_allclose(measure.ssim(a, b), want.mean(1), atol=1e-4)
    np.testing.assert_allclose(measure.ssim(a, a), 1.0, atol=1e-5)
    assert (np.asarray(measure.ssim(a, b)) < 0.99).all()
