"""OneFlow: what is deleted and counted, the loss against its formula, and what it reduces to."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batch import VOCABULARY, random_batch
from small import decoder_config

from mmjax import losses
from mmjax.batch import IMAGE, TEXT, Batch
from mmjax.error import UserError
from mmjax.mesh import Rules, make_mesh
from mmjax.models import oneflow
from mmjax.models.deletion import Draws, compact, corrupt, draw, leftmost

V = VOCABULARY


def config(**changes) -> oneflow.Config:
    """Pictures of 4 x 4 pixels in four patches."""
    values = dict(
        decoder=decoder_config(), image=4, patch=2, mask="both", deletion="uniform", target="bag",
        mixed=0.5, prediction="velocity", bag_weight=1.0, rate_weight=1.0, empty_weight=1.0,
        image_weight=1.0, signal_mean=0.6, signal_std=0.6,
    )  # fmt: skip
    return oneflow.Config(**values | changes)


def make(c: oneflow.Config):
    """(model, params); layers that start at zero, and would hide leaks, are random."""
    model = oneflow.build(c, V, Rules(make_mesh(1, 1, 1, jax.devices()[:1])))
    params = jax.jit(model.init)(jax.random.key(0))
    for part, name in (("patch_out", "patch"), ("gaps", "w"), ("gaps", "bias")):
        zeros = params[part][name]
        params[part][name] = 0.3 * jax.random.normal(jax.random.key(1), zeros.shape)
    return model, params


MODEL, PARAMS = make(config())


@partial(jax.jit, static_argnums=(0, 1))
def corrupted(deletion, mixed, batch, seed):
    keys = jax.random.split(jax.random.key(seed), len(batch.tokens))
    draws = draw(keys, batch.tokens.shape[1], batch.pixels.shape[1])
    return corrupt(deletion, mixed, V, batch, draws), draws


def keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), len(batch.tokens))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["uniform", "suffix"]), st.sampled_from([0.0, 1.0]))
def test_what_is_left_and_the_bags_make_up_the_document(seed, deletion, mixed):
    """X_t plus all bags is X_1; k counts the bags; what is left keeps its order."""
    batch = random_batch(seed, slots=3)
    x = jax.tree.map(np.asarray, corrupted(deletion, mixed, batch, seed)[0])
    for r in range(len(batch.tokens)):
        for s in range(1, batch.segment[r].max() + 1):
            mine = np.flatnonzero((batch.segment[r] == s) & (batch.tokens[r] != V.eos))
            there = np.flatnonzero(x.batch.segment[r] == s)
            left = x.batch.tokens[r, there].tolist()
            gone = [j for j in mine if x.missing[r, j]]
            assert x.k[r, there].sum() == len(gone)
            # Read in order of (gap, own place), bags in place give X_1 back: deleted pictures by
            # their BOI alone.
            lost = {batch.image[r, j + 1] for j in gone if batch.tokens[r, j] == V.boi}
            short = [
                j for j in mine
                if batch.image[r, j] not in lost
                and not (batch.tokens[r, j] == V.eoi and batch.image[r, j - 1] in lost)
            ]  # fmt: skip
            rebuilt, at = [], 0
            for place, token in zip(there, left, strict=True):
                rebuilt.append(token)
                bag = [batch.tokens[r, j] for j in gone if x.row[r, j] == place]
                assert len(bag) == x.k[r, place]
                rebuilt += bag
                at += len(bag)
            assert rebuilt == batch.tokens[r, short].tolist() and at == len(gone)
            assert left[0] == V.bos and V.eos not in left
            assert (np.diff(x.batch.position[r, there]) == 1).all()
            assert x.batch.position[r, there[0]] == 0
    held = x.batch.segment > 0
    assert (x.batch.tokens[~held] == V.pad).all() and not x.open[~held].any()
    assert not x.k[~x.open].any()
    assert not (x.open & (x.batch.modality == IMAGE)).any()
