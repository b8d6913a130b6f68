"""How near a reconstruction is to its picture."""

import jax
import jax.numpy as jnp

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window


def absolute(a, b):
    """[n, h, w, 3], the same -> [n] mean absolute difference."""
    return jnp.abs(a - b).mean((1, 2, 3))


def psnr(a, b, span: float = 2.0):
    """Peak signal-to-noise ratio in decibels, [n]; `span` is the range of values, 2 for [-1, 1]."""
    error = ((a - b) ** 2).mean((1, 2, 3))
    return 10.0 * jnp.log10(span**2 / jnp.maximum(error, 1e-10))


def ssim(a, b):
    """Structural similarity of [n, h, w, 3] pictures in [-1, 1], [n] at most 1 (Wang et al. 2004).

    Of amounts of light, so black counts as 0: around a mean of 0 the index means nothing. Means,
    variances and covariance under an 11 x 11 Gaussian window, K1 = 0.01, K2 = 0.03, over the places
    where the window fits, channel by channel. On pictures under 11 pixels the window is as large
    as they are.
    """
    a, b = (a + 1.0) / 2.0, (b + 1.0) / 2.0
    size = min(WINDOW, *a.shape[1:3])
    at = jnp.arange(size, dtype=jnp.float32) - (size - 1) / 2
    bell = jnp.exp(-(at**2) / (2 * SIGMA**2))
    bell = bell / bell.sum()

    def mean(x):
        kernel = jnp.tile(bell[:, None, None, None], (1, 1, 1, x.shape[-1]))
        for one in (kernel, jnp.swapaxes(kernel, 0, 1)):
            x = jax.lax.conv_general_dilated(
                x, one, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=x.shape[-1],
                # In bf16, which is what TPUs take by default, variances would be lost.
                precision=jax.lax.Precision.HIGHEST,
            )  # fmt: skip
        return x

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * ma * mb + c1) * (2 * cov + c2)
    return (top / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean((1, 2, 3))
