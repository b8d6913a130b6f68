"""From logits to a token: guidance, contrast, then penalty, temperature, filters and a draw.

Everything takes logits [b, v] f32 and works row by row. Streams are guided or contrasted before
any id is set to -inf, for a difference of two such is no number. A filter that is off costs
nothing; all those of one choice share one sort, which top-k shortens to its k.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.sample.flow import guided
from mmjax.sample.sizes import power_of
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


def contrast(conditional, unconditional, alpha: float, k: int, size: int = 0):
    """Contrastive decoding (CD-K, CM3Leon): log p_c - log p_u over what is plausible, else -inf.

    Plausible is p_c >= alpha times its k-th largest value (k = 1: Li et al., arXiv 2210.15097).

    Args:
        conditional, unconditional: [b, v] finite logits.
        alpha: above 0, up to 1. k: at least 1; beyond v it is v.
        size: at least k, how many are sorted where k is an argument of the program.
    """
    v = conditional.shape[-1]
    c, u = (jax.nn.log_softmax(x, axis=-1) for x in (conditional, unconditional))
    ranked = jax.lax.top_k(c, min(size or k, v))[0]
    least = jnp.take(ranked, jnp.array([jnp.minimum(k, v) - 1]), axis=-1) + jnp.log(alpha)
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
    return _likeliest(logits, k, 1.0, ranked_of(k, 1.0))


def top_p(logits, p: float):
    """Keeps the fewest ids whose probability reaches p; 1 keeps all.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751, section 3.1). Of equal ids those with
    the lowest id are taken; the likeliest id always stays.
    """
    return _likeliest(logits, 0, p, ranked_of(0, p))


def min_p(logits, p: float):
    """Keeps ids at least p times as likely as the likeliest (arXiv 2407.01082); 0 keeps all."""
    return allow(logits, logits >= logits.max(-1, keepdims=True) + jnp.log(p))


def _likeliest(logits, k, p, ranked: int):
    """Top-k and top-p, both judged on the distribution that comes in, with one sort.

    ranked: see `Rule`; k and p may be arguments of the program, it is not.
    """
    v = logits.shape[-1]
    if not ranked:
        return logits
    size = v if ranked < 0 else min(ranked, v)
    order = jax.lax.top_k(logits, size)[0]
    most = jnp.where(k > 0, jnp.minimum(k, v), v).astype(jnp.int32)
    # Not divided by their sum, so that equal logits add up exactly. The maximum is not taken
    # from `order`: XLA sorts only k ids as long as nothing else slices the result.
    top = logits.max(-1, keepdims=True)
    part = jnp.exp(order - top)
    whole = jnp.exp(logits - top).sum(-1, keepdims=True)
    short = (jnp.cumsum(part, axis=-1) < p * whole) & (jnp.arange(size)[None] < most)
    # Rounding may leave even the sum of all short of p.
    count = jnp.minimum(1 + short.sum(-1, keepdims=True, dtype=jnp.int32), most)
    count = jnp.where(p < 1, count, most)
    last = jnp.take_along_axis(order, count - 1, axis=-1)
    above, equal = logits > last, logits == last
    left = count - above.sum(-1, keepdims=True, dtype=jnp.int32)
    return allow(logits, above | (equal & (jnp.cumsum(equal, axis=-1, dtype=jnp.int32) <= left)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rule:
    """A `Choice` whose numbers may be arguments of a compiled program.

    Attributes:
        temperature, top_k, top_p, min_p, repetition: see `Choice`.
        ranked: how many ids are sorted, which is compiled in: 0 none, where neither top-k nor top-p
            is asked for; -1 all; else a power of two from top_k on.
    """

    temperature: Any
    top_k: Any
    top_p: Any
    min_p: Any
    repetition: Any
    ranked: int = field(metadata={"static": True})


def ranked_of(k: int, p: float) -> int:
    """`Rule.ranked` of top-k and top-p."""
    if k:
        return power_of(k, 64)
    return -1 if p < 1 else 0


def rule_of(choice: Choice | Rule) -> Rule:
    """The rule that a choice is."""
    if isinstance(choice, Rule):
        return choice
    c = choice
    ranked = ranked_of(c.top_k, c.top_p)
    return Rule(c.temperature, c.top_k, c.top_p, c.min_p, c.repetition, ranked)


def filtered(logits, choice: Choice | Rule):
    """Top-k, top-p and min-p; an id stays if each of them alone would keep it.

    All are judged on the distribution before any was applied, so their order does not matter.
    """
    c = rule_of(choice)
    return min_p(_likeliest(logits, c.top_k, c.top_p, c.ranked), c.min_p)


def _tempered(logits, temperature: float):
    """Logits / temperature, moved so that the largest is 0: nothing overflows to +inf."""
    return (logits - logits.max(-1, keepdims=True)) / temperature


def choose(logits, choice: Choice | Rule, keys, seen=None):
    """Chooses one id a row: penalty, then temperature, then the filters, then a draw.

    At temperature 0 it is the likeliest after the penalty, the lowest id of equal ones.

    Args:
        logits: [b, v] f32; the caller sees to it that at least one a row is above -inf. For a row
            without any the answer is 0, which means nothing.
        choice: a Choice is compiled in, the numbers of a Rule may be arguments.
        keys: [b], one a row.
        seen: [b, v] bool, the ids so far; without it there is no penalty.

    Returns:
        [b] int32.
    """
    if seen is not None:
        logits = penalise(logits, seen, choice.repetition)

    def draw(logits):
        some = filtered(_tempered(logits, choice.temperature), choice)
        return jax.vmap(jax.random.categorical)(keys, some).astype(jnp.int32)

    return either(choice.temperature == 0.0, likeliest, draw, logits)


def likeliest(logits):
    """[..., v] -> [...] int32: the id of the largest, the lowest of equal ones."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def either(said, yes: Callable, no: Callable, x):
    """Yes(x) or no(x); only one of them is compiled where it is known by then which."""
    if not isinstance(said, jax.Array):
        return yes(x) if said else no(x)
    return jax.lax.cond(said, yes, no, x)
