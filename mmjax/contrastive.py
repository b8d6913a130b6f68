"""Losses that tell a pair from all others of the batch, over a device mesh.

InfoNCE (CLIP, Radford et al. 2021, arXiv 2103.00020, figure 3): every device holds its b rows
against all B columns, so b x B numbers, never B x B. The sigmoid loss (SigLIP, Zhai et al. 2023,
arXiv 2303.15343, section 3): texts go round the devices, b x b numbers at a time. Both are equal,
value and gradients, to the plain formulas on one device (tests/test_contrastive.py).
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.losses import Term
from mmjax.mesh import Rules

LOWEST = -1e30
# Similarities are multiplied by up to 100, so they are taken in f32 on every platform.
product = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def unit(x):
    """[..., d] -> the same in f32, of length 1."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def over_devices(rules: Rules, local: Callable) -> Callable:
    """`local` (axes, images, texts, valid, scale, bias) on each device's pairs; -> sums of all."""
    axes = rules.batch
    row, all_alike = rules.spec("batch"), P()
    return jax.shard_map(
        partial(local, axes),
        mesh=rules.mesh,
        in_specs=(row, row, row, all_alike, all_alike),
        out_specs=all_alike,
        check_vma=False,
    )


def infonce(rules: Rules, images, texts, valid, scale, bias) -> dict[str, Term]:
    """0.5 (CE of each picture's text among all + CE of each text's picture among all).

    Args:
        rules: how rows are split. images, texts: [b, d] f32 of unit length, pair by pair.
        valid: [b] bool; what is no pair is neither row nor column. scale: scalar s of s <i, t>.
        bias: makes no difference here.

    Returns:
        `contrastive`, nats a pair; `found`: share of pictures nearest to their own text, and of
        texts to their own picture, within the batch.
    """
    del bias

    def local(axes, images, texts, valid, scale, bias):
        del bias
        n = images.shape[0]
        own = jax.lax.axis_index(axes) * n + jnp.arange(n)
        everyone = partial(jax.lax.all_gather, axis_name=axes, axis=0, tiled=True)
        held, weight = everyone(valid), valid.astype(jnp.float32)

        def one_way(a, b):
            logits = scale * product("nd,md->nm", a, everyone(b))
            logits = jnp.where(held[None], logits, LOWEST)
            chosen = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
            nll = jax.nn.logsumexp(logits, axis=1) - chosen
            return jnp.sum(weight * nll), jnp.where(logits.argmax(1) == own, weight, 0.0).sum()

        (a, hit_a), (b, hit_b) = one_way(images, texts), one_way(texts, images)
        found = 0.5 * (a + b), 0.5 * (hit_a + hit_b), weight.sum()
        return jax.lax.psum(found, axes)

    total, hits, count = over_devices(rules, local)(images, texts, valid, scale, jnp.zeros(()))
    return {"contrastive": Term(total, count), "found": Term(hits, count)}


def sigmoid(rules: Rules, images, texts, valid, scale, bias) -> dict[str, Term]:
    """mean_i sum_j -log sigmoid(z_ij (s <i, t_j> + bias)), z = 1 for pairs and -1 for all others.

    Arguments and results as those of `infonce`, without `found`.
    """

    def local(axes, images, texts, valid, scale, bias):
        count = jax.lax.axis_size(axes)
        ring = [(i, (i + 1) % count) for i in range(count)]
        weight = valid.astype(jnp.float32)

        def apart(texts, held):
            """As if no pair were among them."""
            logits = scale * product("nd,md->nm", images, texts) + bias
            return product("nm,n,m->", jax.nn.softplus(logits), weight, held)

        def turn(carry, _):
            texts, held, total = carry
            texts, held = (jax.lax.ppermute(x, axes, ring) for x in (texts, held))
            return (texts, held, total + apart(texts, held)), None

        # softplus(-x) - softplus(x) = -x sets the pairs right.
        pairs = jnp.sum(weight * (scale * (images * texts).sum(-1) + bias))
        start = texts, weight, apart(texts, weight) - pairs
        (_, _, total), _ = jax.lax.scan(jax.checkpoint(turn), start, None, length=count - 1)
        return jax.lax.psum((total, weight.sum()), axes)

    total, count = over_devices(rules, local)(images, texts, valid, scale, bias)
    return {"contrastive": Term(total, count)}


OBJECTIVES = {"softmax": infonce, "sigmoid": sigmoid}
