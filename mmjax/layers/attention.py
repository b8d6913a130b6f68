"""Grouped-query attention under any mask, with or without a cache of keys and values."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.layers.linear import precision
from mmjax.layers.norm import head_norm
from mmjax.layers.position import rotate
from mmjax.layers.tower import Route, through, weights
from mmjax.layers.weight import Layer, fan_in_of, repeat

LOWEST = -1e30  # finite: a row that may look nowhere must not become NaN


class KV(NamedTuple):
    """Keys and values of one layer [b, g, m, k], or of all layers [n, b, g, m, k].

    Heads come before positions, as the products of attention want them: to turn a cache around at
    every token costs more than the products.
    """

    keys: jax.Array
    values: jax.Array


def attend(q, k, v, mask):
    """softmax(q k^T / sqrt(head_dim)) v under a mask.

    Args:
        q: [b, l, h, k]; head i uses key-value group i // (h / g).
        k: [b, m, g, k].
        v: [b, m, g, k].
        mask: [b or 1, l, m] bool, True where a query may look. A row that may look nowhere
            (padding) gets the mean of all values rather than NaN; nothing reads it.

    Returns:
        [b, l, h, k]; the softmax is taken in f32.
    """
    return weigh(q, heads_first(k), heads_first(v), mask)[0]


def heads_first(x):
    """[b, m, g, k] -> [b, g, m, k], and back."""
    return jnp.swapaxes(x, 1, 2)


def weigh(q, k, v, mask):
    """The same of k and v [b, g, m, k], and the largest score q k^T / sqrt(head_dim), a scalar."""
    h, width = q.shape[2:]
    if k.shape[1] != h:
        k, v = (repeat(x, h // k.shape[1], axis=1) for x in (k, v))
    product = partial(jnp.einsum, precision=precision(v), preferred_element_type=jnp.float32)
    scores = product("blhk,bhmk->bhlm", q, k)
    scores = jnp.where(mask[:, None], scores * width**-0.5, LOWEST)
    # The division comes last, on [l, k] instead of [l, m] numbers: a third less time on CPU.
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - top)
    y = product("bhlm,bhmk->blhk", weights.astype(v.dtype), v)
    y = (y / jnp.swapaxes(weights.sum(-1, keepdims=True), 1, 2)).astype(v.dtype)
    return y, top.max()


def write(cache: KV, new: KV, columns) -> KV:
    """Puts new keys and values [b, g, l, k] into a layer's cache at each row's columns [b, l].

    A column beyond the cache is dropped: that is how rows of a batch sit a step out.
    """
    row = jnp.arange(columns.shape[0])[:, None]
    return KV(
        *(
            old.at[row, :, columns].set(heads_first(x), mode="drop")
            for old, x in zip(cache, new, strict=True)
        )
    )


class Attention(Layer):
    """Self-attention with RoPE, grouped key-value heads and optional QK-norm.

    Attributes:
        heads: query heads h.
        kv_heads: key-value heads g; divides h.
        head_dim: k.
        qk_norm: LayerNorm on queries and keys before RoPE. head_norms: with weights of each head.
        qkv_towers, norm_towers, o_towers: how many there are of q, k and v, their norms, and o.
        bias: whether all four have one, where there is one tower.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qk_norm: bool
    head_norms: bool
    qkv_towers: int
    norm_towers: int
    o_towers: int
    bias: bool = False

    @nn.compact
    def __call__(
        self, x, mask, angles, cache: KV | None = None, columns=None, path: Route | None = None
    ):
        """x [b, l, d] -> ([b, l, d], its keys and values [b, g, l, k], largest score).

        With a cache, it is read as if they stood at `columns` [b, l] in it, under a mask [b, l, m]
        over its m columns. To write them for good is the caller's, who does it for all layers at
        once: in a loop over tokens that happens in place, while a cache that goes through every
        layer is copied there.
        """
        d = x.shape[-1]

        def projection(name, heads):
            shape, axes = (d, heads, self.head_dim), ("embed", "heads", None)
            return weights(self, self.qkv_towers, name, shape, axes, fan_in_of(d))

        def project(product, x, held):
            return [product(x, w) for w in held]

        sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        held = tuple(projection(*size) for size in sizes.items())
        q, k, v = through(self.rules, path, project, x, held)
        if self.bias:
            q, k, v = (self.with_bias(*one) for one in zip(sizes, (q, k, v), strict=True))
        if self.qk_norm:
            q = head_norm(self, "q_norm", q, self.head_norms, self.norm_towers, path)
            k = head_norm(self, "k_norm", k, self.head_norms, self.norm_towers, path)
        new = KV(heads_first(rotate(k, angles)), heads_first(v))
        kv = new if cache is None else write(cache, new, columns)
        y, peak = weigh(rotate(q, angles), kv.keys, kv.values, mask)
        shape = (self.heads, self.head_dim, d)
        scale = fan_in_of(self.heads * self.head_dim)
        o = weights(self, self.o_towers, "o", shape, ("heads", None, "embed"), scale)
        y = through(self.rules, path, lambda product, y, held: product(y, *held, 2), y, (o,))
        return self.with_bias("o", y) if self.bias else y, new, peak
