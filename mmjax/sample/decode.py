"""Prefill a prompt, write text, score text, with any family; denoise a picture (transfusion).

All functions here are pure and meant to be jitted; rows are independent of each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.batch import TEXT, Batch, Vocabulary
from mmjax.layers.attention import KV
from mmjax.layers.linear import linear
from mmjax.models.decoder import empty_cache
from mmjax.models.family import Reader
from mmjax.models.transfusion import Parts, to_picture
from mmjax.sample.flow import euler, guided


class Filled(NamedTuple):
    """A batch of prompts after prefill.

    Attributes:
        cache: keys and values of the prompt, with room behind them.
        length: [b] int32, positions the prompt takes. position: [b] int32, of its last token.
        last: [b, d] decoder output at the last token.
    """

    cache: KV
    length: jax.Array
    position: jax.Array
    last: jax.Array


def prefill(parts: Reader, params, prompt: Batch, room: int) -> Filled:
    """Runs the prompts once and keeps their keys and values, with `room` free columns behind."""
    b, length = prompt.tokens.shape
    held = prompt.segment > 0
    # Padding is written nowhere: its column lies beyond the cache.
    columns = jnp.where(held, jnp.arange(length)[None], length + room)
    mask = jnp.pad(parts.mask(prompt), ((0, 0), (0, 0), (0, room)))
    cache = empty_cache(parts.decoder, b, length + room)
    x = parts.clean(params, prompt)
    hidden, cache = parts.run(params, x, mask, prompt.position, cache, columns)
    taken = held.sum(-1)
    pick = (taken - 1)[:, None]
    position = jnp.take_along_axis(prompt.position, pick, axis=1)[:, 0]
    last = jnp.take_along_axis(hidden, pick[:, :, None], axis=1)[:, 0]
    return Filled(cache, taken, position, last)


def draw(parts: Parts, params, prompt: Batch, keys, shared: bool, steps: int, guidance: float):
    """Draws one picture behind every prompt (which ends in BOI).

    Args:
        prompt: [b, l] rows. keys: [b], one a row.
        shared: whether a picture's patches share one position id, as in training.
        steps: Euler steps. guidance: scale s in u + s (c - u); at 1 the prompt alone is used.

    Returns:
        [b, h, w, 3] uint8.
    """
    c = parts.config
    b = prompt.tokens.shape[0]
    rows = prompt
    if guidance != 1.0:
        rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), prompt, blank(parts, prompt))
    filled = prefill(parts, params, rows, c.patches)
    count = jnp.arange(c.patches)[None]
    columns = filled.length[:, None] + count
    position = filled.position[:, None] + 1 + (jnp.zeros_like(count) if shared else count)
    total = filled.cache.keys.shape[3]
    mask = (jnp.arange(total)[None] < filled.length[:, None] + c.patches)[:, None]
    mask = jnp.broadcast_to(mask, (mask.shape[0], c.patches, total))

    def velocity(x, t):
        times = len(filled.length) // b
        level = jnp.full((b * times, 1), t)
        noisy = jnp.tile(x, (times, 1, 1))[:, None]
        inputs = parts.patch_in(params, noisy, level)[:, 0]
        hidden, _ = parts.run(params, inputs, mask, position, filled.cache, columns)
        v = parts.velocity(params, hidden[:, None], noisy, level)[:, 0]
        return v if times == 1 else guided(v[:b], v[b:], guidance)

    shape = (c.patches, c.channels)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    patches = euler(velocity, noise, steps)
    return to_picture(c, patches)


def blank(parts: Parts, prompt: Batch) -> Batch:
    """The prompt without its content, `BOS BOI`: what caption dropout trains."""
    v = parts.vocabulary
    index = jnp.arange(prompt.tokens.shape[1])[None]
    tokens = jnp.where(index == 0, v.bos, jnp.where(index == 1, v.boi, v.pad))
    both = jnp.broadcast_to(index < 2, prompt.tokens.shape).astype(jnp.int32)
    nothing = jnp.zeros_like(prompt.tokens)
    tokens = jnp.broadcast_to(tokens, nothing.shape).astype(nothing.dtype)
    place = jnp.broadcast_to(index, nothing.shape) * both
    return prompt._replace(
        tokens=tokens, modality=nothing, segment=both, position=place, image=nothing
    )


def logits_of(parts: Reader, params, hidden):
    """[..., d] -> [..., v] f32."""
    return linear(hidden, parts.head(params), 1, "float32")


def write(parts: Reader, params, prompt: Batch, keys, count: int, temperature: float):
    """Writes text behind every prompt until EOS or `count` tokens.

    Args:
        prompt: [b, l] rows. keys: [b], one a row. temperature: 0 is greedy.

    Returns:
        [b, count] int32; after a row's EOS there is padding.
    """
    v = parts.vocabulary
    filled = prefill(parts, params, prompt, count)
    total = filled.cache.keys.shape[3]
    banned = jnp.array([v.pad, v.bos, v.boi, v.eoi])

    def pick(hidden, step):
        logits = logits_of(parts, params, hidden).at[:, banned].set(-jnp.inf)
        if temperature == 0.0:
            return jnp.argmax(logits, axis=-1)
        draws = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
        return jax.vmap(jax.random.categorical)(draws, logits / temperature)

    def body(carry, step):
        cache, hidden, done = carry
        token = jnp.where(done, v.pad, pick(hidden, step)).astype(jnp.int32)
        done |= token == v.eos
        column = (filled.length + step)[:, None]
        position = (filled.position + 1 + step)[:, None]
        mask = (jnp.arange(total)[None] <= column)[:, None]
        x = parts.embed(params, token[:, None])
        hidden, cache = parts.run(params, x, mask, position, cache, column)
        return (cache, hidden[:, 0], done), token

    start = (filled.cache, filled.last, jnp.zeros(prompt.tokens.shape[0], bool))
    _, tokens = jax.lax.scan(body, start, jnp.arange(count))
    return tokens.T


def text_log_likelihood(parts: Reader, params, batch: Batch):
    """[b, l] f32: log p(token j | what stands before), 0 at the first; pictures as they are."""
    batch = parts.coded(params, batch)
    x = parts.clean(params, batch)
    hidden, _ = parts.run(params, x, parts.mask(batch), batch.position)
    logs = jax.nn.log_softmax(logits_of(parts, params, hidden[:, :-1]), axis=-1)
    chosen = jnp.take_along_axis(logs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(chosen, ((0, 0), (1, 0)))


def embedding(parts: Reader, params, batch: Batch):
    """[b, d] f32 of unit length: the decoder's outputs averaged over a row's one document."""
    x = parts.clean(params, batch)
    hidden, _ = parts.run(params, x, parts.mask(batch), batch.position)
    held = (batch.segment > 0).astype(jnp.float32)
    total = jnp.einsum("bld,bl->bd", hidden.astype(jnp.float32), held)
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


def word_weight(batch: Batch, vocabulary: Vocabulary):
    """[b, l] f32: 1 at text tokens of a document other than BOI, EOI and the first BOS."""
    v = vocabulary
    keep = (batch.modality == TEXT) & (batch.segment > 0) & (batch.weight > 0)
    for sentinel in (v.bos, v.boi, v.eoi):
        keep &= batch.tokens != sentinel
    return keep.astype(jnp.float32)
