"""The two halves of a small U-Net, between pictures and a decoder's positions.

Transfusion (section 3.1) and LMFusion put one on either side of the transformer: the first half
makes a vector of every patch, the second sees what the first saw at each resolution.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.conv import Conv, Residual, double, group_norm
from mmjax.layers.linear import linear
from mmjax.layers.weight import Layer, plus, zeros


def levels(patch: int) -> int:
    """How often a side is halved until a patch is one place; patch is a power of two."""
    return patch.bit_length() - 1


class Timed(Layer):
    """A residual block that is told the noise level."""

    channels: int

    @nn.compact
    def __call__(self, x, time):
        """x [n, h, w, c], time [n, f] -> [n, h, w, channels]."""
        at = (self.rules, self.dtype, self.channels)
        w = self.weight("time", (time.shape[-1], self.channels), (None, None))
        shift = linear(jax.nn.silu(time), w)
        x = plus(Conv(*at, kernel=1, name="in")(x), shift[:, None, None])
        return Residual(*at, name="block")(x)


class Down(Layer):
    """Noisy pictures -> patches.

    Attributes:
        channels: at every level. patch: a power of two. width: d.
    """

    channels: int
    patch: int
    width: int

    @nn.compact
    def __call__(self, x, time):
        """x [n, h, w, c], time [n, f] -> ([n, p, d], the features of each level for `Up`)."""
        at, n = (self.rules, self.dtype), x.shape[0]
        x = Conv(*at, self.channels, name="in")(x)
        skips = []
        for level in range(levels(self.patch)):
            x = Timed(*at, self.channels, name=f"level{level}")(x, time)
            skips.append(x)
            x = Conv(*at, self.channels, stride=2, name=f"down{level}")(x)
        x = Timed(*at, self.channels, name="last")(x, time).reshape(n, -1, self.channels)
        return linear(x, self.weight("out", (self.channels, self.width), (None, "embed"))), skips


class Up(Layer):
    """The decoder's outputs at patches, and what `Down` saw -> pictures; starts at zero.

    Attributes:
        channels, patch: as `Down` has them. out: numbers a pixel, c.
    """

    channels: int
    patch: int
    out: int

    @nn.compact
    def __call__(self, x, time, skips):
        """x [n, p, d], time [n, f] -> [n, h, w, c] f32."""
        at, side = (self.rules, self.dtype), skips[-1].shape[1] // 2 if skips else 0
        side = side or round(x.shape[1] ** 0.5)
        x = linear(x, self.weight("in", (x.shape[-1], self.channels), ("embed", None)))
        x = x.reshape(x.shape[0], side, -1, self.channels)
        for level in reversed(range(levels(self.patch))):
            x = Conv(*at, self.channels, name=f"up{level}")(double(x))
            x = jnp.concatenate([x, skips[level]], axis=-1)
            x = Timed(*at, self.channels, name=f"level{level}")(x, time)
        x = jax.nn.silu(group_norm(self, "out_norm", x))
        w = self.weight("out", (self.channels, self.out), (None, None), zeros)
        return linear(x, w, 1, "float32")


def flops(channels: int, patch: int, width: int, shape: tuple[int, int, int]) -> float:
    """Forward FLOPs of both halves on one signal of shape (h, w, c): convolutions, products."""
    h, w, out = shape
    places = [(h >> level) * (w >> level) for level in range(levels(patch) + 1)]
    block = 2 * channels**2 * (9 + 9)
    down = sum(p * (block + 2 * channels**2) for p in places)
    down += sum(p * 2 * 9 * channels**2 for p in places[1:]) + places[0] * 2 * 9 * out * channels
    up = sum(p * (block + 2 * channels**2 * 2 + 2 * 9 * channels**2) for p in places[:-1])
    ends = places[-1] * 2 * 2 * channels * width + places[0] * 2 * channels * out
    return float(down + up + ends)
