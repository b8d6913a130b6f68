"""Chameleon: text and pictures as tokens of one vocabulary, predicted one after the other.

Chameleon team 2024 (arXiv 2405.09818). A picture is the codes a frozen codec makes of it, in raster
order between BOI and EOI; one causal decoder, one cross-entropy over all of them, and what keeps it
stable: QK-norm, norms behind the branches (34B), dropout (7B), and z-loss. With `data.spans` the
same family is trained on CM3's objective (Aghajanyan et al. 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import flops
from mmjax.batch import (
    IMAGE,
    TEXT,
    Batch,
    Vocabulary,
    causal_mask,
    next_weight,
    slot_columns,
)
from mmjax.codecs import autoencoder
from mmjax.codecs.autoencoder import Codec, CodecConfig
from mmjax.error import UserError
from mmjax.layers.patch import spread
from mmjax.layers.weight import pieces, specs_of, unboxed
from mmjax.losses import Term, Terms
from mmjax.mesh import Rules
from mmjax.models.decoder import Decoder, DecoderConfig
from mmjax.models.family import CHOICE, DRAWS, READS, Abilities, Model
from mmjax.models.tokens import Embed, Head, token_terms


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        decoder: the decoder's shape.
        codec: as it was trained; `config.start` names the run its weights come from.
        z_weight: coefficient of (log Z)^2 over the whole vocabulary (section 2.3: 1e-5).
        text_weight, image_weight: what a token counts, by modality; 1 and 1 in the paper.
        draws: False where the codec's weights were imported without its decoder.
    """

    decoder: DecoderConfig
    codec: CodecConfig
    z_weight: float
    text_weight: float
    image_weight: float
    draws: bool = True

    def __post_init__(self):
        """Checks that the codec has codes."""
        if not self.codec.codes:
            raise UserError("model.codec.quantiser.kind='kl' has no codes; use vq, rvq, fsq or lfq")

    @property
    def image(self) -> int:
        """Side of a picture in pixels."""
        return self.codec.image

    @property
    def tokens(self) -> int:
        """Codes a picture."""
        return self.codec.tokens

    @property
    def codes(self) -> int:
        """Image codes in the vocabulary."""
        return self.codec.codes

    @property
    def registers(self) -> bool:
        """Whether the mask knows registers, and their embeddings are trained."""
        return True


class Parts(NamedTuple):
    """The family's pieces, for its loss and for sampling; all are pure functions of params.

    Attributes:
        config, vocabulary: what the model was built with. decoder: its decoder's configuration.
        codec: functions of params["codec"].
        embed: (params, tokens [b, l]) -> [b, l, d].
        run: (params, x [b, l, d], mask, position, cache, columns, keys) -> ([b, l, d], cache); see
            Decoder.
        head: params -> [d, v], what maps decoder outputs to logits.
        coded: (params, batch) -> the batch with codes as tokens, see `with_codes`.
        clean: (params, batch) -> [b, l, d], what the decoder reads.
        mask: batch -> [b, l, l] bool.
    """

    config: Config
    vocabulary: Vocabulary
    decoder: DecoderConfig
    codec: Codec
    embed: Callable
    run: Callable
    head: Callable
    coded: Callable
    clean: Callable
    mask: Callable


def with_codes(parts: Parts, params, batch: Batch) -> Batch:
    """The batch with every picture's codes as tokens.

    Pictures are encoded here and now, empty slots only beside others; where the data hold codes
    already there are no pixels, and the tokens stand.
    """
    if batch.pixels.size == 0 or batch.pixels.shape[2] == 0:
        return batch
    b, slots = batch.pixels.shape[:2]
    pixels = batch.pixels.reshape(b * slots, *batch.pixels.shape[2:])
    used = slot_columns(batch.image, slots)[1].reshape(-1)
    encode = partial(autoencoder.encode_ids, parts.codec, params["codec"])
    ids = autoencoder.in_groups(parts.codec, encode, pixels, used) + parts.vocabulary.codes
    placed = spread(ids.reshape(b, slots, -1, 1), batch.image)[..., 0]
    return batch._replace(tokens=jnp.where(batch.modality == IMAGE, placed, batch.tokens))


