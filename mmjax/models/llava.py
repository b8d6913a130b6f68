"""LLaVA: a picture's features from a vision tower stand in the sequence as if they were words.

Liu et al. 2023 (arXiv 2304.08485) and 2024 (arXiv 2310.03744). A tower that was trained for
something else, a projector of two layers, and a language model that reads its outputs between its
own embeddings, all causal. What trains is a matter of the stage: the projector alone first, then
the language model too; the tower never does.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import flops
from mmjax.batch import IMAGE, Batch, Vocabulary, causal_mask
from mmjax.error import UserError
from mmjax.layers.encoder import ACTIVATIONS, affine
from mmjax.layers.linear import linear
from mmjax.layers.patch import spread
from mmjax.layers.vision import Vision, VisionConfig, standard
from mmjax.layers.weight import Layer, pieces, specs_of, unboxed
from mmjax.mesh import Rules
from mmjax.models import language
from mmjax.models.decoder import DecoderConfig
from mmjax.models.family import Model
from mmjax.models.language import Parts

PARTS = ("vision", "projector", "embed", "decoder", "head")
abilities = language.abilities


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        decoder: the language model's shape. vision: the tower's.
        layers: whose outputs are a picture's features, side by side where there are several: 0 is
            what the first layer reads, -1 the last one's output, -2 in both papers.
        select: "patches" leaves the class token out, "all" keeps it, "rest" leaves the first vector
            out, whatever it is.
        activation: between the projector's layers, a key of `layers.encoder.ACTIVATIONS`.
        z_weight: coefficient of (log Z)^2.
        mean, std: of a colour channel in [0, 1], for standardised pictures.
        train: which of PARTS are trained; ("projector",) in the first stage.
        bias: whether the projector's layers have biases.
    """

    decoder: DecoderConfig
    vision: VisionConfig
    layers: tuple[int, ...]
    select: str
    activation: str
    z_weight: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: tuple[str, ...]
    bias: bool = True

    def __post_init__(self):
        """Checks fields against each other."""
        depth = self.vision.encoder.depth
        if not self.layers or not all(-depth - 1 <= n <= depth for n in self.layers):
            raise UserError(
                f"model.layers={self.layers} must name layers of the tower, -{depth + 1} ... "
                f"{depth}"
            )
        language.check(self.select, self.train, PARTS)
        if self.activation not in ACTIVATIONS:
            have = ", ".join(ACTIVATIONS)
            raise UserError(f"model.activation={self.activation!r} is unknown; have: {have}")

    @property
    def image(self) -> int:
        """Side of a picture in pixels."""
        return self.vision.image

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.vision.patch

    @property
    def tokens(self) -> int:
        """Positions a picture takes."""
        return self.vision.length - self.vision.left_out(self.select)


class Projector(Layer):
    """From the tower's features to the decoder's inputs: linear, activation, linear."""

    width: int
    activation: str
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        """[n, p, d of the tower] -> [n, p, d]."""
        d = self.width

        def layer(name, x, axes):
            shape = x.shape[-1], d
            if self.bias:
                return affine(self, name, x, shape, axes)
            return linear(x, self.weight(name, shape, axes))

        x = ACTIVATIONS[self.activation](layer("up", x, ("embed", "mlp")))
        return layer("down", x, ("mlp", "embed"))


def features(c: Config, hidden):
    """The tower's hidden [1 + layers, n, l, d] -> [n, p, d], what the projector reads."""
    found = jnp.concatenate([hidden[n] for n in c.layers], axis=-1)
    return found[:, c.vision.left_out(c.select) :]


def clean(parts: Parts, params, batch: Batch):
    """[b, l, d]: words embedded, and at pictures' positions what is seen of them."""
    x = parts.embed(params, batch.tokens)
    b, slots = batch.pixels.shape[:2]
    if slots == 0 or parts.see is None:
        return x
    seen = parts.see(params, batch.pixels.reshape(b * slots, *batch.pixels.shape[2:]))
    placed = spread(seen.reshape(b, slots, *seen.shape[1:]), batch.image)
    return jnp.where((batch.modality == IMAGE)[..., None], placed.astype(x.dtype), x)


def forward_flops(c: Config, vocabulary: Vocabulary, batch: Batch) -> float:
    """Exact forward FLOPs of a host batch: no padding, no empty slots."""
    wide = c.vision.encoder.width * len(c.layers)
    projector = 2 * c.tokens * (wide + c.decoder.width) * c.decoder.width
    return language.forward_flops(c.decoder, vocabulary, batch) + flops.pictures(batch) * (
        c.vision.flops + projector
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    layers = language.modules(c.decoder, vocabulary, rules) | {
        "vision": Vision(rules, c.vision.encoder.dtype, c.vision),
        "projector": Projector(rules, c.decoder.dtype, c.decoder.width, c.activation, c.bias),
    }
    rows = rules.split("batch")
    wide = c.vision.encoder.width * len(c.layers)
    inputs = language.dummies(c.decoder, rows) | {
        "vision": (jnp.zeros((rows, c.image, c.image, 3)),),
        "projector": (jnp.zeros((rows, 1, wide), c.decoder.dtype),),
    }
    piece = pieces(layers)

    def see(params, pixels):
        _, hidden = piece("vision")(params, standard(pixels, c.mean, c.std))
        found = features(c, hidden)
        if "vision" not in c.train:  # no backward pass is built through the tower
            found = jax.lax.stop_gradient(found)
        return piece("projector")(params, found.astype(c.decoder.dtype))

    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        decoder=c.decoder,
        embed=piece("embed"),
        run=piece("decoder"),
        head=piece("head"),
        coded=lambda params, batch: batch,
        clean=lambda params, batch: clean(parts, params, batch),
        mask=causal_mask,
        see=see,
        vision=piece("vision"),
        project=piece("projector"),
    )
    start = partial(language.boxed_init, layers=layers, inputs=inputs)
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(language.loss, parts),
        flops=partial(forward_flops, c, vocabulary),
        weights={"text": 1.0},
        parts=parts,
        frozen=tuple(name for name in PARTS if name not in c.train),
    )
