"""Prefill a prompt, score text and embed documents, with any family.

All functions here are pure and meant to be jitted; rows are independent of each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.batch import TEXT, Batch, Vocabulary
from mmjax.layers.attention import KV
from mmjax.layers.linear import linear
from mmjax.losses import chunk_count, in_chunks
from mmjax.models.decoder import empty_cache
from mmjax.models.family import Reader
from mmjax.models.tokens import CHUNK_TOKENS


class Filled(NamedTuple):
    """A batch of prompts after prefill.

    Attributes:
        cache: keys and values of the prompt, with room behind them.
        length: [b] int32, positions the prompt takes. position: [b] int32, of its last token.
        last: [b, d] decoder output at the last token.
        sees: [b, m] bool, columns that what follows may look at: all, but for registers' sake.
    """

    cache: KV
    length: jax.Array
    position: jax.Array
    last: jax.Array
    sees: jax.Array


def prefill(parts: Reader, params, prompt: Batch, room: int) -> Filled:
    """Runs the prompts once and keeps their keys and values, with `room` free columns behind."""
    b, length = prompt.tokens.shape
    held = prompt.segment > 0
    # Padding is written nowhere: its column lies beyond the cache.
    columns = jnp.where(held, jnp.arange(length)[None], length + room)
    mask = jnp.pad(parts.mask(prompt), ((0, 0), (0, 0), (0, room)))
    cache = empty_cache(parts.decoder, b, length + room)
    x = parts.clean(params, prompt)
    at = mask, prompt.position, cache, columns
    hidden, cache = parts.run(params, x, *at, tower=prompt.modality)
    taken = held.sum(-1)
    pick = (taken - 1)[:, None]
    position = jnp.take_along_axis(prompt.position, pick, axis=1)[:, 0]
    last = jnp.take_along_axis(hidden, pick[:, :, None], axis=1)[:, 0]
    sees = behind_registers(prompt, parts.vocabulary)
    return Filled(cache, taken, position, last, jnp.pad(sees, ((0, 0), (0, room)), mode="edge"))


def behind_registers(prompt: Batch, vocabulary: Vocabulary):
    """[b, l] bool: which positions of a prompt are seen behind it, as `mmjax.batch.unparted`."""
    index = jnp.arange(prompt.tokens.shape[1])[None]
    if not vocabulary.registers:
        return jnp.broadcast_to(index >= 0, prompt.tokens.shape)
    mark = jnp.isin(prompt.tokens, jnp.array(vocabulary.registers))
    last = jnp.where(mark, index, 0).max(1, keepdims=True)
    return mark | (index == 0) | (index >= last)


def logits_of(parts: Reader, params, hidden):
    """[..., d] -> [..., v] f32."""
    return linear(hidden, parts.head(params), 1, "float32")


def text_log_likelihood(parts: Reader, params, batch: Batch, opens=True):
    """[b, l] f32: log p(token j | what stands before), 0 at the first; pictures as they are.

    opens: whether a picture may begin, at any token, for all rows or [b] bool; where it may not,
        BOI has no probability, and where BOI stands all the same, 0 is returned for it.
    """
    batch = parts.coded(params, batch)
    x = parts.clean(params, batch)
    hidden, _ = parts.run(params, x, parts.mask(batch), batch.position, tower=batch.modality)
    return next_log_likelihood(parts, params, hidden, batch.tokens, opens)


def next_log_likelihood(parts: Reader, params, hidden, tokens, opens=True):
    """[b, l] f32: log p(token j), read from the output before it, 0 at the first.

    Logits exist for CHUNK_TOKENS positions at a time, as in the training loss: [b, l, v] numbers
    would be 74 GB for 256 rows of a model of 7B.

    Args:
        hidden: [b, l, d]. tokens: [b, l] int32. opens: see `text_log_likelihood`.
    """
    boi, (b, length) = parts.vocabulary.boi, tokens.shape
    head = parts.head(params)
    barred = (jnp.arange(head.shape[1]) == boi)[None, None]  # nowhere, if there is no BOI
    closed = jnp.broadcast_to(jnp.logical_not(jnp.asarray(opens)), (b,))[:, None]
    # The last position says nothing, and is kept for the shape.
    targets = jnp.roll(tokens, -1, axis=1)

    def some(part):
        hidden, targets = part
        logits = linear(hidden, head, 1, "float32")
        logits = jnp.where(closed[..., None] & barred, -jnp.inf, logits)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        found = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(closed & (targets == boi), 0.0, found)

    count = chunk_count(b, length, CHUNK_TOKENS)
    found = jax.lax.map(some, (in_chunks(hidden, count), in_chunks(targets, count)))
    found = jnp.moveaxis(found, 0, 1).reshape(b, length)
    return jnp.pad(found[:, :-1], ((0, 0), (1, 0)))


def embedding(parts: Reader, params, batch: Batch):
    """[b, d] f32 of unit length: the decoder's outputs averaged over a row's one document."""
    x = parts.clean(params, batch)
    hidden, _ = parts.run(params, x, parts.mask(batch), batch.position, tower=batch.modality)
    held = (batch.segment > 0).astype(jnp.float32)
    total = jnp.einsum("bld,bl->bd", hidden.astype(jnp.float32), held, precision="highest")
    return total / jnp.linalg.norm(total, axis=-1, keepdims=True)


def word_weight(batch: Batch, vocabulary: Vocabulary):
    """[b, l] f32: 1 at text tokens of a document other than BOI, EOI and the first BOS."""
    v = vocabulary
    keep = (batch.modality == TEXT) & (batch.segment > 0) & (batch.weight > 0)
    for sentinel in (v.bos, v.boi, v.eoi):
        keep &= batch.tokens != sentinel
    return keep.astype(jnp.float32)
