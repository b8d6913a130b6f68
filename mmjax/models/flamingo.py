"""Flamingo: a language model that looks aside at pictures, by cross-attention between its layers.

Alayrac et al. 2022 (arXiv 2204.14198), as OpenFlamingo (arXiv 2308.01390) and IDEFICS (arXiv
2306.16527) have it. A picture takes one position; every word looks at the last picture before it in
its document, through a resampler and blocks whose gates begin at zero. The language model and the
vision tower were trained before and stay as they are, or train too: see `Config.train`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import flops
from mmjax.batch import IMAGE, Batch, Vocabulary, causal_mask, last_image
from mmjax.error import UserError
from mmjax.layers.cross import Cross, CrossConfig
from mmjax.layers.resampler import Resampler, ResamplerConfig
from mmjax.layers.vision import Vision, VisionConfig, standard
from mmjax.layers.weight import Layer, fan_in_of, normal, pieces, specs_of, unboxed
from mmjax.mesh import Rules
from mmjax.models import language
from mmjax.models.aside import Read, run
from mmjax.models.decoder import DecoderConfig
from mmjax.models.family import Model
from mmjax.models.language import Parts
from mmjax.models.tokens import Embed, Head

PARTS = ("vision", "resampler", "cross", "added", "embed", "decoder", "head")
abilities = language.abilities


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        decoder: the language model's shape. vision: the tower's.
        resampler: its shape, or None: words look at what the tower makes.
        cross: the blocks between the decoder's layers.
        select: of the tower's last layer, "patches" leaves the class token out (OpenFlamingo),
            "all" keeps it (IDEFICS).
        added: how many ids at the end of the vocabulary have embeddings and outputs apart from the
            others', which train where the language model does not.
        place: id that stands where a picture does; -1 if that is none, but an embedding by itself.
        z_weight: coefficient of (log Z)^2.
        mean, std: of a colour channel in [0, 1], for standardised pictures.
        train: which of PARTS are trained; ("resampler", "cross", "added") in the papers.
    """

    decoder: DecoderConfig
    vision: VisionConfig
    resampler: ResamplerConfig | None
    cross: CrossConfig
    select: str
    added: int
    place: int
    z_weight: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: tuple[str, ...]

    def __post_init__(self):
        """Checks fields against each other."""
        if self.decoder.towers > 1:
            raise UserError(
                f"model.decoder.towers={self.decoder.towers}: pictures are no positions of a "
                f"flamingo; give 1 tower with untie=()"
            )
        if not self.cross.count(self.decoder.depth):
            raise UserError(
                f"model.cross.every={self.cross.every} leaves none of model.decoder.depth="
                f"{self.decoder.depth} layers a block; give at most {self.decoder.depth}"
            )
        language.check(self.select, self.train, PARTS)
        if self.added < 0 or self.place < -1:
            raise UserError(
                f"model.added={self.added} must be at least 0, and model.place={self.place} an id "
                f"or -1"
            )

    @property
    def image(self) -> int:
        """Side of a picture in pixels."""
        return self.vision.image

    @property
    def patch(self) -> int:
        """Side of what one position stands for: the whole picture."""
        return self.vision.image

    @property
    def tokens(self) -> int:
        """Positions a picture takes."""
        return 1

    @property
    def seen(self) -> int:
        """Vectors of a picture that come from the tower."""
        return self.vision.length - self.vision.left_out(self.select)

    @property
    def length(self) -> int:
        """Vectors of a picture that words look at."""
        return self.seen if self.resampler is None else self.resampler.latents


class Added(Layer):
    """Embeddings and outputs apart from the language model's; see `Config`."""

    added: int
    place: int
    width: int

    @nn.compact
    def __call__(self):
        """-> (embeddings [a, d] f32, outputs [d, a], a picture's place [d] f32 or None)."""
        d, a = self.width, self.added
        image = None
        if self.place < 0:
            image = self.weight("image", (d,), (None,), partial(normal, scale=1.0), "float32")
        if not a:
            return jnp.zeros((0, d)), jnp.zeros((d, 0), self.dtype), image
        start = partial(normal, scale=1.0)
        table = self.weight("table", (a, d), (None, "embed"), start, "float32")
        return table, self.weight("w", (d, a), ("embed", None), fan_in_of(d)), image


def features(c: Config, hidden):
    """The tower's hidden [1 + layers, n, l, d] -> [n, p, d], of its last layer."""
    return hidden[-1][:, c.vision.left_out(c.select) :]


def looks_of(batch: Batch):
    """[b, l, i] bool: each position looks at the last picture before it in its document."""
    slots = jnp.arange(1, batch.pixels.shape[1] + 1)
    return last_image(batch)[:, :, None] == slots[None, None]


