"""Prefill a prompt, score text and embed documents, with any family.

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


def text_log_likelihood(parts: Reader, params, batch: Batch, opens: bool = True):
    """[b, l] f32: log p(token j | what stands before), 0 at the first; pictures as they are.

    opens: whether a picture may begin, at any token; where it may not, BOI has no probability.
    """
    batch = parts.coded(params, batch)
    x = parts.clean(params, batch)
    hidden, _ = parts.run(params, x, parts.mask(batch), batch.position, tower=batch.modality)
    logits = logits_of(parts, params, hidden[:, :-1])
    logits = logits if opens else logits.at[..., parts.vocabulary.boi].set(-jnp.inf)
    logs = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(logs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.pad(chosen, ((0, 0), (1, 0)))


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
