"""The flow loss of an evaluation is that of training: a perfect network has none."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import VOCABULARY
from small import story, transfusion_config

from mmjax import diffusion
from mmjax.evals import alignment, likelihood
from mmjax.models.denoise import Parts, pick, wide

BATCH = story(64)
KEYS = jax.random.split(jax.random.key(0), 64)


def perfect(c) -> Parts:
    """Pieces whose output is what the loss wants; no decoder is asked."""
    clean = jax.random.normal(jax.random.key(1), (64, 1, *c.shape))

    def patch_out(params, hidden, kept):
        noisy, t = kept
        a, s, da, ds = diffusion.coefficients(c.path, wide(t))
        noise = (noisy - a * clean) / s
        return {"data": clean, "noise": noise, "velocity": da * clean + ds * noise}[c.prediction]

    return Parts(**dict.fromkeys(Parts._fields) | dict(
        config=c, vocabulary=VOCABULARY, signal=lambda params, batch: clean,
        patch_in=lambda params, x, t: (jnp.zeros((*x.shape[:2], c.tokens, 4)), (x, t)),
        patch_out=patch_out, run=lambda params, x, *at, **more: (x, None),
        embed=lambda params, tokens: jnp.zeros((*tokens.shape, 4)), mask=lambda batch: None,
    ))  # fmt: skip


@pytest.mark.parametrize("path", diffusion.PATHS)
def test_a_perfect_network_has_no_loss_whatever_it_predicts_and_the_loss_compares(path):
    old = []
    for prediction, target in itertools.product(diffusion.KINDS, diffusion.KINDS):
        how = dict(path=path, prediction=prediction, target=target, time_mean=1.0, time_std=1.5)
        parts = perfect(transfusion_config(**how))
        shape = parts.config.shape
        known = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        errors = np.asarray(likelihood.flow_errors(parts, None, BATCH, KEYS, *known))
        assert errors.shape == (64, 4)
        scale = errors[:, 2].mean()  # that of saying nothing
        assert errors[:, 0].max() < 1e-4 * scale < errors[:, 1:].mean(), (prediction, target)
        numbers = np.arange(64)
        again = alignment.flow_errors(parts, None, BATCH, numbers, 0, 1)
        assert np.asarray(again).max() < 1e-4
        # What it was: the truth, where the network's output is read with a bounded divisor.
        t = jnp.linspace(0.01, 0.99, 64)[:, None]
        clean, noise = jax.random.normal(jax.random.key(2), (2, 64, 8))
        true = diffusion.truth(path, clean, noise, t)
        noisy = diffusion.mix(path, clean, noise, t)
        read = diffusion.estimate(path, prediction, getattr(true, prediction), noisy, t)
        old.append(float(((pick(read, target) - pick(true, target)) ** 2).mean()))
    assert max(old) > 1e-3
