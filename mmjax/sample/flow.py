"""Solvers of dx/dt = v(x, t) from noise at t = 0 to data at t = 1, and guidance."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def euler(velocity: Callable, noise, steps: int):
    """Fixed-step Euler.

    Args:
        velocity: (x, t scalar) -> dx/dt, shaped like x.
        noise: x at t = 0.
        steps: evaluations.

    Returns:
        x at t = 1.
    """

    def body(x, t):
        return x + velocity(x, t) / steps, None

    return jax.lax.scan(body, noise, jnp.arange(steps, dtype=jnp.float32) / steps)[0]


def guided(conditional, unconditional, scale: float):
    """Classifier-free guidance u + s (c - u): s = 1 is the conditional, s = 0 the other."""
    return unconditional + scale * (conditional - unconditional)
