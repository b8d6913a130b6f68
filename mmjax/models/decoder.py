"""The one decoder: what every family that reads and writes sequences is made of."""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.error import UserError
from mmjax.layers.attention import KV, Attention, write
from mmjax.layers.dropout import dropout
from mmjax.layers.mlp import SwiGLU
from mmjax.layers.norm import rms
from mmjax.layers.position import rope_angles
from mmjax.layers.weight import Layer


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and options of the decoder.

    Attributes:
        width: d. depth: n layers. heads: h query heads. kv_heads: g, divides h. mlp: f.
        qk_norm: LayerNorm on queries and keys.
        norm: "pre" normalises what a branch reads, "post" what it returns (Chameleon 34B).
        dropout: probability after attention and after the MLP.
        theta: base of the rotary frequencies.
        remat: recompute a block's activations in the backward pass.
        unroll: layers a compiled loop takes at a time; `depth` is no loop, faster and bigger code.
        dtype: precision of activations.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    mlp: int
    qk_norm: bool
    norm: str
    dropout: float
    theta: float
    remat: bool
    unroll: int
    dtype: str

    def __post_init__(self):
        """Checks fields against each other."""
        if self.width % self.heads or self.head_dim % 2:
            near = self.heads * max(self.head_dim // 2, 1) * 2
            raise UserError(
                f"decoder.width={self.width} over decoder.heads={self.heads} must be an even "
                f"number (the head dimension); try width={near}"
            )
        if self.heads % self.kv_heads:
            raise UserError(
                f"decoder.kv_heads={self.kv_heads} must divide decoder.heads={self.heads}"
            )
        if self.norm not in ("pre", "post"):
            raise UserError(f"decoder.norm={self.norm!r} is unknown; have: pre, post")

    @property
    def head_dim(self) -> int:
        """Width of one head, k."""
        return self.width // self.heads


class Block(Layer):
    """Attention and MLP, each in a residual branch."""

    c: DecoderConfig

    @nn.compact
    def __call__(self, x, cache, layer, mask, angles, columns, keys):
        """x [b, l, d], a layer's cache or None, its number -> (x, (new to it, largest score))."""
        c = self.c
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, layer)))(keys)

        def branch(name, x, function, key_column):
            y = rms(self, f"{name}_norm", x) if c.norm == "pre" else x
            y, extra = function(y)
            y = rms(self, f"{name}_norm", y) if c.norm == "post" else y
            y = dropout(y, c.dropout, None if keys is None else keys[:, key_column])
            return self.rules.constrain(x + y, "batch", "length", None), extra

        attention = Attention(
            self.rules, self.dtype, c.heads, c.kv_heads, c.head_dim, c.qk_norm, name="attention"
        )
        mlp = SwiGLU(self.rules, self.dtype, c.mlp, name="mlp")

        def attend(y):
            y, new, peak = attention(y, mask, angles, cache, columns)
            return y, (new if cache is not None else None, peak)

        x, kept = branch("attention", x, attend, 0)
        x, _ = branch("mlp", x, lambda y: (mlp(y), None), 1)
        return x, kept


class Watch(NamedTuple):
    """What tells that a run is about to diverge (Chameleon, section 2.3).

    Attributes:
        peak: [n] f32, the largest attention score of each layer, q k / sqrt(k).
        norm: [b, l] f32, root mean square of the last layer's output, before the final norm.
    """

    peak: jax.Array
    norm: jax.Array


class Decoder(Layer):
    """A stack of blocks and a final norm; parameters of all layers lie stacked on axis 0."""

    c: DecoderConfig

    @nn.compact
    def __call__(
        self,
        x,
        mask,
        position,
        cache: KV | None = None,
        columns=None,
        keys=None,
        watch: bool = False,
    ):
        """Runs the stack.

        Args:
            x: [b, l, d] embedded inputs.
            mask: [b or 1, l, m] bool; m = l without a cache.
            position: [b, l] int32 for RoPE.
            cache: keys and values of all layers, [n, b, g, m, k] each, or None.
            columns: [b, l] int32, where in the cache these positions are written.
            keys: [b] one dropout key a row, or None to drop nothing.
            watch: return a `Watch` too.

        Returns:
            ([b, l, d] normalised output, cache), with `watch` (.., .., Watch).
        """
        c = self.c
        x = self.rules.constrain(x.astype(c.dtype), "batch", "length", None)
        angles = rope_angles(position, c.head_dim, c.theta)
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            out_axes=0,
            length=c.depth,
            unroll=c.unroll,
            metadata_params={nn.PARTITION_NAME: self.rules.layers},
        )
        layers = stack(self.rules, self.dtype, c, name="blocks")
        x, (new, peak) = layers(x, cache, jnp.arange(c.depth), mask, angles, columns, keys)
        if cache is not None:
            # XLA writes in place what is provably read no more, so the columns are made to depend
            # on the output: what gave no number is not kept. Without it the cache is copied twice.
            columns = jnp.where(jnp.isnan(x[:, :, 0]), cache.keys.shape[3], columns)
            cache = jax.vmap(write, (0, 0, None))(cache, new, columns)
        y = rms(self, "final_norm", x)
        if not watch:
            return y, cache
        last = jax.lax.stop_gradient(x.astype(jnp.float32))
        return y, cache, Watch(peak, jnp.sqrt(jnp.mean(last**2, axis=-1)))


def empty_cache(c: DecoderConfig, batch: int, columns: int) -> KV:
    """A cache of zeros for `batch` rows of `columns` positions."""
    shape = (c.depth, batch, c.kv_heads, columns, c.head_dim)
    return KV(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))
