"""PatchGAN, a discriminator that judges overlapping patches, and the losses of both players.

Isola et al. 2017 (arXiv 1611.07004, appendix 6.1.2) for the network; Esser et al. 2021 (VQGAN,
arXiv 2012.09841, section 3.1) for its use beside a reconstruction loss, with the hinge loss and the
constants of their code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.conv import Conv, group_norm
from mmjax.layers.weight import Layer

KERNEL, PAD = 4, (1, 1)
SLOPE = 0.2  # of the leaky ReLU
MOST = 8  # times the first width
BALANCE_EPS = 1e-4


class PatchGAN(Layer):
    """Convolutions of 4 x 4: `depth` of stride 2, one of stride 1, and one to a single channel.

    The original normalises over the batch, whose running mean would be a state of its own; here
    groups of channels of one picture are normalised instead, so no picture depends on another.

    Attributes:
        width: channels of the first convolution; they double from one to the next, up to 8 times.
        depth: convolutions of stride 2. With 3, a patch is 70 pixels wide.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, x):
        """[n, h, w, 3] in [-1, 1] -> [n, h', w', 1] f32, above 0 where a patch looks real.

        h' = floor(h / 2**depth) - 2, and w' likewise; see `smallest`.
        """
        at = (self.rules, self.dtype)
        for i in range(self.depth + 1):
            stride = 2 if i < self.depth else 1
            features = self.width * min(2**i, MOST)
            x = Conv(*at, features, KERNEL, stride, PAD, name=f"conv{i}")(x)
            if i:  # the first is not normalised: it would lose how bright a picture is
                x = group_norm(self, f"norm{i}", x)
            x = jax.nn.leaky_relu(x, SLOPE)
        return Conv(*at, 1, KERNEL, 1, PAD, name="out")(x).astype(jnp.float32)


def smallest(depth: int) -> int:
    """Side of the smallest picture of which a discriminator of this depth judges a patch.

    The stride-2 convolutions must leave 3 places, for each of the two others takes one.
    """
    return 3 * 2**depth


def hinge(real, fake):
    """Discriminator's loss of each picture: (mean relu(1 - D(x)) + mean relu(1 + D(x'))) / 2.

    Args:
        real: [n, h, w, 1], what it says of pictures.
        fake: [n, h, w, 1], of their reconstructions.

    Returns:
        [n], at least 0.
    """
    return 0.5 * (_mean(jax.nn.relu(1.0 - real)) + _mean(jax.nn.relu(1.0 + fake)))


def generator_loss(fake):
    """Generator's loss of each picture: [n, h, w, 1] -> [n], -mean D(x')."""
    return -_mean(fake)


def adaptive_weight(nll_grad, gan_grad, most: float = 1e4):
    """Weight of the generator's loss at which it pulls as hard as the reconstruction (eq. 7).

    Args:
        nll_grad: gradient of the reconstruction loss by the decoder's last kernel, of any shape.
        gan_grad: the same of the generator's loss.
        most: upper bound.

    Returns:
        |nll_grad| / (|gan_grad| + 1e-4), a scalar in [0, most] that passes no gradient on.
    """
    ratio = jnp.linalg.norm(nll_grad.ravel()) / (jnp.linalg.norm(gan_grad.ravel()) + BALANCE_EPS)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, most))


def _mean(x):
    return x.mean((1, 2, 3))
