"""From logits to a token: penalty, temperature, filters, guidance, contrast.

Everything takes logits [b, v] f32 and works row by row. A filter that is off costs nothing.
"""

import jax
import jax.numpy as jnp

from mmjax.config import Choice
from mmjax.sample.flow import guided


def allow(logits, allowed):
    """Only ids for which `allowed` [b or 1, v] bool is True can be chosen."""
    return jnp.where(allowed, logits, -jnp.inf)


def penalise(logits, seen, penalty: float):
    """Makes ids in `seen` [b, v] bool less likely: divides positive logits, multiplies negative.

    Keskar et al. 2019 (CTRL, section 4.1), in the form that lowers logits of either sign.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def filtered(logits, choice: Choice):
    """Top-k, top-p and min-p, of the distribution the logits stand for; the rest becomes -inf.

    Top-p (nucleus, Holtzman et al. 2020) keeps the fewest ids whose probability reaches p, of equal
    ones those with the lowest id. All are judged on the distribution before any was applied, and
    the likeliest id always stays.
    """
    top = logits.max(-1, keepdims=True)
    keep = logits > -jnp.inf
    if choice.min_p > 0:
        keep &= logits >= top + jnp.log(choice.min_p)
    if choice.top_k or choice.top_p < 1:
        order = jnp.argsort(-logits, axis=-1, stable=True)
        rank = jnp.argsort(order, axis=-1)
        if choice.top_k:
            keep &= rank < choice.top_k
        if choice.top_p < 1:
            share = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
            before = jnp.cumsum(share, axis=-1) - share
            keep &= jnp.take_along_axis(before < choice.top_p, rank, axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


def guided3(full, image, blank, text_scale: float, image_scale: float):
    """u + s_img (img - u) + s_txt (full - img): at 1 and 1 it is `full` (Chameleon)."""
    return guided(image, blank, image_scale) + text_scale * (full - image)


def contrast(conditional, unconditional, alpha: float, k: int):
    """Contrastive decoding (CD-K, CM3Leon): log p_c - log p_u over what is plausible, else -inf.

    Plausible is p_c >= alpha times its k-th largest value (k = 1: Li et al., arXiv 2210.15097).
    """
    c, u = (jax.nn.log_softmax(x, axis=-1) for x in (conditional, unconditional))
    least = jax.lax.top_k(c, k)[0][..., -1:] + jnp.log(alpha)
    return jnp.where(c >= least, c - u, -jnp.inf)


def choose(logits, choice: Choice, keys, seen=None):
    """One id a row, [b] int32: penalty, then temperature, then filters, then a draw.

    Args:
        logits: [b, v]; at least one of a row is above -inf, or the answer means nothing.
        choice: how. keys: [b]. seen: [b, v] bool, ids so far, for the penalty.
    """
    if seen is not None and choice.repetition != 1.0:
        logits = penalise(logits, seen, choice.repetition)
    if choice.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filtered(logits / choice.temperature, choice)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