def loss(c: Config, parts: Parts, params, batch: Batch, keys) -> Terms:
    """Next-token loss over text and codes alike. `keys` [b], one a row, drive dropout."""
    batch = with_codes(parts, params, batch)
    drop = keys if c.decoder.dropout > 0 else None
    x = parts.embed(params, batch.tokens)
    hidden, _, watch = parts.run(
        params, x, parts.mask(batch), batch.position, keys=drop, watch=True, tower=batch.modality
    )
    weight = next_weight(batch)
    written = batch.modality[:, 1:]
    scale = jnp.array([c.text_weight, c.image_weight])
    groups = jnp.stack([jnp.where(written == kind, weight, 0.0) for kind in (TEXT, IMAGE)], -1)
    terms = token_terms(
        "tokens", ("text", "image"), hidden, parts.head(params), batch,
        groups * scale[None, None], c.z_weight,
    )  # fmt: skip
    for kind, name in ((TEXT, "text"), (IMAGE, "image")):
        held = ((batch.modality == kind) & (batch.segment > 0)).astype(jnp.float32)
        terms[f"{name}/last_norm"] = Term(jnp.sum(held * watch.norm), held.sum())
    peak = watch.peak.max()  # where a batch is taken in parts, the mean of theirs is logged
    return terms | {"attention_peak": Term(peak, jnp.ones(()))}


def watch(vocabulary: Vocabulary, grads) -> dict[str, jax.Array]:
    """Gradient norms by modality: of the embeddings and output columns of text and of codes."""
    v, index = vocabulary, jnp.arange(vocabulary.size)
    code = (index >= v.codes) & (index < v.codes + v.code_count)  # in the midst of imported ids
    norms = {}
    for part, x, axis in (("embed", grads["embed"]["table"], 1), ("head", grads["head"]["w"], 0)):
        squares = jnp.sum(x.astype(jnp.float32) ** 2, axis=axis)
        for name, ids in (("text", ~code), ("image", code)):
            norms[f"{name}/{part}_grad_norm"] = jnp.sqrt(jnp.sum(jnp.where(ids, squares, 0.0)))
    return norms


def forward_flops(c: Config, vocabulary: Vocabulary, batch: Batch) -> float:
    """Exact forward FLOPs of a host batch: no padding, causal pairs, the head where it is read.

    With pictures that are encoded on the way, the codec's encoder is not counted.
    """
    d = c.decoder
    tokens, pairs = flops.causal_counts(batch)
    pairs -= flops.parted(batch, vocabulary.registers)
    words = float((np.asarray(next_weight(batch)) > 0).sum())
    return (
        flops.decoder(d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp, tokens, pairs)
        + 2 * words * d.width * vocabulary.size
    )


def boxed_init(key, c: Config, layers, codec_layers, rows: int):
    """All parameters, each with its place on the mesh; `rows` of dummy input fit the mesh."""
    token = jnp.zeros((rows, 1), jnp.int32)
    x = jnp.zeros((rows, 1, c.decoder.width), c.decoder.dtype)
    inputs = {"embed": (token,), "decoder": (x, jnp.ones((1, 1, 1), bool), token), "head": ()}
    keys = jax.random.split(key, len(layers) + 1)
    params = {
        name: layer.init(k, *inputs[name])["params"]
        for k, (name, layer) in zip(keys, layers.items(), strict=False)
    }
    return params | {"codec": autoencoder.boxed_init(keys[-1], c.codec, codec_layers)}


def abilities(c: Config) -> Abilities:
    """What a trained one can do."""
    of_codes = (f"image_{name}" for name in CHOICE)
    drawn = (*DRAWS, "edits", "redrawing")
    return Abilities(
        generate="engine",
        options=("guidance", *CHOICE, *of_codes, "image_guidance", "contrast", "contrast_k"),
        draws=c.draws,
        stops=True,
        log_likelihood="decoder",
        vectors="decoder",
        evals=(*READS, *(drawn if c.draws else ()), "alignment", "probe", "infilling"),
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    at = (rules, c.decoder.dtype)
    layers = {
        "embed": Embed(*at, vocabulary.size, c.decoder.width),
        "decoder": Decoder(*at, c.decoder),
        "head": Head(*at, c.decoder.width, vocabulary.size),
    }

    piece = pieces(layers)
    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        decoder=c.decoder,
        codec=autoencoder.build(c.codec, rules),
        embed=piece("embed"),
        run=piece("decoder"),
        head=piece("head"),
        coded=lambda params, batch: with_codes(parts, params, batch),
        clean=lambda params, batch: parts.embed(params, with_codes(parts, params, batch).tokens),
        mask=partial(causal_mask, registers=vocabulary.registers),
    )
    codec_layers = autoencoder.modules(c.codec, rules)
    start = partial(
        boxed_init, c=c, layers=layers, codec_layers=codec_layers, rows=rules.split("batch")
    )
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(loss, c, parts),
        flops=partial(forward_flops, c, vocabulary),
        weights={"tokens": 1.0},
        parts=parts,
        frozen=("codec",),
        watch=partial(watch, vocabulary),
    )
