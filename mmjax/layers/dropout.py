"""Dropout with one key a row, so that a row's result does not depend on its neighbours."""

import jax
import jax.numpy as jnp


def dropout(x, rate: float, keys):
    """Zeroes entries of x [b, ...] with probability `rate` and rescales the rest.

    `keys` [b] holds one PRNG key a row, or is None where nothing is dropped (evaluation).
    """
    if rate == 0.0 or keys is None:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
