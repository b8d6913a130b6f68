"""Weights of one modality each, and the way of a token through those of its own.

Mixture-of-Transformers (Liang et al. 2024, arXiv 2411.04996, Algorithm 1): every token takes the
weights of its modality's tower, and attention between them stays one over all. Tower 0 has the
names a dense decoder has ("q"), tower m has them numbered ("q_1").
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec as P

from mmjax.layers.grouped import BLOCK, block_size, grouped, places
from mmjax.layers.linear import linear
from mmjax.layers.weight import Layer, fan_in
from mmjax.mesh import Rules

NUMBERED = re.compile(r"(.+)_\d+")  # names of the weights of towers 1, 2, ...


class Route(NamedTuple):
    """Which tower each token goes through.

    Attributes:
        tower: [b, l] int32.
        order: [o] int32: which of the tokens on its data shard stands at each place once they are
            sorted by tower, see `grouped.places`; or None, where every token goes through all
            towers and keeps what its own made.
        back: [b, l] int32, the inverse of `order`, or None. sizes: [m] int32, how many tokens on
            the data shard each tower has, or None.
    """

    tower: jax.Array
    order: jax.Array | None = None
    back: jax.Array | None = None
    sizes: jax.Array | None = None


def route(rules: Rules, tower, towers: int, grouped: bool) -> Route:
    """The route of tokens whose towers are [b, l] int32; sorted if `grouped` and there are enough.

    Tokens never leave their shard, so a few on each (as in decoding) are not worth sorting.
    """
    rows, shards = tower.shape[0], rules.split("batch")
    if not grouped or rows % shards or tower.size // shards < 4 * BLOCK:
        return Route(tower)
    block = block_size(rules.mesh.devices.flat[0].platform, tower.size // shards)

    def sort(tower):
        order, back, sizes = places(tower.reshape(-1), towers, block)
        return order, back.reshape(tower.shape), sizes

    return Route(tower, *on_each_shard(rules, sort, (tower,), ()))


def on_each_shard(rules: Rules, function, rows, whole):
    """function(*rows, *whole) by each data shard on its own rows, `whole` being the same to all."""
    if rules.split("batch") == 1:
        return function(*rows, *whole)
    axes = (rules.batch,) if isinstance(rules.batch, str) else tuple(rules.batch or ())
    specs = (P(axes),) * len(rows) + (P(),) * len(whole)
    return jax.shard_map(
        function, mesh=rules.mesh, in_specs=specs, out_specs=P(axes), axis_names=frozenset(axes),
        check_vma=False,
    )(*rows, *whole)  # fmt: skip


def weights(
    layer: Layer, towers: int, name: str, shape, axes, init=fan_in, dtype: str = ""
) -> tuple:
    """A weight of `layer` for each tower: `name`, `name`_1, ..."""
    names = (name if m == 0 else f"{name}_{m}" for m in range(towers))
    return tuple(layer.weight(one, shape, axes, init, dtype) for one in names)


def own(found, tower):
    """Of what each tower has for every token, [b, l, ...] or [1, 1, ...], the token's own."""
    y = found[0]
    for m, other in enumerate(found[1:], start=1):
        mine = tower.reshape(*tower.shape, *(1,) * (y.ndim - tower.ndim)) == m
        y = jnp.where(mine, other, y)
    return y


def scale_of(scales, path: Route | None):
    """Scales or biases, one a tower, [...] each -> [b, l, ...], or [...] where all share one."""
    if path is None or len(scales) == 1:
        return scales[0]
    return own([x[None, None] for x in scales], path.tower)


def through(rules: Rules, path: Route | None, function: Callable, x, held):
    """A few matrix products, each token's by the weights of its tower.

    Args:
        rules: the layout. path: None sends all through tower 0.
        function: (product, x [.., d], held) -> tree of [.., f], where product(x, weights, axes=1)
            is `linear` by each token's own; it may do nothing else that looks at other tokens, and
            make nothing else of a product that it returns.
        x: [b, l, d]. held: tuple of `weights`.

    Returns:
        The tree, [b, l, f].
    """
    if path is None or all(len(w) == 1 for w in held):
        return function(lambda x, w, axes=1: linear(x, w[0], axes), x, held)
    if path.order is None:

        def product(x, w, axes=1):
            return own([linear(x, one, axes) for one in w], path.tower)

        return function(product, x, held)
    platform = rules.mesh.devices.flat[0].platform

    def one_shard(x, tower, order, back, sizes, held):
        flat = permute(x.reshape(tower.size, *x.shape[2:]), order, back.reshape(-1))
        y = grouped(function, flat, held, sizes, block_size(platform, tower.size))

        def in_rows(y):
            return permute(y, back.reshape(-1), order).reshape(*tower.shape, *y.shape[1:])

        return jax.tree.map(in_rows, y)

    return on_each_shard(rules, one_shard, (x, *path), (held,))


@jax.custom_vjp
def permute(x, order, back):
    """x[order] along axis 0, zeros where there is none.

    With the inverse at hand its gradient is no scatter.
    """
    return x.at[order].get(mode="fill", fill_value=0)


permute.defvjp(
    lambda x, order, back: (permute(x, order, back), (order, back)),
    lambda held, g: (permute(g, *held[::-1]), None, None),
)


def dense_name(path: str) -> str:
    """The path "a/b" that a weight of any tower has in a dense decoder."""
    group, _, name = path.rpartition("/")
    numbered = NUMBERED.fullmatch(name)
    return f"{group}/{numbered[1]}" if numbered else path


def untied(params):
    """Params-shaped tree of bool: whether a leaf is one tower's; tower 0 may be left out."""
    flat = flatten_dict(params)
    first = {(*path[:-1], n[1]) for path in flat if (n := NUMBERED.fullmatch(path[-1]))}
    return unflatten_dict(
        {path: path in first or bool(NUMBERED.fullmatch(path[-1])) for path in flat}
    )


def shared_fraction(params) -> float:
    """Of the weights on one token's way through a decoder, the share that all towers share.

    In [0, 1], 1 for a dense decoder; `params`, or their shapes, are the decoder's alone.
    """
    mark = flatten_dict(untied(params))
    way = {p: x.size for p, x in flatten_dict(params).items() if not NUMBERED.fullmatch(p[-1])}
    shared = sum(size for path, size in way.items() if not mark[path])
    return shared / sum(way.values()) if way else 1.0
