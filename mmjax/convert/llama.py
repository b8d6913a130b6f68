"""Llama of Hugging Face's `transformers` as a language model: `LlamaForCausalLM`."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.batch import Vocabulary
from mmjax.convert import hub
from mmjax.convert.decoder import (
    decoder_config,
    decoder_rows,
    given_decoder,
    hidden_states,
    next_token_loss,
)
from mmjax.convert.rows import Row
from mmjax.error import UserError
from mmjax.models.decoder import DecoderConfig
from mmjax.models.language import Config, Parts

FAMILY = "language"
IGNORED = ("rotary_emb.inv_freq",)  # the first Llamas kept what follows from the configuration
EPS = 1e-6
DEFAULTS = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "intermediate_size": 11008, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def vocabulary(given: Mapping) -> Vocabulary:
    """Their ids; what they have none for is -1.

    Without an id for padding EOS stands in: any other would be a word that is never written.
    """
    given = DEFAULTS | dict(given)
    pad = hub.token(given, "pad_token_id")
    eos, *stops = hub.tokens(given, "eos_token_id") or [-1]
    return Vocabulary(
        given["vocab_size"],
        pad=pad if pad >= 0 else max(eos, 0),
        bos=hub.token(given, "bos_token_id"),
        eos=eos,
        stops=tuple(stops),
        boi=-1,
        eoi=-1,
        sep=-1,
        eoss=-1,
    )


def decoder(given: Mapping) -> DecoderConfig:
    """Their config.json as a decoder."""
    return decoder_config(DEFAULTS | dict(given), EPS)


def config(given: Mapping) -> Config:
    """Their config.json as a configuration of ours.

    Raises:
        UserError: for what is not known here.
    """
    return Config(decoder=decoder(given), z_weight=0.0)


def given_language(d: DecoderConfig, v: Vocabulary) -> dict:
    """A decoder and its ids as their config.json.

    Raises:
        UserError: for one that they have no model for.
    """
    for wrong, what in (
        (d.qk_norm, "model.decoder.qk_norm=True"),
        (d.norm != "pre", f"model.decoder.norm={d.norm!r}"),
    ):
        if wrong:
            raise UserError(f"{what} is not what a Llama of theirs has")
    return given_decoder(d) | {
        "model_type": "llama",
        "vocab_size": v.size,
        "bos_token_id": v.bos if v.bos >= 0 else None,
        "eos_token_id": [v.eos, *v.stops] if v.stops else v.eos if v.eos >= 0 else None,
        "pad_token_id": v.pad,
    }


def given(c: Config, v: Vocabulary) -> dict:
    """A configuration of ours as their config.json."""
    return given_language(c.decoder, v) | {"architectures": ["LlamaForCausalLM"]}


def language_rows(d: DecoderConfig, v: Vocabulary, theirs: str = "") -> list[Row]:
    """All weights of a language model; theirs: what stands before their names."""
    return [
        Row("embed/table", f"{theirs}model.embed_tokens.weight", (v.size, d.width)),
        Row("head/w", f"{theirs}lm_head.weight", (d.width, v.size), kind="matrix"),
        *decoder_rows(d, f"{theirs}model"),
    ]


def rows(c: Config, v: Vocabulary, source: Mapping | None = None) -> list[Row]:
    """All weights of a model."""
    del source
    return language_rows(c.decoder, v)


def extra(c: Config) -> dict[str, Any]:
    """Weights of ours that theirs lack: none."""
    del c
    return {}


def place(c: Config) -> dict[str, int]:
    """Sizes of the rows that such a model reads; it has no pictures."""
    del c
    return {"image": 1, "patch": 1, "length": 2048}


def written(parts: Parts, params, x, inputs: Mapping[str, np.ndarray]) -> dict:
    """What a decoder makes of x [b, l, d], under their names of outputs."""
    mask = jnp.tril(jnp.ones((1, *(x.shape[1],) * 2), bool))
    if "attention_mask" in inputs:
        mask &= jnp.asarray(inputs["attention_mask"])[:, None] > 0
    hidden = hidden_states(parts.decoder, params, x, mask)
    found = {f"hidden_{n}": y for n, y in enumerate(hidden)}
    found["logits"] = hidden[-1] @ parts.head(params)
    if "labels" in inputs:
        labels = jnp.asarray(inputs["labels"], jnp.int32)
        found["loss"] = next_token_loss(found["logits"], labels)
    return found


def outputs(parts: Parts, params, inputs: Mapping[str, np.ndarray], source: Mapping) -> dict:
    """What a model makes of inputs that are named as theirs, under their names of outputs.

    input_ids [b, l] (attention_mask, labels [b, l]).
    """
    del source
    x = parts.embed(params, jnp.asarray(inputs["input_ids"], jnp.int32))
    return written(parts, params, x, inputs)
