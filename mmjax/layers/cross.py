"""Gated cross-attention: a frozen language model's layers get a block that looks at pictures.

Alayrac et al. 2022 (arXiv 2204.14198), section 3.1.2; with the options of OpenFlamingo and IDEFICS.
Gates begin at zero, so that a model begins as the language model it was.
"""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from mmjax.error import UserError
from mmjax.layers.attention import KV, heads_first, weigh
from mmjax.layers.encoder import ACTIVATIONS, norm
from mmjax.layers.linear import linear
from mmjax.layers.mlp import SwiGLU, Unbiased
from mmjax.layers.norm import rms
from mmjax.layers.weight import Layer, fan_in, fan_in_of, zeros

CHOICES = {
    "before": ("first", "last"),
    "norm": ("rms", "layer"),
    "kind": ("swiglu", "gelu"),
    "gate": ("scalar", "vector"),
}


@dataclass(frozen=True)
class CrossConfig:
    """Where the blocks stand and how they look: OpenFlamingo's choices, and those of IDEFICS.

    Attributes:
        every: of so many layers of the decoder, one has a block before it.
        before: which of them, the "first" (IDEFICS) or the "last" (OpenFlamingo).
        heads: h. head_dim: k. mlp: f.
        norm: of what a branch reads, "layer" or "rms". eps: under its root.
        kind: of the MLP, "gelu" or "swiglu".
        gate: "scalar", or "vector": one number a channel.
        qk_norm: RMSNorm on queries and keys, one for all heads (IDEFICS).
        activation: of a "swiglu", a key of ACTIVATIONS.
    """

    every: int
    before: str
    heads: int
    head_dim: int
    mlp: int
    norm: str
    eps: float
    kind: str
    gate: str
    qk_norm: bool
    activation: str = "silu"

    def __post_init__(self):
        """Checks the fields."""
        for name in ("every", "heads", "head_dim", "mlp"):
            if getattr(self, name) < 1:
                raise UserError(f"model.cross.{name}={getattr(self, name)} must be at least 1")
        for name, have in (CHOICES | {"activation": tuple(ACTIVATIONS)}).items():
            if (value := getattr(self, name)) not in have:
                raise UserError(f"model.cross.{name}={value!r} is unknown; have: {', '.join(have)}")

        if self.kind == "gelu" and self.activation != "silu":
            raise UserError(
                f"model.cross.activation={self.activation!r} is of kind='swiglu'; leave it out"
            )

    def count(self, depth: int) -> int:
        """Blocks in a decoder of `depth` layers."""
        return depth // self.every if self.before == "last" else -(-depth // self.every)

    @property
    def offset(self) -> int:
        """Layers of a group that come before its block."""
        return self.every - 1 if self.before == "last" else 0

    def flops(self, width: int, media: int, length: int, tokens, seeing, pictures) -> float:
        """Forward FLOPs of one block.

        width: d. media: width of a picture's vectors. length: how many it has. tokens: positions.
        seeing: those of them that see a picture.
        """
        inner = self.heads * self.head_dim
        read = 4 * media * inner * length * pictures
        mlp = (6 if self.kind == "swiglu" else 4) * width * self.mlp
        return read + tokens * (4 * width * inner + mlp) + 4 * seeing * length * inner


class Look(Layer):
    """Attention from words to pictures, without positions or biases."""

    c: CrossConfig

    @nn.compact
    def __call__(self, x, media, looks, held: KV | None):
        """See `Cross`; x is normed."""
        c, d = self.c, x.shape[-1]
        axes = ("embed", "heads", None)
        q = linear(x, self.weight("q", (d, c.heads, c.head_dim), axes, fan_in))
        q = rms(self, "q_norm", q, eps=c.eps) if c.qk_norm else q
        if held is None:
            b, slots, length, wide = media.shape
            flat = media.reshape(b, slots * length, wide)
            shape = (wide, c.heads, c.head_dim)
            k, v = (linear(flat, self.weight(n, shape, axes, fan_in)) for n in ("k", "v"))
            k = rms(self, "k_norm", k, eps=c.eps) if c.qk_norm else k
            held = KV(heads_first(k), heads_first(v))
        # Every vector of a picture is seen, or none.
        mask = jnp.repeat(looks, held.keys.shape[2] // looks.shape[2], axis=2)
        y, _ = weigh(q, held.keys, held.values, mask)
        # Who sees no picture reads nothing; the mean of all, which `weigh` gives, would leak.
        y = jnp.where(looks.any(-1)[..., None, None], y, 0.0)
        out = fan_in_of(c.heads * c.head_dim)
        o = self.weight("o", (c.heads, c.head_dim, d), ("heads", None, "embed"), out)
        return linear(y, o, 2), held


class Cross(Layer):
    """Attention to pictures and an MLP, each times the tanh of a gate that begins at 0."""

    c: CrossConfig

    @nn.compact
    def __call__(self, x, media, looks, held: KV | None = None):
        """One block.

        Args:
            x: [b, l, d]. media: [b, i, p, d of pictures], p vectors of each of i pictures.
            looks: [b, l, i] bool, which pictures a position sees; it may be none.
            held: keys and values [b, h, i p, k] of pictures seen before, instead of `media`.

        Returns:
            ([b, l, d], keys and values of the pictures).
        """
        c, d = self.c, x.shape[-1]
        at, size = (self.rules, self.dtype), (1 if c.gate == "scalar" else d,)

        def normed(name, x):
            if c.norm == "rms":
                return rms(self, name, x, eps=c.eps)
            return norm(self, name, x, c.eps)

        def gated(name, y):
            gate = jnp.tanh(self.weight(name, size, (None,), zeros, "float32"))[None, None]
            return (gate * y.astype(jnp.float32)).astype(y.dtype)

        y, held = Look(*at, c, name="attention")(normed("attention_norm", x), media, looks, held)
        x = x + gated("attention_gate", y)
        if c.kind == "swiglu":
            mlp: Layer = SwiGLU(*at, c.mlp, 1, activation=c.activation, name="mlp")
        else:
            mlp = Unbiased(*at, c.mlp, name="mlp")
        x = x + gated("mlp_gate", mlp(normed("mlp_norm", x)))
        return self.rules.constrain(x, "batch", "length", None), held
