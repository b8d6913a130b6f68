"""CLIP and SigLIP: one vector for a picture, one for a text, near to each other if they belong.

Radford et al. 2021 (arXiv 2103.00020) and Zhai et al. 2023 (arXiv 2303.15343). A batch's pairs are
the pictures of its rows, each with the words of its document; what else is in the rows (sentinels,
further pictures of a document) is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import flops
from mmjax.batch import TEXT, Batch, Vocabulary, slot_columns
from mmjax.contrastive import OBJECTIVES, unit
from mmjax.error import UserError
from mmjax.layers.encoder import affine
from mmjax.layers.linear import linear
from mmjax.layers.vision import TextConfig, TextTower, Vision, VisionConfig, standard
from mmjax.layers.weight import Layer, fan_in, pieces, specs_of, unboxed
from mmjax.losses import Term, Terms
from mmjax.mesh import Rules
from mmjax.models.family import Abilities, Model

MOST = float(np.log(100.0))  # of the logarithm of the scale (CLIP, section 2.5)


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        vision, text: the towers. embed: numbers of a vector.
        project: how a tower's output becomes one: "linear" (CLIP), or "text" (SigLIP): the text's
            with a bias, the picture's as it is.
        objective: "softmax" (CLIP) or "sigmoid" (SigLIP).
        scale: what similarities are multiplied by at first, 1 / 0.07 in CLIP, 10 in SigLIP.
        bias: what is added to them at first, -10 in SigLIP; 0 with "softmax", which it leaves.
        mean, std: of a colour channel in [0, 1], for standardised pictures.
    """

    vision: VisionConfig
    text: TextConfig
    embed: int
    project: str
    objective: str
    scale: float
    bias: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        """Checks fields against each other."""
        if self.objective not in OBJECTIVES:
            have = ", ".join(OBJECTIVES)
            raise UserError(f"model.objective={self.objective!r} is unknown; have: {have}")
        if self.vision.pool == "none":
            raise UserError(
                "model.vision.pool='none' leaves a picture without a vector; give token, mean or "
                "attention"
            )
        if self.project not in ("linear", "text"):
            raise UserError(f"model.project={self.project!r} is unknown; have: linear, text")
        if self.project == "text" and self.embed != self.vision.encoder.width:
            raise UserError(
                f"model.project='text' leaves the picture's vector as it is: model.embed="
                f"{self.embed} must be model.vision.encoder.width={self.vision.encoder.width}"
            )
        if self.scale <= 0:
            raise UserError(f"model.scale={self.scale} must be above 0")

    @property
    def image(self) -> int:
        """Side of a picture in pixels."""
        return self.vision.image


class Parts(NamedTuple):
    """The family's pieces.

    Attributes:
        config, vocabulary: what the model was built with.
        see: (params, pixels uint8 [n, h, w, 3]) -> [n, embed] of unit length.
        read: (params, tokens [n, l]) -> the same.
        vision, text: (params, signal or tokens) -> (pooled, hidden), the towers.
        to_image, to_text: (params, pooled) -> [n, embed], not yet of unit length.
    """

    config: Config
    vocabulary: Vocabulary
    see: Callable
    read: Callable
    vision: Callable
    text: Callable
    to_image: Callable
    to_text: Callable


class Projection(Layer):
    """From a tower's output to a vector of its own."""

    features: int
    biased: bool

    @nn.compact
    def __call__(self, x):
        """[n, d] -> [n, embed]."""
        shape, axes = (x.shape[-1], self.features), ("embed", None)
        if self.biased:
            return affine(self, "w", x, shape, axes)
        return linear(x, self.weight("w", shape, axes, fan_in))


class Scale(Layer):
    """What similarities are multiplied by, as its logarithm, and what is added to them."""

    scale: float
    bias: float

    @nn.compact
    def __call__(self):
        """-> (log of the scale, bias), scalars."""
        start = {"log": np.log(self.scale), "bias": self.bias}
        return tuple(
            self.weight(name, (), (), lambda key, shape, dtype, x=x: jnp.full(shape, x, dtype))
            for name, x in start.items()
        )


def texts(c: Config, v: Vocabulary, batch: Batch):
    """The words of each slot's document: (tokens [b, i, l'] as BOS, words, EOS, whether [b, i]).

    l' is `text.length`; longer texts lose what is too much before their EOS; a vocabulary may have
    no BOS, -1. A slot counts if it
    holds its document's first picture and there are words.
    """
    most, begin = c.text.length, int(v.bos >= 0)
    first, used = slot_columns(batch.image, batch.pixels.shape[1])
    segment = jnp.take_along_axis(batch.segment, first, axis=1)
    again = (segment[:, :, None] == segment[:, None, :]) & used[:, None, :]
    before = first[:, None, :] < first[:, :, None]
    used &= ~(again & before).any(-1)
    word = (batch.modality == TEXT) & ~jnp.isin(batch.tokens, jnp.array(v.sentinels))
    mine = (batch.segment[:, None] == segment[:, :, None]) & word[:, None]
    room = most - 1 - begin
    order = jnp.argsort(~mine, axis=-1, stable=True)[..., :room]
    count = jnp.minimum(mine.sum(-1), room)[..., None]
    found = jnp.take_along_axis(batch.tokens[:, None], order, axis=-1)
    found = jnp.pad(found, ((0, 0), (0, 0), (begin, most - begin - order.shape[-1])))
    place = jnp.arange(most)[None, None] - begin
    found = jnp.where(place < count, found, jnp.where(place == count, v.eos, v.pad))
    return jnp.where(place < 0, v.bos, found), used & (count[..., 0] > 0)


