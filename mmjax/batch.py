"""Documents on the host, one `Batch` on the device, and every mask as a function of its fields.

A document is a list of parts, `[Text | Image | Sentinel, ...]`. Written out as one line of
positions it reads `BOS part part ... EOS`, where an image is `BOI patch ... patch EOI`. The
sentinels have the modality of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TEXT, IMAGE = 0, 1  # values of Batch.modality; 2, 3, ... are modalities of their own


@dataclass(frozen=True)
class Text:
    """A stretch of text; with `loss=False` the model reads it but is not trained to write it."""

    text: str
    loss: bool = True


class Coded(NamedTuple):
    """What a codec made of a picture: codes [p], int32, or latents [h, w, c], float16, as bytes."""

    data: bytes
    dtype: str
    shape: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The numbers."""
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Image:
    """A picture, still encoded (PNG, JPEG, ...) until a worker decodes it.

    In a data set that `mmjax tokenize` wrote, `data` is empty and `coded` holds what a codec made.
    With `shrink` > 1 a picture is read as if its side had that many times fewer pixels. `kind` is
    the number of its kind among those of the configuration, 0 the default, and `modality` that of
    its positions; `of` says in a prompt which kind it is, by name, where its aspect does not.
    """

    data: bytes
    loss: bool = True
    coded: Coded | None = None
    shrink: int = 1
    kind: int = 0
    modality: int = IMAGE
    of: str = ""

    @property
    def content(self) -> bytes | np.ndarray:
        """The codec's numbers where there are some, else the encoded picture."""
        return self.data if self.coded is None else self.coded.array()


@dataclass(frozen=True)
class Sentinel:
    """An id with a meaning of its own as a part of a document; no text ever becomes one.

    Attributes:
        name: "sep" (between prompt and answer), "eos", "mask" (where a moved span stood) or
            "registers" (all of them); see `Vocabulary`.
        loss: as of Text. id: of a further token of a tokenizer, which is called `name`; else -1.
    """

    name: str
    loss: bool = True
    id: int = -1

    def __str__(self) -> str:
        return f"mmjax.{self.name.upper()}" if self.id < 0 else self.name


SEP, EOS = Sentinel("sep"), Sentinel("eos")
Document = Sequence[Text | Image | Sentinel]


@dataclass(frozen=True)
class Vocabulary:
    """One id space for text, sentinels and image codes, and the ids with a meaning of their own.

    Attributes:
        size: v, of all three together.
        pad, bos, eos: padding, begin and end of a document. boi, eoi: around a picture.
        sep: between prompt and answer. eoss: end of a moved span. masks: where spans stood (CM3).
        registers: see `unparted`; () if there are none.
        codes: id of the first image code. code_count: how many there are.
        barred: ids that are never written, such as those a tokenizer keeps in reserve.
        stops: ids that end a text as `eos` does.
        opening, closing: ids that a tokenizer from elsewhere puts behind `bos`, and behind prompts.
    """

    size: int
    pad: int = 0
    bos: int = 1
    eos: int = 2
    boi: int = 3
    eoi: int = 4
    sep: int = 5
    eoss: int = 6
    masks: tuple[int, ...] = ()
    codes: int = 0
    code_count: int = 0
    registers: tuple[int, ...] = ()
    barred: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()

    @property
    def sentinels(self) -> tuple[int, ...]:
        """Ids that stand for neither text nor image codes."""
        named = (self.pad, self.bos, self.eos, self.boi, self.eoi, self.sep, self.eoss)
        return named + self.masks + self.registers + self.stops


class Batch(NamedTuple):
    """The one structure every family trains on; b rows, l positions, i image slots a row.

    Attributes:
        tokens: [b, l] int32, vocabulary ids; `pad` in the padding, and at patches whose codes the
            data do not hold.
        modality: [b, l] int32, TEXT, IMAGE, or above of kinds of pictures that are like no other.
        segment: [b, l] int32, the document's number within the row from 1 on; 0 is padding.
        position: [b, l] int32, position within the document; patches of one image may share one.
        image: [b, l] int32, which image slot of the row the patch belongs to, from 1 on; 0 is none.
        weight: [b, l] float32 >= 0, loss weight of predicting this position from those before it.
        pixels: [b, i, h, w, 3] uint8, one picture a slot; empty slots are zero. Where the data are
            latents, [b, i, h, w, c] float16; where they are codes, which stand in `tokens`, h = 0.
            Where there are kinds, h and w are the largest of any, and pictures lie at the top left.
        kind: [b, i] int32, number of the slot's kind, 0 for the default and where it is empty; None
            says that all are of the default kind.
    """

    tokens: jax.Array | np.ndarray
    modality: jax.Array | np.ndarray
    segment: jax.Array | np.ndarray
    position: jax.Array | np.ndarray
    image: jax.Array | np.ndarray
    weight: jax.Array | np.ndarray
    pixels: jax.Array | np.ndarray
    kind: jax.Array | np.ndarray | None = None


def same_document(segment_q, segment_k):
    """[b, q], [b, k] -> [b, q, k] bool: both lie in one document, and neither is padding."""
    q, k = segment_q[:, :, None], segment_k[:, None, :]
    return (q == k) & (q != 0)


