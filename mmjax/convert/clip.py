"""CLIP and SigLIP of Hugging Face's `transformers`: `CLIPModel` and `SiglipModel`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Vocabulary
from mmjax.contrastive import OBJECTIVES
from mmjax.convert import hub, words
from mmjax.convert.decoder import ACTIVATIONS, one_device
from mmjax.convert.fields import check_sizes
from mmjax.convert.rows import Row
from mmjax.error import UserError
from mmjax.layers.encoder import EncoderConfig
from mmjax.layers.vision import TextConfig, VisionConfig
from mmjax.models.clip import Config, Parts, unit

FAMILY = "clip"
IGNORED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
HIGHEST = 2  # the eos_token_id by which CLIP takes a text's highest id for its end
CROP = "shortest={0} kernel=bicubic crop={0}x{0}"  # how CLIP's pictures come to a side
# What a config.json may leave out.
DEFAULTS: dict[str, dict] = {
    "clip": {
        "projection_dim": 512,
        "vision_config": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "image_size": 224, "patch_size": 32,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        "text_config": {
            "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8,
            "intermediate_size": 2048, "max_position_embeddings": 77, "vocab_size": 49408,
            "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
            "pad_token_id": 1, "bos_token_id": 49406, "eos_token_id": 49407,
        },
    },
    "siglip": {
        "vision_config": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "image_size": 224, "patch_size": 16,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 3072, "max_position_embeddings": 64, "vocab_size": 32000,
            "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
        },
    },
}  # fmt: skip


def whole(given: Mapping) -> dict:
    """Their config.json with every default written out.

    Raises:
        UserError: for a model that is neither.
    """
    kind = given.get("model_type")
    if kind not in DEFAULTS:
        raise UserError(f"model_type={kind!r} is neither clip nor siglip")
    towers = ("vision_config", "text_config")
    base = DEFAULTS[kind]
    # Old files say it twice; what "..._dict" says, and its defaults, count then.
    said = {name: given.get(f"{name}_dict") or given.get(name) or {} for name in towers}
    return base | dict(given) | {name: base[name] | said[name] for name in towers}


def named(v: Vocabulary, given: Mapping, beside: Mapping[str, bytes], path: Path) -> Vocabulary:
    """SigLIP's padding and end as the tokenizer beside names them: config.json does not."""
    tokenizer = words.read(beside, path)
    if tokenizer is None or given["model_type"] != "siglip":
        return v
    names = words.names(words.settings(beside, path))
    ids = {n: tokenizer.token_to_id(names.get(f"{n}_token", "")) for n in ("pad", "eos")}
    found: dict[str, Any] = {n: i for n, i in ids.items() if i is not None}
    return replace(v, **found)


def vocabulary(given: Mapping) -> Vocabulary:
    """Their ids; what they have none for is -1.

    The first CLIPs say that EOS is 2 and mean their highest id. It pads too, and what config.json
    calls padding, 1, is a word. SigLIP's texts have no BOS, and </s>, 1, is both their end and
    their padding.
    """
    text = whole(given)["text_config"]
    none: dict[str, Any] = {"boi": -1, "eoi": -1, "sep": -1, "eoss": -1}
    size = text["vocab_size"]
    if given["model_type"] == "siglip":
        return Vocabulary(size, pad=1, bos=-1, eos=1, **none)
    bos, eos = (hub.token(text, f"{name}_token_id") for name in ("bos", "eos"))
    bos, eos = (size - 2, size - 1) if eos == HIGHEST else (bos, eos)
    return Vocabulary(size, pad=eos, bos=bos, eos=eos, **none)


def encoder_config(given: Mapping, dtype: str) -> EncoderConfig:
    """One half of their configuration as an encoder.

    Raises:
        UserError: for an activation that is not known here.
    """
    check_sizes(given, "config.json")
    act = given["hidden_act"]
    if act not in ACTIVATIONS:
        raise UserError(f"hidden_act={act!r} is unknown; have: {', '.join(ACTIVATIONS)}")
    return EncoderConfig(
        width=given["hidden_size"],
        depth=given["num_hidden_layers"],
        heads=given["num_attention_heads"],
        mlp=given["intermediate_size"],
        activation=ACTIVATIONS[act],
        eps=given["layer_norm_eps"],
        remat=False,
        unroll=1,
        dtype=dtype,
    )


