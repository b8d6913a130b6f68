"""PatchGAN: a discriminator that judges overlapping patches (Isola et al. 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.conv import Conv, group_norm
from mmjax.layers.weight import Layer

SLOPE = 0.2  # of the leaky ReLU
PAD = (1, 1)


class PatchGAN(Layer):
    """Convolutions of 4 x 4: `depth` of stride 2, one of stride 1, and one to a single channel.

    The original normalises over the batch, whose running mean would be a state of its own; here
    groups of channels of one picture are normalised instead.

    Attributes:
        width: channels of the first convolution; they double from one to the next, up to 8 times.
        depth: convolutions of stride 2.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, x):
        """[n, h, w, 3] in [-1, 1] -> [n, h', w', 1] f32, above 0 where a patch looks real."""
        at = (self.rules, self.dtype)
        for i in range(self.depth + 1):
            stride = 2 if i < self.depth else 1
            features = self.width * min(2**i, 8)
            x = Conv(*at, features, 4, stride, PAD, name=f"conv{i}")(x)
            if i:
                x = group_norm(self, f"norm{i}", x)
            x = jax.nn.leaky_relu(x, SLOPE)
        return Conv(*at, 1, 4, 1, PAD, name="out")(x).astype(jnp.float32)


def smallest(depth: int) -> int:
    """Side of the smallest picture that a discriminator of this depth sees a patch of."""
    return 2**depth * 3


def hinge(real, fake):
    """Discriminator's loss, [n]: (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2."""
    a, b = (jax.nn.relu(1.0 + sign * x).mean((1, 2, 3)) for sign, x in ((-1.0, real), (1.0, fake)))
    return 0.5 * (a + b)


def generator_loss(fake):
    """Generator's loss, [n]: -mean D(x')."""
    return -fake.mean((1, 2, 3))


def adaptive_weight(nll_grad, gan_grad, most: float = 1e4):
    """|grad nll| / |grad gan| at the last layer, at most `most` (VQGAN, Esser et al., eq. 7)."""
    ratio = jnp.linalg.norm(nll_grad.ravel()) / (jnp.linalg.norm(gan_grad.ravel()) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, most))
