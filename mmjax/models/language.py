"""A language model: the decoder alone, and what families that read pictures and write words share.

Where its rows hold pictures it does not see them: every patch is read as padding. That is the
control of models that do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import flops
from mmjax.batch import TEXT, Batch, Vocabulary, causal_mask, next_weight
from mmjax.error import UserError
from mmjax.layers.weight import Layer, pieces, specs_of, unboxed
from mmjax.losses import Terms
from mmjax.mesh import Rules
from mmjax.models.decoder import Decoder, DecoderConfig
from mmjax.models.family import CHOICE, READS, Abilities, Model
from mmjax.models.tokens import Embed, Head, token_terms


@dataclass(frozen=True)
class Config:
    """The family's configuration.

    Attributes:
        decoder: the decoder's shape.
        z_weight: coefficient of (log Z)^2.
    """

    decoder: DecoderConfig
    z_weight: float

    @property
    def tokens(self) -> int:
        """Positions a picture takes: whatever the data say."""
        return 0


class Parts(NamedTuple):
    """The pieces of a family that reads pictures, or none, and writes words.

    Attributes:
        config, vocabulary: what the model was built with. decoder: its decoder's configuration.
        embed: (params, tokens [b, l]) -> [b, l, d].
        run: (params, x, mask, position, cache, columns, keys) -> ([b, l, d], cache); see Decoder.
        head: params -> [d, v], what maps decoder outputs to logits.
        coded: (params, batch) -> the batch: pictures are no tokens.
        clean: (params, batch) -> what `run` reads.
        mask: batch -> [b, l, l] bool.
        see: (params, pixels uint8 [n, h, w, 3]) -> what the decoder is given of pictures, or None.
        vision: (params, signal) -> (pooled, hidden), the vision tower, or None.
        project: (params, features) -> what the decoder reads of them, or None.
    """

    config: Any
    vocabulary: Vocabulary
    decoder: DecoderConfig
    embed: Callable
    run: Callable
    head: Callable
    coded: Callable
    clean: Callable
    mask: Callable
    see: Callable | None = None
    vision: Callable | None = None
    project: Callable | None = None


def check(select: str, train: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """Checks what families that see choose of a tower's positions, and of their parts to train.

    Raises:
        UserError: for what there is not.
    """
    if select not in ("patches", "all", "rest"):
        raise UserError(f"model.select={select!r} is unknown; have: patches, all, rest")
    if not train or not set(train) <= set(parts):
        raise UserError(f"model.train={train} must name some of {', '.join(parts)}")


def word_weight(batch: Batch, vocabulary: Vocabulary):
    """[b, l - 1] f32: weight of predicting word j + 1 from position j.

    Never BOI and EOI, which a model that cannot draw does not write; where there are none (imported
    ones), the word behind a picture is predicted from its last position.
    """
    after = batch.tokens[:, 1:]
    word = (batch.modality[:, 1:] == TEXT) & (after != vocabulary.boi) & (after != vocabulary.eoi)
    return jnp.where(word, next_weight(batch), 0.0)


def loss(parts: Parts, params, batch: Batch, keys) -> Terms:
    """Next-token loss over words. `keys` [b], one a row, drive dropout."""
    c = parts.config
    drop = keys if parts.decoder.dropout > 0 else None
    hidden, _ = parts.run(
        params, parts.clean(params, batch), parts.mask(batch), batch.position, keys=drop,
        tower=batch.modality,
    )  # fmt: skip
    weight = word_weight(batch, parts.vocabulary)[..., None]
    return token_terms("text", ("text",), hidden, parts.head(params), batch, weight, c.z_weight)


def forward_flops(d: DecoderConfig, vocabulary: Vocabulary, batch: Batch) -> float:
    """Exact forward FLOPs of a host batch: no padding, causal pairs, the head where it is read."""
    tokens, pairs = flops.causal_counts(batch)
    words = float((np.asarray(word_weight(batch, vocabulary)) > 0).sum())
    layers = flops.decoder(d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp, tokens, pairs)
    return layers + 2 * words * d.width * vocabulary.size


def modules(d: DecoderConfig, vocabulary: Vocabulary, rules: Rules) -> dict[str, Layer]:
    """The layers of a language model by name."""
    at = (rules, d.dtype)
    return {
        "embed": Embed(*at, vocabulary.size, d.width),
        "decoder": Decoder(*at, d),
        "head": Head(*at, d.width, vocabulary.size),
    }


def dummies(d: DecoderConfig, rows: int) -> dict[str, tuple]:
    """What those layers are initialised with; `rows` of dummy input fit the mesh."""
    token = jnp.zeros((rows, 1), jnp.int32)
    x = jnp.zeros((rows, 1, d.width), d.dtype)
    return {"embed": (token,), "decoder": (x, jnp.ones((1, 1, 1), bool), token), "head": ()}


def boxed_init(key, layers, inputs):
    """All parameters, each with its place on the mesh."""
    keys = jax.random.split(key, len(layers))
    return {
        name: layer.init(k, *inputs[name])["params"]
        for k, (name, layer) in zip(keys, layers.items(), strict=True)
    }


def abilities(c) -> Abilities:
    """What a trained one can do: write text. The same of families that read images besides."""
    return Abilities(
        generate="engine",
        options=CHOICE,
        log_likelihood="decoder",
        vectors="decoder",
        evals=READS,
    )


def build(c: Config, vocabulary: Vocabulary, rules: Rules) -> Model:
    """The family's `Model` for one configuration, vocabulary and layout."""
    layers = modules(c.decoder, vocabulary, rules)
    piece = pieces(layers)
    parts = Parts(
        config=c,
        vocabulary=vocabulary,
        decoder=c.decoder,
        embed=piece("embed"),
        run=piece("decoder"),
        head=piece("head"),
        coded=lambda params, batch: batch,
        clean=lambda params, batch: piece("embed")(params, batch.tokens),
        mask=causal_mask,
    )
    start = partial(boxed_init, layers=layers, inputs=dummies(c.decoder, rules.split("batch")))
    return Model(
        init=unboxed(start),
        specs=specs_of(start),
        loss=partial(loss, parts),
        flops=partial(forward_flops, c.decoder, vocabulary),
        weights={"text": 1.0},
        parts=parts,
    )
