"""IDEFICS of Hugging Face's `transformers`, an open Flamingo: `IdeficsForVisionText2Text`.

Ids that were added to the language model's, <fake_token_around_image> and <image> in the released
ones, have embeddings and outputs apart, there and here. Theirs writes one of the first between two
pictures that follow one another, where a row here has one behind the first and one before the next.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Vocabulary
from mmjax.convert import clip, llama
from mmjax.convert.clip import encoder_config, given_tower, norm, sides, vision_rows
from mmjax.convert.decoder import decoder_rows, next_token_loss, one_device
from mmjax.convert.rows import Row
from mmjax.error import UserError
from mmjax.layers.cross import Cross, CrossConfig
from mmjax.layers.norm import EPS, rms_norm
from mmjax.layers.position import rope_angles
from mmjax.layers.resampler import ResamplerConfig
from mmjax.layers.vision import VisionConfig
from mmjax.models.aside import Read
from mmjax.models.decoder import Block
from mmjax.models.flamingo import Config, features
from mmjax.models.language import Parts

FAMILY = "flamingo"
IGNORED = (*llama.IGNORED, "embeddings.position_ids")
VISION = {
    "embed_dim": 768, "image_size": 224, "intermediate_size": 5120, "patch_size": 14,
    "num_hidden_layers": 32, "num_attention_heads": 16, "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
PERCEIVER = {
    "resampler_n_latents": 64, "resampler_depth": 6, "resampler_n_heads": 16,
    "resampler_head_dim": 96, "qk_layer_norms_perceiver": False,
}  # fmt: skip
DEFAULTS = {
    "additional_vocab_size": 0, "cross_layer_interval": 1, "qk_layer_norms": False,
    "alpha_type": "float", "use_resampler": False, "vision_config": {}, "perceiver_config": {},
    "rms_norm_eps": llama.EPS,
}  # fmt: skip
GATES = {"float": "scalar", "vector": "vector"}


def whole(given: Mapping) -> dict:
    """Their config.json with every default written out.

    Raises:
        UserError: for what the family does not have.
    """
    found = llama.DEFAULTS | DEFAULTS | {k: v for k, v in given.items() if v is not None}
    vision = VISION | dict(found["vision_config"])
    vision["embed_dim"] = vision.get("hidden_size", vision["embed_dim"])
    if found["alpha_type"] not in GATES:
        raise UserError(
            f"config.json has alpha_type={found['alpha_type']!r}; have: {', '.join(GATES)}"
        )
    check_interval(found["num_hidden_layers"], found["cross_layer_interval"])
    return found | {
        "vision_config": vision | {"hidden_size": vision["embed_dim"]},
        "perceiver_config": PERCEIVER | dict(found["perceiver_config"]),
    }


def check_interval(depth: int, every: int) -> None:
    """Theirs has no block before a last, shorter group of layers, and fails where it would be.

    Raises:
        UserError: for a depth that is no multiple of the interval.
    """
    if depth % every:
        raise UserError(
            f"{depth} layers are no multiple of cross_layer_interval={every}; an IDEFICS of theirs "
            f"does not run then"
        )


def vocabulary(given: Mapping) -> Vocabulary:
    """Their ids and those that were added; of two or more, the first stands around pictures."""
    given = whole(given)
    more, size, v = given["additional_vocab_size"], given["vocab_size"], llama.vocabulary(given)
    around = size if more > 1 else -1
    return Vocabulary(
        size + more,
        pad=v.pad,
        bos=v.bos,
        eos=v.eos,
        boi=around,
        eoi=around,
        sep=-1,
        eoss=-1,
        masks=(place_of(more, size, v.pad),) if more else (),  # never written as a word
        stops=v.stops,
    )


def place_of(added: int, size: int, pad: int) -> int:
    """The id that stands where a picture does: of those added behind `size` the second, or padding.

    Where one alone was added it is that; a third, in those that were instructed, ends a turn.
    """
    return size + min(added, 2) - 1 if added else pad


def config(given: Mapping) -> Config:
    """Their config.json as a configuration of ours.

    Raises:
        UserError: for what is not known here.
    """
    v, given = vocabulary(given), whole(given)
    decoder, vision = llama.decoder(given), given["vision_config"]
    p, model = given["perceiver_config"], clip.config({"model_type": "clip"})
    resampler = ResamplerConfig(
        latents=p["resampler_n_latents"],
        depth=p["resampler_depth"],
        heads=p["resampler_n_heads"],
        head_dim=p["resampler_head_dim"],
        mlp=4 * vision["hidden_size"],
        activation="relu",
        qk_norm=p["qk_layer_norms_perceiver"],
        eps=EPS,
    )
    return Config(
        decoder=decoder,
        vision=VisionConfig(
            encoder=encoder_config(vision, "float32"),
            **sides(vision),
            pool="token",
            positions="learned",
            patch_bias=False,
            pre_norm=True,
            nudge=0.1,
        ),
        resampler=resampler if given["use_resampler"] else None,
        cross=CrossConfig(
            every=given["cross_layer_interval"],
            before="first",
            heads=decoder.heads,
            head_dim=decoder.head_dim,
            mlp=decoder.mlp,
            norm="rms",
            eps=decoder.eps,
            kind="swiglu",
            gate=GATES[given["alpha_type"]],
            qk_norm=given["qk_layer_norms"],
            activation=decoder.activation,
        ),
        select="all",
        added=given["additional_vocab_size"],
        place=place_of(given["additional_vocab_size"], given["vocab_size"], v.pad),
        z_weight=0.0,
        mean=model.mean,
        std=model.std,
        train=("resampler", "cross", "added"),
    )


def given(c: Config, v: Vocabulary) -> dict:
    """A configuration of ours as their config.json.

    Raises:
        UserError: for one that they have no model for.
    """
    d, e, r = c.decoder, c.vision.encoder, c.resampler
    if r is not None and (r.activation, r.mlp, r.eps) != ("relu", 4 * e.width, EPS):
        raise UserError(
            f"model.resampler has activation={r.activation!r}, mlp={r.mlp}, eps={r.eps}; one of "
            f"theirs has 'relu', {4 * e.width}, {EPS}"
        )
    cross = {"before": "first", "heads": d.heads, "head_dim": d.head_dim, "mlp": d.mlp}
    cross |= {"norm": "rms", "eps": d.eps, "kind": "swiglu", "activation": d.activation}
    tower = {"pool": "token", "positions": "learned", "patch_bias": False, "pre_norm": True}
    for name, held, wanted in (
        ("decoder.", d, {"kv_heads": d.heads, "head": 0, "biases": ()}),
        ("cross.", c.cross, cross),
        ("vision.", c.vision, tower),
        ("", c, {"select": "all", "place": place_of(c.added, v.size - c.added, v.pad)}),
    ):
        for field, x in wanted.items():
            if (mine := getattr(held, field)) != x:
                raise UserError(
                    f"model.{name}{field}={mine!r} is not what an IDEFICS of theirs has, {x!r}"
                )
    check_interval(d.depth, c.cross.every)
    seen = {"image_size": c.vision.image, "patch_size": c.vision.patch, "embed_dim": e.width}
    perceiver = {} if r is None else {
        "resampler_n_latents": r.latents, "resampler_depth": r.depth,
        "resampler_n_heads": r.heads, "resampler_head_dim": r.head_dim,
        "qk_layer_norms_perceiver": r.qk_norm,
    }  # fmt: skip
    named = {n: x for n, x in given_tower(e).items() if n != "hidden_size"}
    return llama.given_language(d, v) | {
        "architectures": ["IdeficsForVisionText2Text"],
        "model_type": "idefics",
        "vocab_size": v.size - c.added,
        "additional_vocab_size": c.added,
        "cross_layer_interval": c.cross.every,
        "qk_layer_norms": c.cross.qk_norm,
        "alpha_type": {ours: name for name, ours in GATES.items()}[c.cross.gate],
        "use_resampler": r is not None,
        "vision_config": named | seen | {"model_type": "idefics_vision"},
        "perceiver_config": perceiver | {"use_resampler": r is not None},
    }


def cross_rows(c: Config) -> list[Row]:
    """The blocks between the decoder's layers."""
    d, wide, x = c.decoder.width, c.vision.encoder.width, c.cross
    at, there, n = "cross/blocks", "model.gated_cross_attn_layers.{}", x.count(c.decoder.depth)
    rows = [
        Row(f"{at}/attention_norm", f"{there}.input_layernorm.weight", (d,), n),
        Row(f"{at}/mlp_norm", f"{there}.post_attention_layernorm.weight", (d,), n),
    ]
    for ours, theirs in (("attention_gate", "alpha_cross_attn"), ("mlp_gate", "alpha_dense")):
        size, lead = (1, ()) if x.gate == "scalar" else (d, (1, 1))
        rows.append(Row(f"{at}/{ours}", f"{there}.{theirs}", (size,), n, was=(*lead, size)))
    inner = (x.heads, x.head_dim)
    shapes = {"q": (d, *inner), "k": (wide, *inner), "v": (wide, *inner), "o": (*inner, d)}
    for name, shape in shapes.items():
        theirs, into = f"{there}.cross_attn.{name}_proj.weight", 1 + (name == "o")
        rows.append(Row(f"{at}/attention/{name}", theirs, shape, n, "matrix", into))
    for name in ("q", "k") if x.qk_norm else ():
        theirs = f"{there}.cross_attn.{name}_layer_norm.weight"
        rows.append(Row(f"{at}/attention/{name}_norm", theirs, (x.head_dim,), n))
    for name, flat in (("gate", (d, x.mlp)), ("up", (d, x.mlp)), ("down", (x.mlp, d))):
        rows.append(Row(f"{at}/mlp/{name}", f"{there}.mlp.{name}_proj.weight", flat, n, "matrix"))
    return rows


