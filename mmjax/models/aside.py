"""A decoder that looks aside: cross-attention to pictures between its layers, with a cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.layers.attention import KV, write
from mmjax.layers.cross import Cross, CrossConfig
from mmjax.layers.norm import rms_norm
from mmjax.layers.position import rope_angles
from mmjax.mesh import Rules
from mmjax.models.decoder import Block, DecoderConfig, Watch


class Read(NamedTuple):
    """What the decoder reads.

    Attributes:
        x: [b, l, d], words embedded. media: [b, i, p, d of the tower], what is to be seen.
        looks: [b, l, i] bool, at which pictures a position looks.
    """

    x: jax.Array
    media: jax.Array
    looks: jax.Array


class Kept(NamedTuple):
    """A cache of rows that have been read.

    Attributes:
        keys, values: of all layers, [n, b, g, m, k].
        cross: of the pictures in all blocks between them, [c, b, h, i p, k].
        looks: [b, 1, i] bool, at which of them the next words look.
    """

    keys: jax.Array
    values: jax.Array
    cross: KV
    looks: jax.Array


def run(
    d: DecoderConfig, c: CrossConfig, rules: Rules, params, x, mask, position, cache=None,
    columns=None, keys=None, watch: bool = False, tower=None,
):  # fmt: skip
    """The decoder and the blocks between its layers; as `Decoder`, but for two arguments.

    Args:
        d, c, rules, params: the decoder, the blocks, the layout, and the weights of both.
        x: a `Read`; or an array [b, l, d], which looks at what `cache` holds.
        mask, position, columns, keys, watch: as of `Decoder`.
        cache: a `KV` with a `Read`, of which a `Kept` comes back; a `Kept` with an array.
        tower: not looked at, pictures have no weights of their own in the decoder.
    """
    del tower
    first = isinstance(x, Read)
    assert first or isinstance(cache, Kept), "words alone go with what was kept of pictures"
    # All blocks read the pictures: in f32 their gradients are added up in f32.
    media = x.media.astype(jnp.float32) if first else None
    looks = x.looks if first else cache.looks
    x = rules.constrain((x.x if first else x).astype(d.dtype), "batch", "length", None)
    angles = rope_angles(position, d.head_dim, d.theta, d.rope_scaling)
    own = None if cache is None else KV(cache.keys, cache.values)
    held = cache.cross if isinstance(cache, Kept) else None
    block, cross = Block(rules, d.dtype, d), Cross(rules, d.dtype, c)

    def layer(x, its):
        params, held, number = its
        return block.apply({"params": params}, x, held, number, mask, angles, columns, keys, None)

    def look(x, its):
        params, held = its
        seen = media if media is None else media.astype(d.dtype)
        x, held = cross.apply({"params": params}, x, seen, looks, held)
        return x, held if cache is not None else None

    if d.remat:
        layer, look = (jax.checkpoint(f, prevent_cse=False) for f in (layer, look))
    layers = params["decoder"]["blocks"], own, jnp.arange(d.depth)
    blocks = params["cross"]["blocks"], held
    x, (new, peak), seen = in_groups(d, c, layer, look, x, layers, blocks)
    if own is not None:
        # As in `Decoder`: the columns depend on the output, so that the cache is written in place.
        columns = jnp.where(jnp.isnan(x[:, :, 0]), own.keys.shape[3], columns)
        own = jax.vmap(write, (0, 0, None))(own, new, columns)
        cache = Kept(*own, seen, last_looks(looks, columns, own.keys.shape[3]) if first else looks)
    y = rms_norm(x, params["decoder"]["final_norm"], d.eps)
    if not watch:
        return y, cache
    last = jax.lax.stop_gradient(x.astype(jnp.float32))
    return y, cache, Watch(peak, jnp.sqrt(jnp.mean(last**2, axis=-1)))


def last_looks(looks, columns, total: int):
    """[b, 1, i]: where the last position looks that was written in `total` columns."""
    last = jnp.where(columns < total, columns, -1).argmax(1)
    return jnp.take_along_axis(looks, last[:, None, None], axis=1)


def in_groups(d: DecoderConfig, c: CrossConfig, layer, look, x, layers, blocks):
    """Runs the decoder's layers, and before one of every few of them a block that looks aside.

    Args:
        d, c: say how many layers there are, and before which of them blocks.
        layer, look: (x, leaves of one) -> (x, leaves it makes).
        x: [b, l, d]. layers, blocks: trees of leaves stacked on axis 0, n and c of them.

    Returns:
        (x, what the layers made, what the blocks made), stacked on axis 0.
    """
    every, full = c.every, d.depth // c.every

    def cut(tree, start, stop):
        return jax.tree.map(lambda leaf: leaf[start:stop], tree)

    def joined(*trees):
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)

    def some(x, its, count):
        return jax.lax.scan(layer, x, its, unroll=min(d.unroll, count))

    def group(x, its):
        mine, block = its
        if not c.offset:
            x, seen = look(x, block)
            x, made = some(x, mine, every)
            return x, (made, seen)
        x, before = some(x, cut(mine, 0, c.offset), c.offset)
        x, seen = look(x, block)
        x, behind = some(x, cut(mine, c.offset, every), every - c.offset)
        return x, (joined(before, behind), seen)

    def grouped(leaf):
        return leaf[: full * every].reshape(full, every, *leaf.shape[1:])

    made, seen = [], []
    if full:
        its = jax.tree.map(grouped, layers), cut(blocks, 0, full)
        unroll = max(1, min(d.unroll // every, full))
        x, (new, looked) = jax.lax.scan(group, x, its, unroll=unroll)
        made.append(jax.tree.map(lambda leaf: leaf.reshape(full * every, *leaf.shape[2:]), new))
        seen.append(looked)
    if full * every < d.depth:  # a last, shorter group
        if c.count(d.depth) > full:
            x, looked = look(x, jax.tree.map(lambda leaf: leaf[full], blocks))
            seen.append(jax.tree.map(lambda leaf: leaf[None], looked))
        x, new = some(x, cut(layers, full * every, d.depth), d.depth - full * every)
        made.append(new)
    return x, joined(*made), joined(*seen)
