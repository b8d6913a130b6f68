"""From logits to a token: guidance, contrast, then penalty, temperature, filters and a draw.

Everything takes logits [b, v] f32 and works row by row. Streams are guided or contrasted before
any id is set to -inf, for a difference of two such is no number. A filter that is off costs
nothing; all those of one choice share one sort, which top-k shortens to its k.
"""

import jax
import jax.numpy as jnp

from mmjax.sample.flow import guided
from mmjax.sample_config import Choice


def guided3(full, image, blank, text_scale: float, image_scale: float):
    """u + s_img (img - u) + s_txt (full - img): guidance by pictures and by words apart.

    The order of InstructPix2Pix (arXiv 2211.09800, section 3.2.1). Scales of 1 and 1 give `full`;
    Chameleon's are 3.0 for text and 1.2 for pictures.

    Args:
        full, image, blank: [b, v] finite logits behind all of the prompt, its pictures, nothing.
        text_scale: s_txt. image_scale: s_img.
    """
    return guided(image, blank, image_scale) + text_scale * (full - image)


def contrast(conditional, unconditional, alpha: float, k: int):
    """Contrastive decoding (CD-K, CM3Leon): log p_c - log p_u over what is plausible, else -inf.

    Plausible is p_c >= alpha times its k-th largest value (k = 1: Li et al., arXiv 2210.15097).

    Args:
        conditional, unconditional: [b, v] finite logits.
        alpha: above 0, up to 1. k: at least 1; beyond v it is v.
    """
    c, u = (jax.nn.log_softmax(x, axis=-1) for x in (conditional, unconditional))
    least = jax.lax.top_k(c, min(k, c.shape[-1]))[0][..., -1:] + jnp.log(alpha)
    return allow(c - u, c >= least)


def allow(logits, allowed):
    """Only ids for which `allowed` [b or 1, v] bool is True can be chosen."""
    return jnp.where(allowed, logits, -jnp.inf)


def penalise(logits, seen, penalty: float):
    """Makes ids in `seen` [b, v] bool less likely: divides positive logits, multiplies negative.

    Keskar et al. 2019 (CTRL, section 4.1), in the form that lowers logits of either sign.
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(logits, k: int):
    """Keeps the k likeliest ids, of equal ones those with the lowest id; 0 keeps all."""
    return _likeliest(logits, k, 1.0)


def top_p(logits, p: float):
    """Keeps the fewest ids whose probability reaches p; 1 keeps all.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751, section 3.1). Of equal ids those with
    the lowest id are taken; the likeliest id always stays.
    """
    return _likeliest(logits, 0, p)


def min_p(logits, p: float):
    """Keeps ids at least p times as likely as the likeliest (arXiv 2407.01082); 0 keeps all."""
    if p == 0:
        return logits
    return allow(logits, logits >= logits.max(-1, keepdims=True) + jnp.log(p))


def _likeliest(logits, k: int, p: float):
    """Top-k and top-p, both judged on the distribution that comes in, with one sort."""
    v = logits.shape[-1]
    size = min(k or v, v)
    if size == v and p >= 1:
        return logits
    ranked = jax.lax.top_k(logits, size)[0]
    count = jnp.full_like(ranked[..., :1], size, jnp.int32)
    if p < 1:
        # Not divided by their sum, so that equal logits add up exactly. The maximum is not taken
        # from `ranked`: XLA sorts only k ids as long as nothing else slices the result.
        top = logits.max(-1, keepdims=True)
        part = jnp.exp(ranked - top)
        whole = jnp.exp(logits - top).sum(-1, keepdims=True)
        short = jnp.cumsum(part, axis=-1) < p * whole
        # Rounding may leave even the sum of all short of p.
        count = jnp.minimum(1 + short.sum(-1, keepdims=True, dtype=jnp.int32), size)
    last = jnp.take_along_axis(ranked, count - 1, axis=-1)
    above, equal = logits > last, logits == last
    left = count - above.sum(-1, keepdims=True, dtype=jnp.int32)
    return allow(logits, above | (equal & (jnp.cumsum(equal, axis=-1, dtype=jnp.int32) <= left)))


def filtered(logits, choice: Choice):
    """Top-k, top-p and min-p; an id stays if each of them alone would keep it.

    All are judged on the distribution before any was applied, so their order does not matter.
    """
    return min_p(_likeliest(logits, choice.top_k, choice.top_p), choice.min_p)


def _tempered(logits, temperature: float):
    """Logits / temperature, moved so that the largest is 0: nothing overflows to +inf."""
    return (logits - logits.max(-1, keepdims=True)) / temperature


def choose(logits, choice: Choice, keys, seen=None):
    """Chooses one id a row: penalty, then temperature, then the filters, then a draw.

    At temperature 0 it is the likeliest after the penalty, the lowest id of equal ones.

    Args:
        logits: [b, v] f32; the caller sees to it that at least one a row is above -inf. For a row
            without any the answer is 0, which means nothing.
        choice: static under jit.
        keys: [b], one a row.
        seen: [b, v] bool, the ids so far; without it there is no penalty.

    Returns:
        [b] int32.
    """
    if seen is not None and choice.repetition != 1.0:
        logits = penalise(logits, seen, choice.repetition)
    if choice.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = filtered(_tempered(logits, choice.temperature), choice)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
