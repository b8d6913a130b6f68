"""The Perceiver resampler: any number of features of a picture become a fixed number of vectors.

Alayrac et al. 2022 (arXiv 2204.14198), section 3.1.1; with the options of OpenFlamingo (Awadalla et
al. 2023, arXiv 2308.01390) and IDEFICS (Laurencon et al. 2023, arXiv 2306.16527).
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from mmjax.error import UserError
from mmjax.layers.attention import attend
from mmjax.layers.encoder import ACTIVATIONS, norm
from mmjax.layers.linear import linear
from mmjax.layers.mlp import Unbiased
from mmjax.layers.norm import head_norm
from mmjax.layers.weight import Layer, fan_in, fan_in_of, normal


@dataclass(frozen=True)
class ResamplerConfig:
    """Shape of a resampler; its width is that of what it reads.

    Attributes:
        latents: vectors it makes of a picture. depth: blocks.
        heads: h. head_dim: k; h k need not be the width. mlp: f.
        activation: of the MLP, a key of ACTIVATIONS: "gelu" (OpenFlamingo) or "relu" (IDEFICS).
        qk_norm: LayerNorm on queries and keys, one for all heads (IDEFICS).
        eps: under the root of every norm but that one.
    """

    latents: int
    depth: int
    heads: int
    head_dim: int
    mlp: int
    activation: str
    qk_norm: bool
    eps: float

    def __post_init__(self):
        """Checks the sizes and the activation."""
        for name in ("latents", "depth", "heads", "head_dim", "mlp"):
            if getattr(self, name) < 1:
                raise UserError(f"resampler.{name}={getattr(self, name)} must be at least 1")
        if self.activation not in ACTIVATIONS:
            have = ", ".join(ACTIVATIONS)
            raise UserError(f"resampler.activation={self.activation!r} is unknown; have: {have}")

    def flops(self, width: int, length: int) -> float:
        """Forward FLOPs a picture of `length` features."""
        n, inner, all_keys = self.latents, self.heads * self.head_dim, length + self.latents
        projections = 4 * width * inner * (n + all_keys)
        return self.depth * (projections + 4 * n * all_keys * inner + 4 * n * width * self.mlp)


class ResamplerBlock(Layer):
    """Latents look at the features and at themselves, then pass an MLP; no biases but in norms."""

    c: ResamplerConfig

    @nn.compact
    def __call__(self, latents, x):
        """Latents [n, p, d], features x [n, m, d] f32 -> (latents, None)."""
        c, d = self.c, x.shape[-1]
        shape, axes = (d, c.heads, c.head_dim), ("embed", "heads", None)
        asks = norm(self, "latent_norm", latents, c.eps)
        # The latents' own keys stand behind those of the features.
        media = norm(self, "media_norm", x, c.eps).astype(asks.dtype)
        told = jnp.concatenate([media, asks], axis=1)
        q = linear(asks, self.weight("q", shape, axes, fan_in))
        k, v = (linear(told, self.weight(name, shape, axes, fan_in)) for name in ("k", "v"))
        if c.qk_norm:
            q = head_norm(self, "q_norm", q, each=False)
            k = head_norm(self, "k_norm", k, each=False)
        y = attend(q, k, v, jnp.ones((1, q.shape[1], k.shape[1]), bool))
        out = fan_in_of(c.heads * c.head_dim)
        o = self.weight("o", (c.heads, c.head_dim, d), ("heads", None, "embed"), out)
        latents = latents + linear(y, o, 2)
        y = norm(self, "mlp_norm", latents, c.eps)
        mlp = Unbiased(self.rules, self.dtype, c.mlp, c.activation, name="mlp")
        return latents + mlp(y), None


class Resampler(Layer):
    """Learned latents, blocks, and a norm; parameters of all blocks lie stacked on axis 0."""

    c: ResamplerConfig

    @nn.compact
    def __call__(self, x):
        """Features [n, m, d] -> [n, latents, d], each picture on its own."""
        c, d = self.c, x.shape[-1]
        start = partial(normal, scale=1.0)
        first = self.weight("latents", (c.latents, d), (None, None), start, "float32")
        latents = jnp.broadcast_to(first[None], (len(x), c.latents, d)).astype(self.dtype)
        scan = nn.scan(
            ResamplerBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: self.rules.layers},
        )
        blocks = scan(self.rules, self.dtype, c, name="blocks")
        # All blocks read it: in f32 their gradients are added up in f32.
        latents, _ = blocks(latents, x.astype(self.dtype).astype(jnp.float32))
        return norm(self, "final_norm", latents, c.eps)