def clean(parts: Parts, params, batch: Batch) -> Read:
    """What the decoder reads of a batch."""
    c, (b, slots) = parts.config, batch.pixels.shape[:2]
    place = batch.modality == IMAGE
    if c.place >= 0:
        x = parts.embed(params, jnp.where(place, c.place, batch.tokens))
    else:
        image, words = params["added"]["image"], parts.embed(params, batch.tokens)
        x = jnp.where(place[..., None], image[None, None], words.astype(jnp.float32))
        x = x.astype(words.dtype)
    if slots == 0:  # nothing to look at, by nobody
        media = jnp.zeros((b, 1, c.length, c.vision.encoder.width), c.decoder.dtype)
        return Read(x, media, jnp.zeros((*x.shape[:2], 1), bool))
    assert parts.see is not None
    media = parts.see(params, batch.pixels.reshape(b * slots, *batch.pixels.shape[2:]))
    return Read(x, media.reshape(b, slots, *media.shape[1:]), looks_of(batch))


def forward_flops(c: Config, vocabulary: Vocabulary, batch: Batch) -> float:
    """Exact forward FLOPs of a host batch: no padding, no empty slots."""
    d, wide = c.decoder, c.vision.encoder.width
    tokens, pictures = float((np.asarray(batch.segment) > 0).sum()), flops.pictures(batch)
    seeing = float((np.asarray(last_image(batch)) > 0).sum())
    blocks = c.cross.flops(d.width, wide, c.length, tokens, seeing, pictures)
    each = c.vision.flops
    each += 0.0 if c.resampler is None else c.resampler.flops(wide, c.seen)
    aside = c.cross.count(d.depth) * blocks + pictures * each
    return language.forward_flops(d, vocabulary, batch) + aside


def modules(c: Config, vocabulary: Vocabulary, rules: Rules) -> dict[str, Layer]:
    """The layers by name, but for the blocks between the decoder's."""
    d, size = c.decoder, vocabulary.size - c.added
    if size < 1 or c.place >= vocabulary.size:
        raise UserError(
            f"model.added={c.added} and model.place={c.place} do not fit a vocabulary of "
            f"{vocabulary.size} ids"
        )
    at = rules, d.dtype
    layers = language.modules(d, vocabulary, rules)
    layers |= {"embed": Embed(*at, size, d.width), "head": Head(*at, d.width, size)}
    layers["vision"] = Vision(rules, c.vision.encoder.dtype, c.vision)
    if c.resampler is not None:
        layers["resampler"] = Resampler(*at, c.resampler)
    if c.added or c.place < 0:
        layers["added"] = Added(*at, c.added, c.place, d.width)
    return layers


def boxed_init(key, c: Config, layers, rules: Rules):
    """All parameters, each with its place on the mesh."""
    rows, d, wide = rules.split("batch"), c.decoder, c.vision.encoder.width
    inputs: dict[str, Any] = language.dummies(d, rows) | {
        "vision": (jnp.zeros((rows, c.image, c.image, 3)),),
        "resampler": (jnp.zeros((rows, 1, wide), d.dtype),),
        "added": (),
    }
    first, second = jax.random.split(key)
    params = language.boxed_init(first, layers, inputs)
    cross = Cross(rules, d.dtype, c.cross)
    x, media = jnp.zeros((rows, 1, d.width), d.dtype), jnp.zeros((rows, 1, 1, wide), d.dtype)

    def one(key):
        return cross.init(key, x, media, jnp.ones((rows, 1, 1), bool))["params"]

    stacked = jax.vmap(one)(jax.random.split(second, c.cross.count(d.depth)))
    blocks = nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: rules.layers})
    return params | {"cross": {"blocks": blocks}}


def ends(c: Config, layers, piece: Callable) -> tuple[Callable, Callable]:
    """(embed, head) over the whole vocabulary, as `Parts` has them."""
    if not c.added:
        return piece("embed"), piece("head")
    size = layers["embed"].size

    def embed(params, tokens):
        table, _, _ = piece("added")(params)
        apart = jnp.take(table, jnp.clip(tokens - size, 0, c.added - 1), axis=0)
        usual = piece("embed")(params, jnp.minimum(tokens, size - 1))
        return jnp.where((tokens >= size)[..., None], apart.astype(usual.dtype), usual)

    def head(params):
        return jnp.concatenate([piece("head")(params), piece("added")(params)[1]], axis=1)

    return embed, head


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    layers = modules(c, vocabulary, rules)
    piece = pieces(layers)
    embed, head = ends(c, layers, piece)

    def project(params, found):
        return found if c.resampler is None else piece("resampler")(params, found)

    def see(params, pixels):
        _, hidden = piece("vision")(params, standard(pixels, c.mean, c.std))
        found = features(c, hidden)
        if "vision" not in c.train:  # no backward pass is built through the tower
            found = jax.lax.stop_gradient(found)
        return project(params, found.astype(c.decoder.dtype))

    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        decoder=c.decoder,
        embed=embed,
        run=partial(run, c.decoder, c.cross, rules),
        head=head,
        coded=lambda params, batch: batch,
        clean=lambda params, batch: clean(parts, params, batch),
        mask=causal_mask,
        see=see,
        vision=piece("vision"),
        project=project,
    )
    start = partial(boxed_init, c=c, layers=layers, rules=rules)
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(language.loss, parts),
        flops=partial(forward_flops, c, vocabulary),
        weights={"text": 1.0},
        parts=parts,
        frozen=tuple(name for name in PARTS if name not in c.train),
    )
