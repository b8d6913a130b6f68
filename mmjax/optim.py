"""AdamW and Muon, their schedule, and what decays."""

import math
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
from mmjax.layers.tower import dense_name, untied
from mmjax.models.family import lies_in

STACKED = "blocks"  # parameters below names that begin so carry the layers on axis 0
# Names of norms' scales, of biases and of gates, without a tower's number.
VECTORS = re.compile(r"(.+_)?(scale|bias)|.+_(gate|norm)")
RMS = 0.2  # of an update's numbers at a rate of 1, as AdamW's are about


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


def name_of(path) -> str:
    """A leaf's own name; that of a tower's weight is the one it has in a dense decoder."""
    return dense_name("/".join(str(getattr(p, "key", "")) for p in path)).rpartition("/")[2]


def vector(path, x) -> bool:
    """Whether a leaf is one number a channel, or one a channel of each head, and no matrix.

    Norms' scales, biases and gates, of any tower; learned vectors; codebooks, which are averages of
    what the encoder makes.
    """
    if VECTORS.fullmatch(name_of(path)) or any(getattr(p, "key", "") == "book" for p in path):
        return True
    return sum(size > 1 for size in x.shape[int(stacked(path)) :]) < 2


def decays(params):
    """Params-shaped tree of bool: matrices, kernels and tables decay, vectors do not."""
    return jax.tree_util.tree_map_with_path(lambda path, x: not vector(path, x), params)


def matrices(params):
    """Params-shaped tree: of matrices of stacked blocks which axes are in- and output, else None.

    Axis 0 holds the layers. Attention's output maps (h, k) to d; all others map their first axis.
    """

    return jax.tree_util.tree_map_with_path(axes_of, params)


def axes_of(path, x) -> contrib.MuonDimensionNumbers | None:
    """The same of one leaf."""
    if not stacked(path) or x.ndim < 3 or vector(path, x):
        return None
    split = x.ndim - 1 if name_of(path) == "o" else 2
    return contrib.MuonDimensionNumbers(tuple(range(1, split)), tuple(range(split, x.ndim)))


def muon(c: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon for `matrices`, and for all else the rule that `kind="adamw"` is.

    Updates of matrices are brought to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so
    one rate and one weight decay serve both. Muon's own products, which need no precision, are
    left to the platform.
    """

    def sized(updates, params=None):
        del params

        def one(x, axes):
            ways = (math.prod(x.shape[a] for a in group) for group in axes)
            return x * (RMS * max(ways) ** 0.5)

        return jax.tree.map(one, updates, matrices(updates))

    turned = optax.chain(
        contrib.scale_by_muon(weight_dimension_numbers=matrices),
        optax.stateless(sized),
        optax.add_decayed_weights(c.weight_decay),
        optax.scale_by_learning_rate(rate),
    )

    def labels(params):
        mine = jax.tree_util.tree_map_with_path(
            lambda path, x: axes_of(path, x) is not None, params
        )
        return jax.tree.map(lambda muon: "muon" if muon else "adam", mine)

    return optax.partition({"muon": turned, "adam": adamw(c, rate)}, labels)


def adamw(c: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019); only what `decays` says does."""
    return optax.adamw(rate, c.b1, c.b2, c.eps, weight_decay=c.weight_decay, mask=decays)


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
        rule = adamw(c, rate)
    elif c.kind == "muon":
        rule = muon(c, rate)
    else:
        raise UserError(f"optim.kind={c.kind!r} is unknown; have: adamw, muon")
    chain = optax.clip_by_global_norm(c.clip), sparing(rule)
    return optax.chain(*chain, scaled(rates)) if rates else optax.chain(*chain)
