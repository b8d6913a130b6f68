"""OneFlow: insertion edit flows for text, flow matching for pictures, one bidirectional decoder.

Nguyen et al. 2025, appendices D and E. A document X_1 is reached from the empty one by inserting
tokens anywhere. In training tokens are deleted; from what is left, X_t, the network says for the
gap to the right of each position how many are missing and which, in no order:
    pi = P(k = 0),   lambda = the mean of k where it is not 0,   Q over the vocabulary,
    L_text = (1 / n) sum_i [sum_{a in A_i} -log Q_i(a) + 1[k_i > 0] (lambda_i - k_i log lambda_i)
                            + BCE(pi_i, [k_i = 0])].
Text is told no time, and the factor kappa' / (1 - kappa) of the bound is left out. Pictures are
denoised, 0 noise and 1 data. The published decoder's U-Nets and latents are not here.

There is no EOS in X_t: writing ends with its time. BOI stands for the paper's one token <|image|>,
which brings patches and EOI with it, so BOI and patches have no gap. n counts the gaps that have a
loss: for plain text the positions of X_t, BOS among them. See `models.deletion` for the rest.
"""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax import diffusion, flops
from mmjax.batch import TEXT, Batch, Vocabulary, mixed_mask, same_document
from mmjax.error import UserError
from mmjax.layers.linear import linear
from mmjax.layers.patch import collect, to_pixels, to_signal
from mmjax.layers.weight import Layer, gather, pieces, specs_of, unboxed, zeros
from mmjax.losses import Term, Terms, chunk_count, flow_loss, token_loss
from mmjax.mesh import Rules
from mmjax.models.decoder import Decoder, DecoderConfig
from mmjax.models.deletion import Corrupted, corrupt, draw, leftmost, sums, take
from mmjax.models.denoise import Parts, clean_inputs, inputs, wide
from mmjax.models.family import DRAWS, Abilities, Model
from mmjax.models.patches import TIME_FEATURES, PatchIn, PatchOut
from mmjax.models.tokens import CHUNK_TOKENS, Embed, Head


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        decoder: the decoder's shape.
        image: height and width of a picture in pixels. patch: side of a patch in pixels.
        mask: "both" ways within a document (OneFlow), or "causal" as Transfusion's.
        deletion: "uniform" keeps every token with probability t (OneFlow), "suffix" a beginning.
        target: of a gap, the "bag" of all its missing tokens (OneFlow), or its "leftmost" only.
            With suffixes deleted the leftmost is the next token, P(end) = pi of the last position
            and P(a) = (1 - pi) Q(a): autoregression, which the bag is not.
        mixed: share of documents whose text and pictures grow on one clock; see `deletion.corrupt`.
        prediction: what the output layer gives for pictures, "velocity" or "data".
        bag_weight, rate_weight, empty_weight, image_weight: of the three terms of L_text in its
            order (1, 1, 1 in the paper) and of the flow loss.
        signal_mean, signal_std: of the training pixels in [-1, 1], which are standardised by them.
    """

    decoder: DecoderConfig
    image: int
    patch: int
    mask: str
    deletion: str
    target: str
    mixed: float
    prediction: str
    bag_weight: float
    rate_weight: float
    empty_weight: float
    image_weight: float
    signal_mean: float
    signal_std: float

    def __post_init__(self):
        """Checks fields against each other."""
        for name, known in (
            ("mask", ("both", "causal")),
            ("deletion", ("uniform", "suffix")),
            ("target", ("bag", "leftmost")),
            ("prediction", ("velocity", "data")),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"model.{name}={getattr(self, name)!r} is unknown; have: {', '.join(known)}"
                )
        if self.signal_std <= 0.0:
            raise UserError(f"model.signal_std={self.signal_std} must be above 0")
        if not 0.0 <= self.mixed <= 1.0:
            raise UserError(f"model.mixed={self.mixed} must lie between 0 and 1")
        if self.patch < 1 or self.image % self.patch:
            raise UserError(f"model.patch={self.patch} must divide model.image={self.image}")

    @property
    def codec(self) -> None:
        """There is none: what is denoised are pixels."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of what is denoised."""
        return (self.image, self.image, 3)

    @property
    def tokens(self) -> int:
        """Positions a picture takes, p."""
        return (self.image // self.patch) ** 2


class Gaps(Layer):
    """How much is missing to the right of a position; starts at pi = 1/2, lambda = 1."""

    @nn.compact
    def __call__(self, x):
        """x [b, l, d] -> (logit of pi, log lambda), each [b, l] f32."""
        w = self.weight("w", (x.shape[-1], 2), ("embed", None), zeros)
        bias = self.weight("bias", (2,), (None,), zeros, "float32")
        y = linear(x, w, 1, "float32") + bias[None, None]
        return y[..., 0], y[..., 1]


def modules(c: Config, vocabulary: Vocabulary, rules: Rules) -> dict[str, Layer]:
    """The family's submodules by the name of their subtree of the parameters."""
    at = (rules, c.decoder.dtype)
    return {
        "embed": Embed(*at, vocabulary.size, c.decoder.width),
        "patch_in": PatchIn(*at, 0, c.patch, c.tokens, c.decoder.width),
        "decoder": Decoder(*at, c.decoder),
        "patch_out": PatchOut(*at, 0, c.patch, c.shape),
        "head": Head(*at, c.decoder.width, vocabulary.size),
        "gaps": Gaps(*at),
    }


def boxed_init(key, c: Config, layers: dict[str, Layer], rows: int):
    """All parameters, each with its place on the mesh; `rows` of dummy input fit the mesh."""
    token = jnp.zeros((rows, 1), jnp.int32)
    x = jnp.zeros((rows, 1, c.decoder.width), c.decoder.dtype)
    patches = jnp.zeros((rows, 1, c.tokens, c.decoder.width), c.decoder.dtype)
    inputs = {
        "embed": (token,),
        "patch_in": (jnp.zeros((rows, 1, *c.shape)), jnp.zeros((rows, 1))),
        "decoder": (x, jnp.ones((1, 1, 1), bool), token),
        "patch_out": (patches, ()),
        "head": (),
        "gaps": (x,),
    }
    keys = jax.random.split(key, len(layers))
    return {
        name: layer.init(k, *inputs[name])["params"]
        for k, (name, layer) in zip(keys, layers.items(), strict=True)
    }


def signal_of(c: Config, batch: Batch):
    """A batch's pictures as they are denoised, standardised; [b, i, h, w, c] f32."""
    return (to_signal(batch.pixels) - c.signal_mean) / c.signal_std


def mask_of(c: Config, batch: Batch):
    """[b, l, l] bool: both ways within a document, or causal outside of pictures."""
    return mixed_mask(batch) if c.mask == "causal" else same_document(batch.segment, batch.segment)


def look(parts: Parts, params, batch: Batch, noisy, t, drop=None, floor=diffusion.FLOOR):
    """One pass over X_t.

    Args:
        batch: X_t. noisy: [b, i, h, w, c]. t: [b, i]. drop: [b] keys of dropout.
        floor: see `diffusion.estimate`.

    Returns:
        (outputs [b, l, d], velocity of its pictures [b, i, h, w, c] f32).
    """
    c = parts.config
    patches, kept = parts.patch_in(params, noisy, t)
    x = inputs(parts, params, batch, patches)
    at = parts.mask(batch), batch.position
    hidden, _ = parts.run(params, x, *at, keys=drop, tower=batch.modality)
    output = parts.patch_out(params, collect(hidden, batch.image, t.shape[1], c.tokens), kept)
    return hidden, diffusion.estimate("flow", c.prediction, output, noisy, wide(t), floor).velocity


def text_terms(c: Config, parts: Parts, params, batch: Batch, x: Corrupted, hidden) -> Terms:
    """L_text in its three pieces, averaged over documents.

    Args:
        batch: X_1. x: X_t. hidden: [b, l, d], outputs at the positions of X_t.
    """
    opened = x.open.astype(jnp.float32)
    n = sums(opened, x.batch.segment)
    share = opened / jnp.maximum(take(n, x.batch.segment), 1.0)
    documents = jnp.sum(n > 0).astype(jnp.float32)
    # Every missing token reads Q at the gap it belongs to, so no bag is ever written out.
    wanted = leftmost(x.missing, x.row) if c.target == "leftmost" else x.missing
    weight = jnp.where(wanted, take(share, x.row), 0.0)
    read = gather(hidden, x.row[:, :, None], axis=1)  # many tokens may read one gap
    b, length = batch.tokens.shape
    chunks = chunk_count(b, length, CHUNK_TOKENS)
    bag, _ = token_loss(read, parts.head(params), batch.tokens, weight, 0.0, chunks)
    empty, log_rate = parts.gaps(params, hidden)
    some = x.k > 0
    rate = jnp.where(some, share * (jnp.exp(log_rate) - x.k * log_rate), 0.0)
    surprise = share * jax.nn.softplus(jnp.where(some, empty, -empty))
    return {
        "bag": Term(bag, documents),
        "rate": Term(rate.sum(), documents),
        "empty": Term(surprise.sum(), documents),
    }


def loss(c: Config, parts: Parts, params, batch: Batch, keys) -> Terms:
    """All terms of a batch. `keys` [b], one a row, drive deletion, noise, its level and dropout."""
    length, slots = batch.tokens.shape[1], batch.pixels.shape[1]
    split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    draws = draw(split[:, 0], length, slots)
    x = corrupt(c.deletion, c.mixed, parts.vocabulary, batch, draws)
    clean = parts.signal(params, batch)
    noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(split[:, 1])
    noisy = diffusion.mix("flow", clean, noise, wide(x.t))
    drop = split[:, 2] if c.decoder.dropout > 0 else None
    hidden, velocity = look(parts, params, x.batch, noisy, x.t, drop)
    true = diffusion.aim("flow", c.prediction, clean, noise, noisy, wide(x.t)).velocity
    image = flow_loss(velocity, true, x.drawn)
    return text_terms(c, parts, params, batch, x, hidden) | {"image": image}


def forward_flops(c: Config, vocabulary: Vocabulary, batch: Batch) -> float:
    """Forward FLOPs of a host batch without padding, as if nothing were deleted: an upper bound."""
    d = c.decoder
    tokens, pairs = flops.mixed_counts(batch)
    if c.mask == "both":
        pairs = sum(float((np.bincount(row)[1:] ** 2.0).sum()) for row in np.asarray(batch.segment))
    pictures = flops.pictures(batch)
    words = float(((np.asarray(batch.weight) > 0) & (np.asarray(batch.modality) == TEXT)).sum())
    time = 2 * pictures * (TIME_FEATURES * d.width + d.width**2)
    return (
        flops.decoder(d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp, tokens, pairs)
        + 2 * d.width * (words * vocabulary.size + tokens * 2)
        + pictures * 4.0 * c.tokens * 3 * c.patch**2 * d.width
        + time
    )


def abilities(c: Config) -> Abilities:
    """What a trained one can do; it has no likelihood of a text from left to right."""
    return Abilities(
        generate="insertion",
        options=("guidance", "steps", "text_guidance"),
        draws=True,
        vectors="decoder",
        evals=DRAWS,
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    layers = modules(c, vocabulary, rules)

    piece = pieces(layers)

    def picture(params, signal):
        return to_pixels(signal * c.signal_std + c.signal_mean)

    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        decoder=c.decoder,
        embed=piece("embed"),
        signal=lambda params, batch: signal_of(c, batch),
        picture=picture,
        patch_in=piece("patch_in"),
        patch_out=piece("patch_out"),
        run=piece("decoder"),
        head=piece("head"),
        gaps=piece("gaps"),
        coded=lambda params, batch: batch,
        clean=lambda params, batch: clean_inputs(parts, params, batch),
        mask=partial(mask_of, c),
    )
    start = partial(boxed_init, c=c, layers=layers, rows=rules.split("batch"))
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(loss, c, parts),
        flops=partial(forward_flops, c, vocabulary),
        weights={
            "bag": c.bag_weight,
            "rate": c.rate_weight,
            "empty": c.empty_weight,
            "image": c.image_weight,
        },
        parts=parts,
    )