def resampler_rows(r: ResamplerConfig, d: int) -> list[Row]:
    """The resampler, of width d."""
    ours, theirs, n = "resampler", "model.perceiver_resampler", r.depth
    at, look, mlp = f"{ours}/blocks", f"{theirs}.blocks.{{}}.0", f"{theirs}.blocks.{{}}.1"
    rows = [Row(f"{ours}/latents", f"{theirs}.latents", (r.latents, d))]
    rows += norm(f"{ours}/final_norm", f"{theirs}.layer_norm", d)
    rows += norm(f"{at}/media_norm", f"{look}.context_layer_norm", d, n)
    rows += norm(f"{at}/latent_norm", f"{look}.latents_layer_norm", d, n)
    rows += norm(f"{at}/mlp_norm", f"{mlp}.ln", d, n)
    inner = (r.heads, r.head_dim)
    for name in ("q", "k", "v"):
        rows.append(Row(f"{at}/{name}", f"{look}.{name}_proj.weight", (d, *inner), n, "matrix"))
    rows.append(Row(f"{at}/o", f"{look}.output_proj.weight", (*inner, d), n, "matrix", 2))
    for name in ("q", "k") if r.qk_norm else ():
        for end, kind in (("scale", "weight"), ("bias", "bias")):
            other = f"{look}.{name}_layer_norm.{kind}"
            was = (r.head_dim,)
            rows.append(Row(f"{at}/{name}_norm_{end}", other, (1, r.head_dim), n, was=was))
    return [
        *rows,
        Row(f"{at}/mlp/up", f"{mlp}.fc.weight", (d, r.mlp), n, "matrix"),
        Row(f"{at}/mlp/down", f"{mlp}.c_proj.weight", (r.mlp, d), n, "matrix"),
    ]


