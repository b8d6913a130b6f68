"""AdamW and Muon, their schedule, and what decays."""

import re
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax import contrib

from mmjax.config import OptimConfig
from mmjax.error import UserError
from mmjax.layers.tower import untied
from mmjax.models.family import lies_in

STACKED = "blocks"  # parameters below names that begin so carry the layers on axis 0


def schedule(c: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then the decay, over `steps` updates.

    Raises:
        UserError: for an unknown decay.
    """
    rest = max(steps - c.warmup, 1)
    decays = {
        "cosine": optax.cosine_decay_schedule(c.peak, rest, alpha=c.floor),
        "linear": optax.linear_schedule(c.peak, c.peak * c.floor, rest),
        "constant": optax.constant_schedule(c.peak),
    }
    if c.floor > 0:  # from peak to peak * floor by the same factor at every step
        decays["exponential"] = optax.exponential_decay(c.peak, rest, c.floor)
    if c.decay not in decays:
        raise UserError(
            f"optim.decay={c.decay!r} is unknown; have: cosine, linear, constant, and, with "
            f"optim.floor above 0 (it is {c.floor}), exponential"
        )
    # The first update uses step 0: start above zero, or it would be lost.
    warm = optax.linear_schedule(c.peak / (c.warmup + 1), c.peak, c.warmup)
    return optax.join_schedules([warm, decays[c.decay]], [c.warmup])


def stacked(path) -> bool:
    """Whether a leaf's axis 0 holds layers."""
    return any(re.fullmatch(rf"{STACKED}(_\d+)?", str(getattr(p, "key", ""))) for p in path)


def scales(path) -> bool:
    """Whether a leaf is a norm's scale or a bias, be there one for each head."""
    return str(getattr(path[-1], "key", "")).endswith(("_scale", "_bias"))


def decays(params):
    """Params-shaped tree of bool: matrices decay, scales and biases do not."""

    def rank(path, x):
        first = int(stacked(path))
        return x.ndim - first >= 2 and x.shape[first] > 1 and not scales(path)

    return jax.tree_util.tree_map_with_path(rank, params)


def matrices(params):
    """Params-shaped tree: for the decoder's matrices which axes are input and output, else None.

    Axis 0 holds the layers. Attention's output maps (h, k) to d; all others map their first axis.
    """

    def axes(path, x):
        if not stacked(path) or x.ndim < 3 or x.shape[1] == 1 or scales(path):
            return None
        split = x.ndim - 1 if re.fullmatch(r"o(_\d+)?", path[-1].key) else 2
        return contrib.MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, x.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)


def sparing(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule, but a tower that had no tokens in a step does not decay in it.

    Rules read the weights for their decay only, so where the whole gradient of a tower's weight is
    zero they are shown zeros. What all towers share is not looked at.
    """

    def update(updates, state, params=None):
        def seen(p, g, own):
            return jnp.where(jnp.any(g != 0), p, 0) if own else p

        shown = jax.tree.map(seen, params, updates, untied(params))
        return rule.update(updates, state, shown)

    return optax.GradientTransformation(rule.init, update)


def scaled(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of parts of the weights, path "a/b" -> factor: rates of their own."""

    def update(updates, params=None):
        del params
        flat = flatten_dict(updates, sep="/")
        for part, factor in rates.items():
            flat |= {k: factor * x for k, x in flat.items() if lies_in(k, part)}
        return unflatten_dict(flat, sep="/")

    return optax.stateless(update)


def optimizer(
    c: OptimConfig, steps: int, rates: Mapping[str, float] = MappingProxyType({})
) -> optax.GradientTransformation:
    """Clip by global norm, AdamW or Muon, schedule; `rates` as `Model` has them.

    Raises:
        UserError: for an unknown kind.
    """
    rate = schedule(c, steps)
    if c.kind == "adamw":
        rule = optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=decays)
    elif c.kind == "muon":
        # Updates of AdamW's size (Liu et al. 2025, arXiv 2502.16982), so one rate serves both.
        rule = contrib.muon(
            rate,
            weight_decay=c.weight_decay,
            adam_b1=c.b1,
            adam_b2=c.b2,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        )
    else:
        raise UserError(f"optim.kind={c.kind!r} is unknown; have: adamw, muon")
    chain = optax.clip_by_global_norm(c.clip), sparing(rule)
    return optax.chain(*chain, scaled(rates)) if rates else optax.chain(*chain)
