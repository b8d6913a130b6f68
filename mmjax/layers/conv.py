"""Convolutions on pictures [n, h, w, c], and the blocks image codecs are made of.

The blocks are those of VQGAN (Esser et al. 2021), whose shapes Chameleon's tokenizer has.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.linear import precision
from mmjax.layers.weight import Layer, fan_in_of, ones, plus, repeat, zeros

GROUPS = 32
GROUP_EPS = 1e-6
SPLIT = 32  # a number of channels that is a multiple of it may be split over devices


class Conv(Layer):
    """A convolution with bias.

    Attributes:
        features: channels out. kernel: its side. stride: places a step.
        pad: zeros before and behind each axis; by default those that keep the size (stride 1), or
            one behind and none before (stride 2), as VQGAN has it.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    pad: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x):
        """[n, h, w, c] -> [n, h', w', features]."""
        k, c = self.kernel, x.shape[-1]
        axis = "embed" if self.features % SPLIT == 0 else None
        shape = (k, k, c, self.features)
        w = self.weight("w", shape, (None, None, None, axis), fan_in_of(k * k * c))
        bias = self.weight("bias", (self.features,), (axis,), zeros, "float32")
        same = (k // 2, k // 2) if self.stride == 1 else (0, 1)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            w,
            (self.stride, self.stride),
            (self.pad or same,) * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision(w),
        )
        return plus(y, bias[None, None, None])


def group_norm(layer: Layer, name: str, x):
    """GroupNorm of x [n, h, w, c] with learned scale and bias of `layer`, in f32.

    32 groups, or the most that c divides into.
    """
    n, h, w, c = x.shape
    groups = next(g for g in range(min(GROUPS, c), 0, -1) if c % g == 0)
    scale = layer.weight(f"{name}_scale", (c,), (None,), ones, "float32")
    bias = layer.weight(f"{name}_bias", (c,), (None,), zeros, "float32")
    y = x.astype(jnp.float32).reshape(n, h * w, groups, c // groups)
    y = y - y.mean((1, 3), keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean((1, 3), keepdims=True) + GROUP_EPS)
    y = y.reshape(x.shape) * scale[None, None, None] + bias[None, None, None]
    return y.astype(x.dtype)


class Residual(Layer):
    """Norm, SiLU, convolution, twice, beside a skip; `features` channels out."""

    features: int

    @nn.compact
    def __call__(self, x):
        """[n, h, w, c] -> [n, h, w, features]."""
        at = (self.rules, self.dtype, self.features)
        y = Conv(*at, name="first")(jax.nn.silu(group_norm(self, "first_norm", x)))
        y = Conv(*at, name="second")(jax.nn.silu(group_norm(self, "second_norm", y)))
        if x.shape[-1] != self.features:
            x = Conv(*at, kernel=1, name="skip")(x)
        return x + y


class PlaceAttention(Layer):
    """Every place of a picture looks at every other; one head, beside a skip."""

    @nn.compact
    def __call__(self, x):
        """[n, h, w, c] -> the same."""
        n, h, w, c = x.shape
        at, y = (self.rules, self.dtype, c, 1), group_norm(self, "norm", x)
        q, k, v = (Conv(*at, name=name)(y).reshape(n, h * w, c) for name in "qkv")
        product = partial(jnp.einsum, precision=precision(v))
        scores = product("nqc,nkc->nqk", q, k, preferred_element_type=jnp.float32) * c**-0.5
        y = product("nqk,nkc->nqc", jax.nn.softmax(scores).astype(v.dtype), v)
        return x + Conv(*at, name="o")(y.reshape(x.shape))


def double(x):
    """[n, h, w, c] -> [n, 2 h, 2 w, c], each place repeated."""
    return repeat(repeat(x, 2, axis=1), 2, axis=2)