def rows(c: Config, v: Vocabulary, source: Mapping | None = None) -> list[Row]:
    """All weights of a model."""
    del source
    d, a, size = c.decoder.width, c.added, v.size - c.added
    added = [
        Row("added/table", "model.embed_tokens.additional_embedding.weight", (a, d)),
        Row("added/w", "lm_head.additional_fc.weight", (d, a), kind="matrix"),
    ]
    return [
        Row("embed/table", "model.embed_tokens.weight", (size, d)),
        Row("head/w", "lm_head.weight", (d, size), kind="matrix"),
        *(added if a else []),
        *decoder_rows(c.decoder, "model"),
        *cross_rows(c),
        *([] if c.resampler is None else resampler_rows(c.resampler, c.vision.encoder.width)),
        *vision_rows(c.vision, "vision", "model.vision_model"),
    ]


def extra(c: Config) -> dict[str, Any]:
    """Weights of ours that theirs lack: none."""
    del c
    return {}


def place(c: Config) -> dict[str, Any]:
    """Sizes of the rows that such a model reads: a picture takes one position, and is not cut."""
    return {"image": c.image, "patch": c.patch, "length": 1024, "resize": "pil_bicubic_stretch"}


def hidden_states(parts: Parts, params, read: Read, mask, position) -> list:
    """What each layer reads and the last makes; as theirs, the first behind the first block that
    looks at pictures, and the last behind the final norm.
    """
    c, d = parts.config, parts.decoder
    angles = rope_angles(position, d.head_dim, d.theta, d.rope_scaling)
    at = one_device(), d.dtype
    block, cross = Block(*at, d), Cross(*at, c.cross)

    def leaves(tree, n):
        return jax.tree.map(lambda w: w[n], tree)

    @jax.jit
    def layer(n, x):
        its = {"params": leaves(params["decoder"]["blocks"], n)}
        return block.apply(its, x, None, n, mask, angles, None, None, None)[0]

    @jax.jit
    def look(n, x):
        its = {"params": leaves(params["cross"]["blocks"], n)}
        return cross.apply(its, x, read.media, read.looks)[0]

    x, found = read.x, []
    for n in range(d.depth):
        before = look(n // c.cross.every, x) if n % c.cross.every == 0 else x
        found.append(x if n else before)
        x = layer(n, before)
    return [*found, rms_norm(x, params["decoder"]["final_norm"], d.eps)]


def outputs(parts: Parts, params, inputs: Mapping[str, np.ndarray], source: Mapping) -> dict:
    """What a model makes of inputs that are named as theirs, under their names of outputs.

    input_ids [b, l], pixel_values [b, i, 3, h, w] f32, image_attention_mask [b, l, i]
    (attention_mask, labels [b, l]).

    Raises:
        UserError: where pictures, or who looks at them, are missing.
    """
    del source
    if missing := {"pixel_values", "image_attention_mask"} - set(inputs):
        raise UserError(f"inputs.npz lacks {', '.join(sorted(missing))}; an IDEFICS needs them")
    tokens = jnp.asarray(inputs["input_ids"], jnp.int32)
    pixels = jnp.asarray(inputs["pixel_values"], jnp.float32)
    assert parts.vision is not None and parts.project is not None
    signal = jnp.moveaxis(pixels.reshape(-1, *pixels.shape[2:]), 1, -1)
    pooled, hidden = jax.jit(parts.vision)(params, signal)
    media = parts.project(params, features(parts.config, hidden))
    media = media.reshape(*pixels.shape[:2], *media.shape[1:])
    looks = jnp.asarray(inputs["image_attention_mask"]) > 0
    mask = jnp.tril(jnp.ones((1, *(tokens.shape[1],) * 2), bool))
    position = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    if "attention_mask" in inputs:
        held = jnp.asarray(inputs["attention_mask"]) > 0
        mask = mask & held[:, None]
        position = jnp.where(held, jnp.cumsum(held.astype(jnp.int32), axis=1) - 1, 1)
    read = Read(parts.embed(params, tokens), media, looks)
    each = hidden_states(parts, params, read, mask, position)
    found = {f"hidden_{n}": x for n, x in enumerate(each)}
    found |= {f"vision_hidden_{n}": x for n, x in enumerate(hidden)} | {"image_features": media}
    found["image_features/pooled"] = pooled  # what transformers 5.24 calls image_hidden_states
    last, _ = jax.jit(parts.run)(params, read, mask, position)
    found["logits"] = last @ parts.head(params)
    if "labels" in inputs:
        labels = jnp.asarray(inputs["labels"], jnp.int32)
        found["loss"] = next_token_loss(found["logits"], labels)
    return found