def same_image(image_q, image_k):
    """[b, q], [b, k] -> [b, q, k] bool: both are patches of one picture."""
    q, k = image_q[:, :, None], image_k[:, None, :]
    return (q == k) & (q != 0)


def causal(length: int):
    """[1, l, l] bool: key j <= query i."""
    index = jnp.arange(length)
    return (index[None, :] <= index[:, None])[None]


def unparted(batch: Batch, registers: tuple[int, ...]):
    """[b, l, l] bool: no register parts key j from query i.

    Registers are a bottleneck: they see all before them, and what follows sees them and BOS, but
    nothing else that stands before them. So a picture can be told through them only. Also the EOI
    of a picture that is read lies behind them, for it has seen the picture.
    """
    mark = jnp.isin(batch.tokens, jnp.array(registers, jnp.int32))
    passed = jnp.cumsum(mark.astype(jnp.int32), axis=1)
    seen = mark | (batch.position == 0)
    return (passed[:, :, None] == passed[:, None, :]) | mark[:, :, None] | seen[:, None, :]


def causal_mask(batch: Batch, registers: tuple[int, ...] = ()):
    """[b, l, l] bool: causal within each packed document (Chameleon, plain language models).

    `registers`: ids of registers, see `unparted`.
    """
    mask = causal(batch.tokens.shape[1]) & same_document(batch.segment, batch.segment)
    return mask & unparted(batch, registers) if registers else mask


def mixed_mask(batch: Batch, registers: tuple[int, ...] = ()):
    """[b, l, l] bool: causal, and bidirectional inside each picture (Transfusion, section 3.1).

    M_ij = ((j <= i) or (i and j lie in one picture)) and (i and j lie in one document).
    `registers`: ids of registers, see `unparted`.
    """
    within = same_image(batch.image, batch.image)
    document = same_document(batch.segment, batch.segment)
    mask = (causal(batch.tokens.shape[1]) | within) & document
    return mask & unparted(batch, registers) if registers else mask


def target_weight(batch: Batch):
    """[b, l - 1] float32: weight of predicting token j + 1 from position j.

    Zero at patches (they have a loss of their own), in the padding, across the border of two
    documents, and for EOI after a patch: at inference a picture has a fixed number of patches and
    EOI is written by rule (Transfusion, section 3.3).
    """
    text = (batch.modality[:, 1:] == TEXT) & (batch.modality[:, :-1] == TEXT)
    return jnp.where(text, next_weight(batch), 0.0)


def next_weight(batch: Batch):
    """[b, l - 1] float32: weight of predicting token j + 1 from position j, codes and all.

    Zero in the padding and across the border of two documents.
    """
    same = (batch.segment[:, 1:] == batch.segment[:, :-1]) & (batch.segment[:, 1:] != 0)
    return jnp.where(same, batch.weight[:, 1:], 0.0)


def patch_index(image):
    """[b, l] int32 -> [b, l] int32: how many patches of its picture stand before this one."""
    index = jnp.arange(image.shape[1])[None]
    starts = jnp.pad(image[:, 1:] != image[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    first = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    return jnp.where(image > 0, index - first, 0)


def slot_columns(image, slots: int):
    """[b, l] -> ([b, i] int32, [b, i] bool): each slot's first column, and whether it is in use."""
    hit = image[:, None, :] == jnp.arange(1, slots + 1)[None, :, None]
    return jnp.argmax(hit, axis=-1), hit.any(-1)


def last_image(batch: Batch):
    """[b, l] int32: slot of the last picture of its document at or before a position; 0 is none.

    What words look at in Flamingo (section 3.1.3).
    """
    index = jnp.broadcast_to(jnp.arange(batch.tokens.shape[1])[None], batch.tokens.shape)
    picture = jax.lax.cummax(jnp.where(batch.image > 0, index, -1), axis=1)
    changes = batch.segment[:, 1:] != batch.segment[:, :-1]
    starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    begin = jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
    slot = jnp.take_along_axis(jnp.asarray(batch.image), jnp.maximum(picture, 0), axis=1)
    return jnp.where((picture >= begin) & (batch.segment > 0), slot, 0)


def slot_weight(batch: Batch):
    """[b, i] float32: loss weight of each slot's picture (that of its first patch); 0 if empty."""
    first, used = slot_columns(batch.image, batch.pixels.shape[1])
    return jnp.where(used, jnp.take_along_axis(batch.weight, first, axis=1), 0.0)


def precedes_text(batch: Batch, vocabulary: Vocabulary):
    """[b, i] bool: text other than sentinels follows this slot's picture in its document."""
    word = (batch.modality == TEXT) & (batch.segment > 0)
    word &= ~jnp.isin(batch.tokens, jnp.array(vocabulary.sentinels))
    first, used = slot_columns(batch.image, batch.pixels.shape[1])
    segment = jnp.take_along_axis(batch.segment, first, axis=1)
    after = jnp.arange(batch.tokens.shape[1])[None, None] > first[:, :, None]
    mine = batch.segment[:, None, :] == segment[:, :, None]
    return used & (word[:, None, :] & after & mine).any(-1)
