"""What guidance reads beside a prompt: its pictures only, or nothing but the picture to draw."""

import jax.numpy as jnp

from mmjax.batch import TEXT, Batch, Vocabulary


def compress(prompt: Batch, keep) -> Batch:
    """Rows with only the positions `keep` [b, l] says, moved to the left, counted anew."""
    order = jnp.argsort(~keep, axis=1, stable=True)
    tokens, modality, image = (
        jnp.take_along_axis(x, order, axis=1)
        for x in (prompt.tokens, prompt.modality, prompt.image)
    )
    held = jnp.take_along_axis(keep, order, axis=1).astype(jnp.int32)
    place = jnp.broadcast_to(jnp.arange(keep.shape[1], dtype=jnp.int32)[None], keep.shape) * held
    return prompt._replace(
        tokens=tokens * held, modality=modality * held, image=image * held, segment=held,
        position=place,
    )  # fmt: skip


def with_mask(blank: Batch, vocabulary: Vocabulary) -> Batch:
    """`BOS ...` -> `BOS <mask> ...`, a position longer."""
    index = jnp.arange(blank.tokens.shape[1], dtype=jnp.int32)[None]
    held = (index <= blank.segment.sum(1, keepdims=True)).astype(jnp.int32)
    tokens = jnp.where(index > 1, jnp.roll(blank.tokens, 1, axis=1), blank.tokens)
    tokens = jnp.where(index == 1, vocabulary.masks[0], tokens)
    return blank._replace(tokens=tokens * held, segment=held, position=index * held)


def stream_of(
    name: str, prompt: Batch, draws, vocabulary: Vocabulary, masked: bool = False
) -> Batch:
    """A stream's prompt: all of it, its pictures, or BOS and what opens the picture to draw.

    `draws`: [b] bool, rows whose prompt ends in an open picture. With `masked` the prompt's words
    between pictures are one `<mask>`; so they are in the blank stream, in any case.
    """
    if name == "full":
        return prompt
    v, held = vocabulary, prompt.segment > 0
    index = jnp.arange(held.shape[1])[None]
    last = index == held.sum(1, keepdims=True) - 1
    opened = last & draws[:, None]
    if name == "blank":
        blank = compress(prompt, (index == 0) | opened)
        return with_mask(blank, v) if masked else blank
    around = jnp.array([v.bos, v.boi, v.eoi, *v.registers])
    picture = (prompt.modality != TEXT) | jnp.isin(prompt.tokens, around)
    if masked:
        word = held & ~picture
        first = word & ~jnp.pad(word, ((0, 0), (1, 0)))[:, :-1]
        number = jnp.clip(jnp.cumsum(first, axis=1) - 1, 0, len(v.masks) - 1)
        tokens = jnp.where(first, jnp.array(v.masks)[number], prompt.tokens)
        prompt, picture = prompt._replace(tokens=tokens), picture | first
    return compress(prompt, held & (picture | opened))
