"""Rotary positions and the sinusoidal embedding of time."""

import jax.numpy as jnp


def rope_angles(position, head_dim: int, theta: float, scaling: tuple[float, ...] = ()):
    """[b, l] int32 -> (cos, sin), each [b, l, 1, k / 2] f32 (RoPE, rotating halves).

    scaling: see `scaled`.
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    frequency = scaled(frequency, scaling)
    angle = position.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None]
    return jnp.cos(angle), jnp.sin(angle)


def scaled(frequency, scaling: tuple[float, ...]):
    """Frequencies [k / 2] for rows longer than those of training.

    Args:
        frequency: radians a position.
        scaling: () leaves them. (s,) divides all by s (Chen et al. 2023, arXiv 2306.15595). Of
            (s, low, high, length), Llama 3.1's, those with fewer than `low` turns in `length`
            positions are divided, those with more than `high` stay, and between the two the share
            that stays grows with the turns (arXiv 2407.21783, section 3.4.2, and its code).
    """
    if not scaling:
        return frequency
    if len(scaling) == 1:
        return frequency / scaling[0]
    factor, low, high, length = scaling
    turns = length * frequency / (2.0 * jnp.pi)
    stays = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (stays + (1.0 - stays) / factor)


def rotate(x, angles):
    """Applies RoPE to x [b, l, h, k], in f32."""
    cos, sin = angles
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def time_features(t, size: int):
    """Times in [0, 1], any shape [...] -> [..., size] f32: cos and sin of geometric frequencies.

    t is stretched to [0, 1000] as in diffusion models, so that the frequencies 1 ... 1e-4 used
    there resolve it.
    """
    half = size // 2
    frequency = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = 1000.0 * t.astype(jnp.float32)[..., None] * frequency.reshape((1,) * t.ndim + (half,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
