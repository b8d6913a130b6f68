"""Transfusion: next-token prediction on text and diffusion on image patches, in one decoder.

Zhou et al. 2024 (arXiv 2408.11039). On a path x_t from noise at t = 0 to the picture at t = 1
(`mmjax.diffusion`: flow matching, or the paper's DDPM with the cosine schedule)
    loss = text cross-entropy + lambda * mean over images of |f_theta(x_t, t, context) - target|^2.
Text positions are causal; the patches of one picture see each other both ways; every picture has
one noise level of its own, and later positions see the picture at that noise level, or (with
`context="clean"`) as it is. Pictures are pixels or the latents of a KL codec; patches are made by
one matrix, or by the halves of a U-Net.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mmjax import diffusion, flops
from mmjax.batch import (
    IMAGE,
    Batch,
    Vocabulary,
    causal_mask,
    mixed_mask,
    precedes_text,
    slot_weight,
    target_weight,
)
from mmjax.codecs import autoencoder
from mmjax.codecs.autoencoder import CodecConfig
from mmjax.error import UserError
from mmjax.layers.tower import dense_name
from mmjax.layers.weight import Layer, pieces, specs_of, unboxed
from mmjax.losses import Terms, flow_loss
from mmjax.mesh import Rules
from mmjax.models import kind, signal
from mmjax.models.decoder import Decoder, DecoderConfig
from mmjax.models.denoise import (
    Parts,
    check_numbers,
    clean_inputs,
    denoise,
    noise_level,
    over,
    pick,
)
from mmjax.models.family import CHOICE, DENOISING, DRAWS, READS, Abilities, Model, lies_in
from mmjax.models.patches import TIME_FEATURES, PatchIn, PatchOut
from mmjax.models.tokens import Column, Embed, Head, token_terms


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        decoder: the decoder's shape.
        image: height and width of a picture in pixels. patch: side of a patch in pixels.
        codec: KL codec whose latents are denoised instead of pixels; None for pixels.
            `config.start` names the run its weights come from.
        unet: channels of the U-Net around the decoder; 0 makes patches by one matrix.
        picture_mask: "both" lets the patches of a picture see each other, "causal" only backwards.
        path, prediction, target: see `mmjax.diffusion`: the path; what the output layer gives; what
            the loss compares. (flow, velocity, velocity) is plain flow matching, (cosine, noise,
            noise) the paper's DDPM.
        image_weight: lambda, weight of the image loss. z_weight: coefficient of (log Z)^2.
        time_mean, time_std: t = sigmoid(time_mean + time_std * normal); time_std = 0 draws t
            uniformly. time_shift: moves t towards noise, see `diffusion.shifted`; 1 does not.
        context: what later positions see of a picture, "noisy" (as it is denoised) or "clean".
        context_time: lowest t of a picture that text follows ("noise limit", Table 8: 0.5).
        signal_mean, signal_std: of the training pixels in [-1, 1] or the latents, which are
            standardised by them, so that noise and data have one scale.
        text_rate: share of the learning rate at which what text goes through is trained: 1, or 0
            to freeze it (LMFusion, Shi et al. 2024, arXiv 2412.15188; with all of the decoder
            untied, `config.start.language` a text model). See `text_weights`.
        kinds: name -> what differs in pictures of another kind than the default, which the fields
            above describe: height, width, like, and the fields of `models.kind.Kind`.
    """

    decoder: DecoderConfig
    image: int
    patch: int
    codec: CodecConfig | None
    unet: int
    picture_mask: str
    path: str
    prediction: str
    target: str
    image_weight: float
    z_weight: float
    time_mean: float
    time_std: float
    time_shift: float
    context: str
    context_time: float
    signal_mean: float
    signal_std: float
    text_rate: float
    kinds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        """Checks fields against each other."""
        diffusion.check_names(self.path, self.prediction, self.target)
        check_numbers(self, "model")
        for name, known in (("picture_mask", ("both", "causal")), ("context", ("noisy", "clean"))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"model.{name}={getattr(self, name)!r} is unknown; have: {', '.join(known)}"
                )
        if self.text_rate < 0:
            raise UserError(f"model.text_rate={self.text_rate} must be at least 0")
        if self.patch < 1 or self.image % self.patch:
            raise UserError(f"model.patch={self.patch} must divide model.image={self.image}")
        if self.codec is not None:
            self._check_codec(self.codec)
        kind.check_unet(self, "model")
        if self.kinds:
            kind.resolve(self)  # complains now

    def _check_codec(self, codec: CodecConfig) -> None:
        if codec.codes:
            raise UserError(
                f"model.codec.quantiser.kind={codec.quantiser.kind!r} makes codes; Transfusion "
                f"denoises latents: use kl, or codec=None for pixels"
            )
        if codec.image != self.image or self.patch % codec.factor:
            raise UserError(
                f"model.codec makes one latent of {codec.factor} pixels a side of pictures of "
                f"{codec.image}; model.image={self.image} must be that and model.patch="
                f"{self.patch} a multiple of {codec.factor}"
            )

    @property
    def resolved(self) -> tuple[kind.Kind, ...]:
        """All kinds of pictures, the default first."""
        return kind.resolve(self)

    @property
    def modality(self) -> int:
        """`Batch.modality` of the default kind."""
        return IMAGE

    @property
    def cells(self) -> int:
        """Side of a patch in numbers of the signal: pixels, or latents."""
        return self.patch // (self.codec.factor if self.codec else 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of the signal that is denoised."""
        if self.codec is None:
            return (self.image, self.image, 3)
        return (self.codec.side, self.codec.side, self.codec.quantiser.width)

    @property
    def registers(self) -> bool:
        """Whether the mask knows registers, and their embeddings are trained."""
        return self.text_rate > 0

    @property
    def tokens(self) -> int:
        """Positions a picture takes, p."""
        return (self.image // self.patch) ** 2


def modules(c: Config, vocabulary: Vocabulary, rules: Rules) -> dict[str, Layer]:
    """The family's submodules by the name of their subtree of the parameters."""
    at = (rules, c.decoder.dtype)
    borders: dict[str, Layer] = {}
    if c.text_rate == 0:
        # Frozen, the table's rows of BOI and EOI would stay as a text model has them, never
        # trained, and so would the column that says whether a picture follows.
        borders["borders"] = Embed(*at, 2, c.decoder.width)
        borders["opens"] = Column(*at, c.decoder.width)
    own = {
        "embed": Embed(*at, vocabulary.size, c.decoder.width),
        "patch_in": PatchIn(*at, c.unet, c.cells, c.tokens, c.decoder.width),
        "decoder": Decoder(*at, c.decoder),
        "patch_out": PatchOut(*at, c.unet, c.cells, c.shape),
        "head": Head(*at, c.decoder.width, vocabulary.size),
    }
    return borders | own | kind.modules(c, at)


def boxed_init(key, c: Config, layers: dict[str, Layer], codec_layers, rows: int):
    """All parameters, each with its place on the mesh; `rows` of dummy input fit the mesh."""
    token = jnp.zeros((rows, 1), jnp.int32)
    x = jnp.zeros((rows, 1, c.decoder.width), c.decoder.dtype)
    keys = dict(zip((*layers, "codec"), jax.random.split(key, len(layers) + 1), strict=True))
    params = {}

    def make(name, *inputs):
        found, grown = layers[name].init_with_output(keys[name], *inputs)
        params[name] = grown["params"]
        return found

    for name in ("embed", "borders"):
        if name in layers:
            make(name, token)
    noisy, level = jnp.zeros((rows, 1, *c.shape)), jnp.zeros((rows, 1))
    patches, kept = make("patch_in", noisy, level)
    make("decoder", x, jnp.ones((1, 1, 1), bool), token)
    make("patch_out", patches, kept)
    for name in ("head", "opens"):
        if name in layers:
            make(name)
    kind.start(c, make, params, rows)
    if c.codec is not None:
        params["codec"] = autoencoder.boxed_init(keys["codec"], c.codec, codec_layers)
    return params


def text_weights(params) -> list[str]:
    """Paths "a/b" of what text goes through: table, head, and of the decoder tower 0.

    Weights that the towers share are among them.
    """
    flat = flatten_dict(params, sep="/")
    mine = ("embed", "head", "decoder")
    return [k for k in flat if any(lies_in(k, part) for part in mine) and dense_name(k) == k]


def mask_of(c: Config, registers: tuple[int, ...], batch: Batch):
    """[b, l, l] bool: Transfusion's mask, or its ablation that is causal in pictures too."""
    return (mixed_mask if c.picture_mask == "both" else causal_mask)(batch, registers)


def loss(c: Config, parts: Parts, params, batch: Batch, keys) -> Terms:
    """Both losses of a batch. `keys` [b], one a row, drive noise, noise level and dropout."""
    draws = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    if c.kinds:
        t = kind.times(parts, batch, draws[:, 1])
    else:
        t = noise_level(c, draws[:, 1], precedes_text(batch, parts.vocabulary))
    t = jnp.where(slot_weight(batch) > 0, t, 1.0)  # a picture without loss is read as it is
    return loss_at(c, parts, params, batch, t, draws[:, 0], draws[:, 2])


def loss_at(
    c: Config, parts: Parts, params, batch: Batch, t, noise, drop, share=None, sight=None
) -> Terms:
    """Both losses of a batch at given times.

    Args:
        t: [b, i], or one a patch [b, i, p]. noise, drop: [b], keys of the noise and of dropout.
        share: [b, i, p], what each patch counts; all the same without it.
        sight: see `denoise.beside`.
    """
    if c.kinds:
        return kind.loss_at(c, parts, params, batch, t, noise, drop)
    clean = parts.signal(params, batch)
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(noise)
    noisy = diffusion.mix(c.path, clean, noise, over(c, t))
    drop = drop if c.decoder.dropout > 0 else None
    hidden, found = denoise(parts, params, batch, noisy, t, drop, sight)
    true = diffusion.aim(c.path, c.prediction, clean, noise, noisy, over(c, t))
    counts = None if share is None else over(c, share)
    image = flow_loss(pick(found, c.target), pick(true, c.target), slot_weight(batch), counts)
    weight = target_weight(batch)[..., None]
    head = parts.head(params)
    return token_terms("text", ("text",), hidden, head, batch, weight, c.z_weight) | {
        "image": image
    }


def forward_flops(c: Config, vocabulary: Vocabulary, batch: Batch) -> float:
    """Exact forward FLOPs of a host batch: no padding, and the head only where it is read.

    Without a codec's encoder. With `context="clean"` a copy of a picture costs what the picture
    does, and half of its ends once more.
    """
    d, both = c.decoder, c.picture_mask == "both"
    tokens, pairs = (flops.mixed_counts if both else flops.causal_counts)(batch)
    pairs -= flops.parted(batch, vocabulary.registers)
    pictures = flops.pictures(batch)
    words = float((np.asarray(target_weight(batch)) > 0).sum())
    time = 2 * pictures * (TIME_FEATURES * d.width + d.width**2)
    drawn = kind.patch_flops(c, batch)
    if c.context == "clean":
        copies, seen = flops.patch_counts(batch, both)
        tokens, pairs, time, drawn = tokens + copies, pairs + seen, 2 * time, 1.5 * drawn
    return (
        flops.decoder(d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp, tokens, pairs)
        + 2 * words * d.width * vocabulary.size
        + drawn
        + time
    )


def abilities(c: Config) -> Abilities:
    """What a trained one can do."""
    return Abilities(
        generate="engine",
        options=("guidance", *CHOICE, *DENOISING, "kind"),
        draws=True,
        stops=True,
        log_likelihood="decoder",
        vectors="decoder",
        evals=(*READS, *DRAWS, "edits", "alignment", "probe", "redrawing"),
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    layers = modules(c, vocabulary, rules)
    codec = None if c.codec is None else autoencoder.build(c.codec, rules)

    piece = pieces(layers)
    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        decoder=c.decoder,
        codec=codec,
        embed=lambda params, tokens: embed(params, tokens),
        signal=lambda params, batch: signal.of_pixels(c, codec, params, batch.pixels),
        picture=partial(signal.to_picture, c, codec),
        patch_in=piece("patch_in"),
        patch_out=piece("patch_out"),
        run=piece("decoder"),
        head=lambda params: head(params),
        coded=lambda params, batch: batch,
        clean=lambda params, batch: clean_inputs(parts, params, batch),
        mask=partial(mask_of, c, vocabulary.registers),
    )
    if c.kinds:
        parts = kind.with_views(c, parts, piece)

    def embed(params, tokens):
        x = piece("embed")(params, tokens)
        if "borders" not in layers:
            return x
        v = vocabulary
        own = piece("borders")(params, (tokens == v.eoi).astype(jnp.int32))
        return jnp.where(((tokens == v.boi) | (tokens == v.eoi))[..., None], own, x)

    def head(params):
        w = piece("head")(params)
        if "opens" not in layers:
            return w
        return w.at[:, vocabulary.boi].set(piece("opens")(params).astype(w.dtype))

    codec_layers = {} if c.codec is None else autoencoder.modules(c.codec, rules)
    start = partial(
        boxed_init, c=c, layers=layers, codec_layers=codec_layers, rows=rules.split("batch")
    )
    specs = specs_of(start)
    text = text_weights(specs)
    frozen = ("codec",) if c.codec else ()
    return Model(
        init=unboxed(start),
        specs=specs,
        loss=partial(loss, c, parts),
        flops=partial(forward_flops, c, vocabulary),
        weights={"text": 1.0, "image": c.image_weight}
        | {f"image_{n}": k.image_weight for n, k in kind.others(c) if not k.like},
        parts=parts,
        frozen=(*frozen, *text) if c.text_rate == 0 else frozen,
        rates={k: c.text_rate for k in text} if c.text_rate not in (0.0, 1.0) else {},
    )