def config(given: Mapping, dtype: str = "float32") -> Config:
    """Their config.json as a configuration of ours.

    Raises:
        UserError: for a model that is neither, or a text tower whose output has another size than
            the picture's (SigLIP).
    """
    given = whole(given)
    vision, text, clip = given["vision_config"], given["text_config"], given["model_type"] == "clip"
    seen = encoder_config(vision, dtype)
    return Config(
        vision=VisionConfig(
            encoder=seen,
            **sides(vision),
            pool="token" if clip else "attention",
            positions="learned",
            patch_bias=not clip,
            pre_norm=clip,
        ),
        text=TextConfig(
            encoder=encoder_config(text, dtype),
            length=text["max_position_embeddings"],
            causal=clip,
            pool=text_pool(text) if clip else "last",
        ),
        embed=given["projection_dim"] if clip else seen.width,
        project="linear" if clip else "text",
        objective="softmax" if clip else "sigmoid",
        scale=1.0,
        bias=0.0,
        mean=(0.48145466, 0.4578275, 0.40821073) if clip else (0.5,) * 3,
        std=(0.26862954, 0.26130258, 0.27577711) if clip else (0.5,) * 3,
    )


def sides(vision: Mapping) -> dict[str, Any]:
    """A tower's picture and patch, and whether an edge is left over.

    Raises:
        UserError: for what is no square.
    """
    found = {}
    for name, key in (("image", "image_size"), ("patch", "patch_size")):
        x = vision[key]
        if isinstance(x, list | tuple):
            if len(set(x)) != 1:
                raise UserError(
                    f"config.json has {key}={x}, which no tower here has; squares alone"
                )
            (x,) = set(x)
        found[name] = x
    return found | {"crop": found["image"] % found["patch"] > 0}


def text_pool(text: Mapping) -> str:
    """Which of a text's positions CLIP takes."""
    return "highest" if text["eos_token_id"] == HIGHEST else "end"


def given_tower(e: EncoderConfig) -> dict:
    """An encoder as half of their configuration."""
    return {
        "hidden_size": e.width,
        "num_hidden_layers": e.depth,
        "num_attention_heads": e.heads,
        "intermediate_size": e.mlp,
        "hidden_act": {ours: name for name, ours in ACTIVATIONS.items()}[e.activation],
        "layer_norm_eps": e.eps,
    }


def given(c: Config, v: Vocabulary) -> dict:
    """A configuration of ours as their config.json.

    Raises:
        UserError: for one that they have no model for.
    """
    clip = c.objective == "softmax"
    own = config({"model_type": "clip" if clip else "siglip"})
    for name, x, wanted in (
        ("vision.pool", c.vision.pool, own.vision.pool),
        ("vision.positions", c.vision.positions, own.vision.positions),
        ("vision.patch_bias", c.vision.patch_bias, own.vision.patch_bias),
        ("vision.pre_norm", c.vision.pre_norm, own.vision.pre_norm),
        ("text.causal", c.text.causal, own.text.causal),
        ("text.pool", "end" if c.text.pool == "highest" else c.text.pool, own.text.pool),
        ("project", c.project, own.project),
    ):
        if x != wanted:
            kind = "CLIP" if clip else "SigLIP"
            raise UserError(f"model.{name}={x!r} is not what a {kind} of theirs has, {wanted!r}")
    if c.text.pool == "end" and v.eos == HIGHEST:
        raise UserError(
            f"the tokenizer's EOS has id {HIGHEST}, by which a CLIP of theirs looks for a text's "
            f"highest id instead; train with model.text.pool='highest' or another tokenizer"
        )
    eos = HIGHEST if c.text.pool == "highest" else v.eos
    ids = {"vocab_size": v.size, "pad_token_id": v.pad, "eos_token_id": eos}
    ids |= {"bos_token_id": v.bos} if v.bos >= 0 else {}
    size = {"projection_dim" if clip else "projection_size": c.embed}
    seen = {"image_size": c.vision.image, "patch_size": c.vision.patch}
    length = {"max_position_embeddings": c.text.length}
    vision = given_tower(c.vision.encoder) | seen | (size if clip else {})
    return {
        "architectures": ["CLIPModel" if clip else "SiglipModel"],
        "model_type": "clip" if clip else "siglip",
        "vision_config": vision,
        "text_config": given_tower(c.text.encoder) | length | size | ids,
    } | (size if clip else {})