def loss(c: Config, parts: Parts, rules: Rules, params, batch: Batch, keys) -> Terms:
    """The contrastive loss over all pairs of all rows, on all devices."""
    del keys
    b, slots = batch.pixels.shape[:2]
    tokens, valid = texts(c, parts.vocabulary, batch)
    images = parts.see(params, batch.pixels.reshape(b * slots, *batch.pixels.shape[2:]))
    words = parts.read(params, tokens.reshape(b * slots, -1))
    scale = jnp.exp(params["scale"]["log"])
    terms = OBJECTIVES[c.objective](
        rules, images, words, valid.reshape(-1), scale, params["scale"]["bias"]
    )
    one = jnp.ones(())
    return terms | {"scale": Term(scale, one), "bias": Term(params["scale"]["bias"], one)}


def vectors(parts: Parts, params, batch: Batch):
    """[b, embed] of unit length: the mean of the vectors of a document's first picture and words.

    Of one of them alone where there is no other.
    """
    whole = batch._replace(image=jnp.maximum(batch.image, 1))  # a document without pictures too
    tokens, _ = texts(parts.config, parts.vocabulary, whole)
    word = (batch.modality == TEXT) & (batch.segment > 0)
    word &= ~jnp.isin(batch.tokens, jnp.array(parts.vocabulary.sentinels))
    shown, told = (
        jnp.any(x, axis=1, keepdims=True).astype(jnp.float32) for x in (batch.image > 0, word)
    )
    found = shown * parts.see(params, batch.pixels[:, 0])
    return unit(found + told * parts.read(params, tokens[:, 0]))


def after(old, new, terms: Terms):
    """Keeps the scale at 100 or below."""
    del old, terms
    held = new["scale"] | {"log": jnp.minimum(new["scale"]["log"], MOST)}
    return new | {"scale": held}


def forward_flops(c: Config, batch: Batch) -> float:
    """FLOPs of both towers over a host batch's slots, empty ones too, and all similarities."""
    n = float(np.prod(batch.pixels.shape[:2]))
    e = c.text.encoder
    towers = c.vision.flops + flops.encoder(e.width, e.depth, e.mlp, c.text.length)
    return n * towers + 2 * n * n * c.embed


def boxed_init(key, c: Config, layers, rows: int):
    """All parameters, each with its place on the mesh; `rows` of dummy input fit the mesh."""
    inputs = {
        "vision": (jnp.zeros((rows, c.image, c.image, 3)),),
        "text": (jnp.zeros((rows, c.text.length), jnp.int32),),
        "see": (jnp.zeros((rows, c.vision.encoder.width), c.vision.encoder.dtype),),
        "read": (jnp.zeros((rows, c.text.encoder.width), c.text.encoder.dtype),),
        "scale": (),
    }
    keys = jax.random.split(key, len(layers))
    return {
        name: layer.init(k, *inputs[name])["params"]
        for k, (name, layer) in zip(keys, layers.items(), strict=True)
    }


def abilities(c: Config) -> Abilities:
    """What a trained one can do: embed texts and images."""
    return Abilities(vectors=vectors, compares=True, evals=("retrieval", "answers"))


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    sees, reads = ((rules, e.dtype) for e in (c.vision.encoder, c.text.encoder))
    layers: dict[str, Layer] = {
        "vision": Vision(*sees, c.vision),
        "text": TextTower(*reads, c.text, vocabulary.size, vocabulary.eos),
        "read": Projection(*reads, c.embed, c.project == "text"),
        "scale": Scale(rules, "float32", c.scale, c.bias),
    }
    if c.project == "linear":
        layers["see"] = Projection(*sees, c.embed, False)
    piece = pieces(layers)

    to_image = piece("see") if "see" in layers else lambda params, pooled: pooled

    def see(params, pixels):
        pooled, _ = piece("vision")(params, standard(pixels, c.mean, c.std))
        return unit(to_image(params, pooled))

    def read(params, tokens):
        return unit(piece("read")(params, piece("text")(params, tokens)[0]))

    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        see=see,
        read=read,
        vision=piece("vision"),
        text=piece("text"),
        to_image=to_image,
        to_text=piece("read"),
    )
    start = partial(boxed_init, c=c, layers=layers, rows=rules.split("batch"))
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(loss, c, parts, rules),
        flops=partial(forward_flops, c),
        weights={"contrastive": 1.0},
        parts=parts,
        after=after,
    )
