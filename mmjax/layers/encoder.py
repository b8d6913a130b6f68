"""The encoder of ViT, CLIP and SigLIP: blocks normed before their branches, with biases everywhere.

Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.1; weights begin as in Radford et al. 2021
(arXiv 2103.00020), section 2.4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax

from mmjax.error import UserError
from mmjax.layers.attention import heads_first, weigh
from mmjax.layers.linear import linear
from mmjax.layers.norm import layer_norm
from mmjax.layers.weight import Layer, check_dtype, fan_in, normal, ones, zeros

ACTIVATIONS: dict[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # CLIP's
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def _sizes(width: int, depth: int, heads: int, mlp: int) -> dict[str, int]:
    return {"width": width, "depth": depth, "heads": heads, "mlp": mlp}


# The sizes that have names: Dosovitskiy et al. 2021, Zhai et al. 2022 (arXiv 2106.04560, g and G),
# Touvron et al. 2021 (arXiv 2012.12877, Ti and S), Alabdulmohsin et al. 2023 (arXiv 2305.13035).
VARIANTS = {
    "mu": _sizes(32, 1, 2, 128),  # for tests
    "Ti": _sizes(192, 12, 3, 768),
    "S": _sizes(384, 12, 6, 1536),
    "B": _sizes(768, 12, 12, 3072),
    "L": _sizes(1024, 24, 16, 4096),
    "So400m": _sizes(1152, 27, 16, 4304),
    "H": _sizes(1280, 32, 16, 5120),
    "g": _sizes(1408, 40, 16, 6144),
    "G": _sizes(1664, 48, 16, 8192),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
        width: d. depth: n layers. heads: h, divides d. mlp: f.
        activation: of the MLP, a key of ACTIVATIONS. eps: under the root of every norm.
        remat: recompute a block's activations in the backward pass.
        unroll: layers a compiled loop takes at a time. dtype: precision of activations.
    """

    width: int
    depth: int
    heads: int
    mlp: int
    activation: str
    eps: float
    remat: bool
    unroll: int
    dtype: str

    def __post_init__(self):
        """Checks fields against each other."""
        if self.width % self.heads:
            raise UserError(f"encoder.heads={self.heads} must divide encoder.width={self.width}")
        if self.activation not in ACTIVATIONS:
            have = ", ".join(ACTIVATIONS)
            raise UserError(f"encoder.activation={self.activation!r} is unknown; have: {have}")
        check_dtype(self.dtype, "encoder")


def norm(layer: Layer, name: str, x, eps: float):
    """LayerNorm of x [..., d] with scale and bias of `layer`."""
    shape = (x.shape[-1],)
    scale = layer.weight(f"{name}_scale", shape, (None,), ones, "float32")
    bias = layer.weight(f"{name}_bias", shape, (None,), zeros, "float32")
    return layer_norm(x, scale, bias, eps)


def affine(layer: Layer, name: str, x, shape, axes, init=fan_in, count: int = 1):
    """X times a weight of `layer`, plus a bias; the last `count` axes of x are contracted.

    The bias is kept as one axis whatever the output's are: it is no matrix to the optimizer.
    """
    y = linear(x, layer.weight(name, shape, axes, init), count)
    return layer.with_bias(name, y, y.ndim - len(shape[count:]))


class MultiHead(Layer):
    """Attention of one sequence to another, with biases.

    Attributes:
        heads: h. scale: standard deviation of the output's weights.
    """

    heads: int
    scale: float

    @nn.compact
    def __call__(self, x, memory, mask):
        """x [b, l, d] looks at memory [b, m, d] under mask [b or 1, l, m] -> [b, l, d]."""
        d, h = x.shape[-1], self.heads
        into, out = ("embed", "heads", None), ("heads", None, "embed")
        shape = (d, h, d // h)
        q = affine(self, "q", x, shape, into)
        k, v = (heads_first(affine(self, name, memory, shape, into)) for name in ("k", "v"))
        y, _ = weigh(q, k, v, mask)
        return affine(self, "o", y, (h, d // h, d), out, partial(normal, scale=self.scale), 2)


class Perceptron(Layer):
    """Linear, activation, linear, with biases."""

    c: EncoderConfig

    @nn.compact
    def __call__(self, x):
        """[..., d] -> [..., d]."""
        c, d = self.c, x.shape[-1]
        first, second = (2 * d) ** -0.5, d**-0.5 * (2 * c.depth) ** -0.5
        ways = ("embed", "mlp"), ("mlp", "embed")
        x = affine(self, "up", x, (d, c.mlp), ways[0], partial(normal, scale=first))
        x = ACTIVATIONS[c.activation](x)
        return affine(self, "down", x, (c.mlp, d), ways[1], partial(normal, scale=second))


class Block(Layer):
    """Attention and MLP, each in a residual branch behind a norm."""

    c: EncoderConfig

    @nn.compact
    def __call__(self, x, mask):
        """x [b, l, d] -> (x, x): carried on, and kept."""
        c = self.c
        scale = c.width**-0.5 * (2 * c.depth) ** -0.5
        y = norm(self, "attention_norm", x, c.eps)
        x = x + MultiHead(self.rules, self.dtype, c.heads, scale, name="attention")(y, y, mask)
        y = norm(self, "mlp_norm", x, c.eps)
        x = x + Perceptron(self.rules, self.dtype, c, name="mlp")(y)
        x = self.rules.constrain(x, "batch", "length", None)
        return x, x


class Encoder(Layer):
    """A stack of blocks; parameters of all layers lie stacked on axis 0. No norm at the end."""

    c: EncoderConfig

    @nn.compact
    def __call__(self, x, mask):
        """x [b, l, d], mask [b or 1, l, l] bool -> (x, what each block returned [n, b, l, d])."""
        c = self.c
        scan = nn.scan(
            nn.remat(Block, prevent_cse=False) if c.remat else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.depth,
            unroll=min(c.unroll, c.depth),
            metadata_params={nn.PARTITION_NAME: self.rules.layers},
        )
        return scan(self.rules, self.dtype, c, name="blocks")(x.astype(c.dtype), mask)
