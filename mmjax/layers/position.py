"""Rotary positions and the sinusoidal embedding of time."""

import jax.numpy as jnp


def rope_angles(position, head_dim: int, theta: float):
    """[b, l] int32 -> (cos, sin), each [b, l, 1, k / 2] f32 (RoPE, rotating halves)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x, angles):
    """Applies RoPE to x [b, l, h, k]."""
    cos, sin = (a.astype(x.dtype) for a in angles)
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


def time_features(t, size: int):
    """Times in [0, 1], any shape [...] -> [..., size] f32: cos and sin of geometric frequencies.

    t is stretched to [0, 1000] as in diffusion models, so that the frequencies 1 ... 1e-4 used
    there resolve it.
    """
    half = size // 2
    frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = 1000.0 * t.astype(jnp.float32)[..., None] * frequency.reshape((1,) * t.ndim + (half,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
