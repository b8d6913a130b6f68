"""Transfusion: next-token prediction on text and flow matching on image patches, in one decoder.

Zhou et al. 2024 (arXiv 2408.11039), in its flow-matching form with linear patches:
    x_t = t x_1 + (1 - t) noise,   the target is v = x_1 - noise,   t = 0 noise, t = 1 data,
    loss = text cross-entropy + lambda * mean over images of |v_theta(x_t, t, context) - v|^2.
Text positions are causal; the patches of one picture see each other both ways; every picture has
one noise level of its own, and later positions see the picture at that noise level.
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
from mmjax.batch import (
    IMAGE,
    Batch,
    Vocabulary,
    mixed_mask,
    precedes_text,
    slot_weight,
    target_weight,
)
from mmjax.error import UserError
from mmjax.layers.linear import linear
from mmjax.layers.mlp import TwoLayer
from mmjax.layers.patch import collect, patchify, spread, to_pixels, to_signal, unpatchify
from mmjax.layers.position import time_features
from mmjax.layers.weight import Layer, normal, specs_of, unboxed, zeros
from mmjax.losses import Terms, flow_loss
from mmjax.mesh import Rules
from mmjax.models.decoder import Decoder, DecoderConfig
from mmjax.models.family import Model
from mmjax.models.tokens import Embed, Head, token_terms

TIME_FEATURES = 256


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        decoder: the decoder's shape.
        image: height and width of a picture in pixels. patch: side of a patch; divides image.
        image_weight: lambda, weight of the flow loss. z_weight: coefficient of (log Z)^2.
        time_mean, time_std: t = sigmoid(time_mean + time_std * normal).
        context_time: lowest t of a picture that text follows ("noise limit", Table 8: 0.5).
        prediction: what the output layer gives, "velocity" or "data" (see `velocity_of`).
        signal_mean, signal_std: of the training pixels in [-1, 1]; patches are standardised by
            them, so that noise and data have one scale.
    """

    decoder: DecoderConfig
    image: int
    patch: int
    image_weight: float
    z_weight: float
    time_mean: float
    time_std: float
    context_time: float
    prediction: str
    signal_mean: float
    signal_std: float

    def __post_init__(self):
        """Checks fields against each other."""
        if self.prediction not in ("velocity", "data"):
            raise UserError(
                f"model.prediction={self.prediction!r} is unknown; have: velocity, data"
            )
        if self.image % self.patch:
            raise UserError(f"model.patch={self.patch} must divide model.image={self.image}")

    @property
    def patches(self) -> int:
        """Patches of a picture, p."""
        return (self.image // self.patch) ** 2

    @property
    def channels(self) -> int:
        """Numbers in a patch, c."""
        return 3 * self.patch**2


class PatchIn(Layer):
    """Noisy patches and their noise level -> inputs of the decoder."""

    width: int
    patches: int

    @nn.compact
    def __call__(self, x, t):
        """x [b, i, p, c], t [b, i] -> [b, i, p, d]."""
        x = x.astype(self.dtype)
        w = self.weight("patch", (x.shape[-1], self.width), (None, "embed"))
        place = self.weight(
            "place", (self.patches, self.width), (None, "embed"), partial(normal, scale=0.5)
        )
        time = TwoLayer(self.rules, self.dtype, self.width, name="time")
        t = time(time_features(t, TIME_FEATURES))
        return linear(x, w) + place[None, None] + t[:, :, None]


class PatchOut(Layer):
    """Decoder output at patches -> numbers of a patch; starts at zero."""

    channels: int

    @nn.compact
    def __call__(self, x):
        """[..., d] -> [..., c] f32."""
        w = self.weight("patch", (x.shape[-1], self.channels), ("embed", None), zeros)
        return linear(x, w, 1, "float32")


class Parts(NamedTuple):
    """The family's pieces, for its loss and for sampling; all are pure functions of params.

    Attributes:
        config, vocabulary: what the model was built with. decoder: its decoder's configuration.
        embed: (params, tokens [b, l]) -> [b, l, d].
        patch_in: (params, patches [b, i, p, c], t [b, i]) -> [b, i, p, d].
        run: (params, x [b, l, d], mask, position, cache, columns, keys) -> ([b, l, d], cache).
        velocity: (params, hidden [b, i, p, d], noisy [b, i, p, c], t [b, i]) -> [b, i, p, c] f32.
        head: params -> [d, v], what maps decoder outputs to logits.
        coded: (params, batch) -> the batch: there are no codes.
        clean: (params, batch) -> [b, l, d], what the decoder reads, pictures given as they are.
        mask: batch -> [b, l, l] bool.
    """

    config: Config
    vocabulary: Vocabulary
    decoder: DecoderConfig
    embed: Callable
    patch_in: Callable
    run: Callable
    velocity: Callable
    head: Callable
    coded: Callable
    clean: Callable
    mask: Callable


def modules(c: Config, vocabulary: Vocabulary, rules: Rules) -> dict[str, Layer]:
    """The family's submodules by the name of their subtree of the parameters."""
    d, at = c.decoder.width, (rules, c.decoder.dtype)
    return {
        "embed": Embed(*at, vocabulary.size, d),
        "patch_in": PatchIn(*at, d, c.patches),
        "decoder": Decoder(*at, c.decoder),
        "patch_out": PatchOut(*at, c.channels),
        "head": Head(*at, d, vocabulary.size),
    }


def boxed_init(key, c: Config, layers: dict[str, Layer], rows: int):
    """All parameters, each with its place on the mesh; `rows` of dummy input fit the mesh."""
    token = jnp.zeros((rows, 1), jnp.int32)
    x = jnp.zeros((rows, 1, c.decoder.width), c.decoder.dtype)
    inputs = {
        "embed": (token,),
        "patch_in": (jnp.zeros((rows, 1, c.patches, c.channels)), jnp.zeros((rows, 1))),
        "decoder": (x, jnp.ones((1, 1, 1), bool), token),
        "patch_out": (x,),
        "head": (),
    }
    keys = jax.random.split(key, len(layers))
    return {
        name: layer.init(k, *inputs[name])["params"]
        for k, (name, layer) in zip(keys, layers.items(), strict=True)
    }


def noise_level(c: Config, keys, before_text):
    """Draws t for every slot: logit-normal, and at least `context_time` where text follows.

    keys [b], before_text [b, i] bool -> [b, i] f32 in (0, 1).
    """
    draw = jax.vmap(lambda key: jax.random.normal(key, before_text.shape[1:]))(keys)
    t = jax.nn.sigmoid(c.time_mean + c.time_std * draw)
    return jnp.where(before_text, c.context_time + (1.0 - c.context_time) * t, t)


def velocity_of(c: Config, output, noisy, t):
    """The output layer's prediction as a velocity; [b, i, p, c], [b, i, p, c], [b, i].

    A network that predicts data need not carry the noise through its width: from an estimate of
    x_1 follows v = (x_1 - x_t) / (1 - t) (Li and He 2025, arXiv 2511.13720, who also bound 1 - t
    from below by 0.05).
    """
    if c.prediction == "velocity":
        return output
    return (output - noisy) / jnp.maximum(1.0 - t, 0.05)[:, :, None, None]


def to_patches(c: Config, pixels):
    """uint8 pixels [..., h, w, 3] -> standardised patches [..., p, c]."""
    return patchify((to_signal(pixels) - c.signal_mean) / c.signal_std, c.patch)


def to_picture(c: Config, patches):
    """Standardised patches [..., p, c] -> uint8 pixels [..., h, w, 3]."""
    signal = patches * c.signal_std + c.signal_mean
    return to_pixels(unpatchify(signal, c.patch, c.image, c.image))


def inputs(parts: Parts, params, batch: Batch, patches, t):
    """What the decoder reads: token embeddings, and pictures given as patches at noise levels t.

    patches [b, i, p, c], t [b, i] -> [b, l, d].
    """
    placed = spread(parts.patch_in(params, patches, t), batch.image)
    picture = (batch.modality == IMAGE)[..., None]
    return jnp.where(picture, placed, parts.embed(params, batch.tokens))


def clean_inputs(parts: Parts, params, batch: Batch):
    """Decoder inputs with every picture given as it is, at t = 1."""
    patches = to_patches(parts.config, batch.pixels)
    return inputs(parts, params, batch, patches, jnp.ones(patches.shape[:2]))


def loss(c: Config, parts: Parts, params, batch: Batch, keys) -> Terms:
    """Both losses of a batch. `keys` [b], one a row, drive noise, noise level and dropout."""
    slots = batch.pixels.shape[1]
    draws = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    clean = to_patches(c, batch.pixels)
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(draws[:, 0])
    t = noise_level(c, draws[:, 1], precedes_text(batch, parts.vocabulary))
    noisy = t[:, :, None, None] * clean + (1.0 - t[:, :, None, None]) * noise
    drop = draws[:, 2] if c.decoder.dropout > 0 else None
    x = inputs(parts, params, batch, noisy, t)
    hidden, _ = parts.run(params, x, mixed_mask(batch), batch.position, keys=drop)
    found = collect(hidden, batch.image, slots, c.patches)
    velocity = parts.velocity(params, found, noisy, t)
    image = flow_loss(velocity, clean - noise, slot_weight(batch))
    weight = target_weight(batch)[..., None]
    head = parts.head(params)
    return token_terms("text", ("text",), hidden, head, batch, weight, c.z_weight) | {
        "image": image
    }


def forward_flops(c: Config, vocabulary: Vocabulary, batch: Batch) -> float:
    """Exact forward FLOPs of a host batch: no padding, and the head only where it is read."""
    d = c.decoder
    tokens, pairs = flops.mixed_counts(batch)
    pictures = flops.pictures(batch)
    words = float((np.asarray(target_weight(batch)) > 0).sum())
    time = 2 * pictures * (TIME_FEATURES * d.width + d.width**2)
    patches = 2 * pictures * c.patches * 2 * c.channels * d.width
    return (
        flops.decoder(d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp, tokens, pairs)
        + 2 * words * d.width * vocabulary.size
        + patches
        + time
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    layers = modules(c, vocabulary, rules)

    def piece(name):
        return lambda params, *args, **kw: layers[name].apply({"params": params[name]}, *args, **kw)

    output = piece("patch_out")
    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        decoder=c.decoder,
        embed=piece("embed"),
        patch_in=piece("patch_in"),
        run=piece("decoder"),
        velocity=lambda params, hidden, *noisy: velocity_of(c, output(params, hidden), *noisy),
        head=piece("head"),
        coded=lambda params, batch: batch,
        clean=lambda params, batch: clean_inputs(parts, params, batch),
        mask=mixed_mask,
    )
    start = partial(boxed_init, c=c, layers=layers, rows=rules.split("batch"))
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(loss, c, parts),
        flops=partial(forward_flops, c, vocabulary),
        weights={"text": 1.0, "image": c.image_weight},
        parts=parts,
    )
