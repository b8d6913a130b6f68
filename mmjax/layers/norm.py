"""RMSNorm and LayerNorm over the last axis, computed in f32."""

import jax
import jax.numpy as jnp

from mmjax.layers.tower import Route, scale_of, weights
from mmjax.layers.weight import Layer, ones, zeros

EPS = 1e-5


def rms_norm(x, scale, eps: float = EPS):
    """X / rms(x) * scale over the last axis; [..., d], [d] -> [..., d]."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * _lead(scale, y)).astype(x.dtype)


def layer_norm(x, scale, bias, eps: float = EPS):
    """(x - mean) / std * scale + bias over the last axis; both broadcast from the right."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * _lead(scale, y) + _lead(bias, y)).astype(x.dtype)


def _lead(w, x):
    """Gives w leading axes of 1, as rank promotion must be spelled out."""
    return w.astype(jnp.float32).reshape((1,) * (x.ndim - w.ndim) + w.shape)


def rms(layer: Layer, name: str, x, towers: int = 1, path: Route | None = None, eps: float = EPS):
    """RMSNorm of x [..., d] with a learned scale of `layer` called `name`, or one a tower."""
    scales = weights(layer, towers, name, (x.shape[-1],), (None,), ones, "float32")
    return rms_norm(x, scale_of(scales, path), eps)


def head_norm(layer: Layer, name: str, x, each: bool, towers: int = 1, path: Route | None = None):
    """QK-norm: LayerNorm over the head dimension with weight and bias (Chameleon, section 2.3).

    x [b, l, h, k] -> the same. Taken before RoPE; one (k,) pair serves all heads, or each head has
    its own, as the released weights have.
    """
    shape = (x.shape[-2] if each else 1, x.shape[-1])
    scale = weights(layer, towers, f"{name}_scale", shape, (None, None), ones, "float32")
    bias = weights(layer, towers, f"{name}_bias", shape, (None, None), zeros, "float32")
    return layer_norm(x, scale_of(scale, path), scale_of(bias, path))