def place(c: Config) -> dict[str, Any]:
    """Sizes of the rows that such a model reads: one picture at one position, and its words.

    SigLIP sees all of a picture, whatever its aspect; CLIP the middle.
    """
    how = CROP.format(c.image) if c.objective == "softmax" else "pil_bicubic_stretch"
    return {"image": c.image, "patch": c.image, "length": c.text.length + 8, "resize": how}


def extra(c: Config) -> dict[str, np.ndarray]:
    """Weights of ours that theirs lack, by path."""
    return {"scale/bias": np.zeros((), np.float32)} if c.objective == "softmax" else {}


def outputs(parts: Parts, params, inputs: Mapping[str, np.ndarray], source: Mapping) -> dict:
    """What a model makes of inputs that are named as theirs, under their names of outputs.

    input_ids [n, l] (attention_mask [n, l]) and pixel_values [m, 3, h, w] f32; one may be absent.
    """
    del source
    c = parts.config
    found: dict = {}
    if "pixel_values" in inputs:
        signal = jnp.moveaxis(jnp.asarray(inputs["pixel_values"], jnp.float32), 1, -1)
        pooled, hidden = jax.jit(parts.vision)(params, signal)
        found |= {f"vision_hidden_{i}": x for i, x in enumerate(hidden)}
        found["image_embeds"] = unit(parts.to_image(params, pooled))
    if "input_ids" in inputs:
        mask = inputs.get("attention_mask")
        held = None if mask is None else jnp.asarray(mask) > 0
        tokens = jnp.asarray(inputs["input_ids"], jnp.int32)
        pooled, hidden = jax.jit(parts.text)(params, tokens, held)
        found |= {f"text_hidden_{i}": x for i, x in enumerate(hidden)}
        found["text_embeds"] = unit(parts.to_text(params, pooled))
    if {"image_embeds", "text_embeds"} <= set(found):
        scale, bias = jnp.exp(params["scale"]["log"]), params["scale"]["bias"]
        images, texts = found["image_embeds"], found["text_embeds"]
        logits = scale * images @ texts.T + bias
        found |= {"logits_per_image": logits, "logits_per_text": logits.T}
        if len(images) == len(texts):
            every = jnp.ones(len(images), bool)
            terms = OBJECTIVES[c.objective](one_device(), images, texts, every, scale, bias)
            term = terms["contrastive"]
            found["loss"] = term.sum / term.count
    return found


def encoder_rows(e: EncoderConfig, ours: str, theirs: str) -> list[Row]:
    """The blocks of a tower."""
    d, k, n = e.width, e.width // e.heads, e.depth
    at, there = f"{ours}/encoder/blocks", f"{theirs}.encoder.layers.{{}}"
    rows = []
    for name, other in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
        where = f"{at}/attention/{name}", f"{there}.self_attn.{other}"
        rows += affine(*where, (d, e.heads, k), n)
    rows += affine(f"{at}/attention/o", f"{there}.self_attn.out_proj", (e.heads, k, d), n, 2)
    rows += affine(f"{at}/mlp/up", f"{there}.mlp.fc1", (d, e.mlp), n)
    rows += affine(f"{at}/mlp/down", f"{there}.mlp.fc2", (e.mlp, d), n)
    rows += norm(f"{at}/attention_norm", f"{there}.layer_norm1", d, n)
    return rows + norm(f"{at}/mlp_norm", f"{there}.layer_norm2", d, n)


