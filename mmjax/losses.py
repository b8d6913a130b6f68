"""Losses as sums with the counts they are to be divided by, so that any grouping averages right."""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.layers.linear import linear


class Term(NamedTuple):
    """A sum and what to divide it by; f32 scalars, or arrays that are no loss but a statistic."""

    sum: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nothing calls


Terms = dict[str, Term]


def add(a, b):
    """Sums two terms, or two groups of them, for example those of two microbatches."""
    return jax.tree.map(jnp.add, a, b)


def means(terms: Terms) -> dict[str, jax.Array]:
    """Each scalar term's mean; 0 where nothing was counted."""
    return {
        name: term.sum / jnp.maximum(term.count, 1e-9)
        for name, term in terms.items()
        if term.sum.ndim == 0
    }


def total(terms: Terms, weights: Mapping[str, float]):
    """The scalar to minimise: the weighted sum of means. Terms without a weight are only logged."""
    mean = means(terms)
    return sum(weight * mean[name] for name, weight in weights.items())


class TokenSums(NamedTuple):
    """Sums over tokens, each times its weight; scalars, or [g] for weights in g groups."""

    nll: jax.Array  # -log p(target)
    z: jax.Array  # (log Z)^2
    logit: jax.Array  # mean over the vocabulary of logit^2
    hit: jax.Array  # whether the target is the most likely token


def _chunk_sums(hidden, head, targets, weight) -> TokenSums:
    """[b, c, d], [d, v], [b, c], [b, c, ...] -> sums; logits and everything after them in f32."""

    def total(x):
        return jnp.einsum("bc...,bc->...", weight, x, precision=jax.lax.Precision.HIGHEST)

    logits = linear(hidden, head, 1, "float32")
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return TokenSums(
        nll=total(log_z - chosen),
        z=total(log_z**2),
        logit=total(jnp.mean(logits**2, axis=-1)),
        hit=total((chosen >= logits.max(-1)).astype(jnp.float32)),
    )


def _no_tokens(weight) -> TokenSums:
    return TokenSums(*(jnp.zeros(weight.shape[2:]),) * 4)


def in_chunks(x, count: int):
    """[b, l, ...] -> [count, b, l / count, ...]; rows stay whole, so their sharding survives."""
    return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)


def chunk_count(batch: int, length: int, tokens: int) -> int:
    """The smallest number of equal chunks along the length with at most `tokens` tokens each."""
    for count in range(1, length + 1):
        if length % count == 0 and batch * length // count <= tokens:
            return count
    return length


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_loss(hidden, head, targets, weight, z_weight: float, chunks: int):
    """Cross-entropy and z-loss, fused with the output head and never holding all logits.

    The gradient is formed chunk by chunk in the forward pass, so no [b, l, v] array and no second
    product with the head exist.

    Args:
        hidden: [b, l, d], what the head reads.
        head: [d, v].
        targets: [b, l] int32.
        weight: [b, l] f32, or [b, l, g]: tokens in groups (modalities) whose sums come apart.
        z_weight: coefficient of (log Z)^2 (Chameleon, section 2.3: 1e-5).
        chunks: number of equal pieces the length is cut into.

    Returns:
        (sum of weight * (nll + z_weight * (log Z)^2), TokenSums). Only the first is differentiable.
    """
    parts = tuple(in_chunks(x, chunks) for x in (hidden, targets, weight))

    def body(carry, part):
        h, t, w = part
        return jax.tree.map(jnp.add, carry, _chunk_sums(h, head, t, w)), None

    sums, _ = jax.lax.scan(body, _no_tokens(weight), parts)
    return jnp.sum(sums.nll + z_weight * sums.z), sums


def _token_loss_forward(hidden, head, targets, weight, z_weight, chunks):
    parts = tuple(in_chunks(x, chunks) for x in (hidden, targets, weight))

    def objective(h, w_head, t, w):
        sums = _chunk_sums(h, w_head, t, w)
        return jnp.sum(sums.nll + z_weight * sums.z), sums

    def body(carry, part):
        sums, d_head = carry
        h, t, w = part
        grads, new = jax.grad(objective, argnums=(0, 1), has_aux=True)(h, head, t, w)
        d_head = d_head + grads[1].astype(jnp.float32)
        return (jax.tree.map(jnp.add, sums, new), d_head), grads[0]

    start = (_no_tokens(weight), jnp.zeros(head.shape, jnp.float32))
    (sums, d_head), d_hidden = jax.lax.scan(body, start, parts)
    d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape)
    return (jnp.sum(sums.nll + z_weight * sums.z), sums), (d_hidden, d_head.astype(head.dtype))


def _token_loss_backward(z_weight, chunks, saved, cotangent):
    d_hidden, d_head = saved
    g = cotangent[0]

    def scaled(x):
        return (g * x.astype(jnp.float32)).astype(x.dtype)

    return scaled(d_hidden), scaled(d_head), None, None


token_loss.defvjp(_token_loss_forward, _token_loss_backward)


def flow_errors(found, target, share=None):
    """[b, i] f32: mean squared error of each image, which training averages and evaluation reports.

    Args:
        found, target: [b, i, h, w, c], what is predicted (velocity, noise or data) and should be.
        share: [b, i, h, w, 1], what parts of a picture count; all the same without it.
    """
    error = (found.astype(jnp.float32) - target) ** 2
    return jnp.mean(error if share is None else share * error, axis=(2, 3, 4))


def flow_loss(found, target, weight, share=None) -> Term:
    """`flow_errors` averaged over images (Transfusion, section 3.3); weight [b, i], 0 if empty."""
    return Term(jnp.sum(weight * flow_errors(found, target, share)), jnp.sum(weight))