def affine(ours: str, theirs: str, shape, layers: int = 0, into: int = 1) -> list[Row]:
    """A matrix and its bias."""
    size = 1
    for x in shape[into:]:
        size *= x
    return [
        Row(ours, f"{theirs}.weight", tuple(shape), layers, "matrix", into),
        Row(f"{ours}_bias", f"{theirs}.bias", (size,), layers),
    ]


def norm(ours: str, theirs: str, width: int, layers: int = 0) -> list[Row]:
    """A norm's scale and bias."""
    return [
        Row(f"{ours}_scale", f"{theirs}.weight", (width,), layers),
        Row(f"{ours}_bias", f"{theirs}.bias", (width,), layers),
    ]


def vision_rows(c: VisionConfig, ours: str, theirs: str) -> list[Row]:
    """A vision tower."""
    d, e = c.encoder.width, f"{theirs}.embeddings"
    rows = [
        Row(f"{ours}/patch", f"{e}.patch_embedding.weight", (c.patch**2 * 3, d), kind="patch"),
        Row(f"{ours}/position", f"{e}.position_embedding.weight", (c.length, d)),
    ]
    if c.patch_bias:
        rows.append(Row(f"{ours}/patch_bias", f"{e}.patch_embedding.bias", (d,)))
    if c.pool == "token":
        rows.append(Row(f"{ours}/token", f"{e}.class_embedding", (d,)))
    if c.pre_norm:
        rows += norm(f"{ours}/pre_norm", f"{theirs}.pre_layrnorm", d)  # their spelling
    rows += norm(f"{ours}/post_norm", f"{theirs}.post_layernorm", d)
    rows += encoder_rows(c.encoder, ours, theirs)
    return rows + (pool_rows(c, ours, f"{theirs}.head") if c.pool == "attention" else [])


def pool_rows(c: VisionConfig, ours: str, theirs: str) -> list[Row]:
    """SigLIP's pooling: attention of one query, and an MLP."""
    d, heads = c.encoder.width, c.encoder.heads
    into = (d, heads, d // heads)
    rows = [
        Row(f"{ours}/probe", f"{theirs}.probe", (1, d), was=(1, 1, d)),
    ]
    for part, name in enumerate(("q", "k", "v")):
        weight = f"{theirs}.attention.in_proj_weight"
        rows.append(Row(f"{ours}/pool/{name}", weight, into, 0, "matrix", 1, part))
    for part, name in enumerate(("q", "k", "v")):
        bias = f"{theirs}.attention.in_proj_bias"
        rows.append(Row(f"{ours}/pool/{name}_bias", bias, (d,), part=part))
    out = (heads, d // heads, d)
    rows += affine(f"{ours}/pool/o", f"{theirs}.attention.out_proj", out, into=2)
    rows += norm(f"{ours}/pool_norm", f"{theirs}.layernorm", d)
    rows += affine(f"{ours}/pool_mlp/up", f"{theirs}.mlp.fc1", (d, c.encoder.mlp))
    return rows + affine(f"{ours}/pool_mlp/down", f"{theirs}.mlp.fc2", (c.encoder.mlp, d))


def rows(c: Config, v: Vocabulary, source: Mapping | None = None) -> list[Row]:
    """All weights of a model."""
    del source
    size, d, seen = v.size, c.text.encoder.width, c.vision.encoder.width
    text = "text_model.embeddings"
    found = [
        Row("text/table", f"{text}.token_embedding.weight", (size, d)),
        Row("text/position", f"{text}.position_embedding.weight", (c.text.length, d)),
        *norm("text/final_norm", "text_model.final_layer_norm", d),
        *encoder_rows(c.text.encoder, "text", "text_model"),
        *vision_rows(c.vision, "vision", "vision_model"),
    ]
    if c.project == "linear":
        return [
            *found,
            Row("see/w", "visual_projection.weight", (seen, c.embed), kind="matrix"),
            Row("read/w", "text_projection.weight", (d, c.embed), kind="matrix"),
            Row("scale/log", "logit_scale", ()),
        ]
    return [
        *found,
        *affine("read/w", "text_model.head", (d, c.embed)),
        Row("scale/log", "logit_scale", (), was=(1,)),
        Row("scale/bias", "logit_bias", (), was=(1,)),
    ]
