"""Chameleon of Hugging Face's `transformers`: `ChameleonForConditionalGeneration`.

Theirs has the encoder of the image tokenizer and no decoder: what is imported reads pictures and
writes codes; what comes from the release of Facebook's (see `original`) draws too. Image ids may
stand for codes in any order there; here codes stand in the order of the ids, so the codebook is
sorted.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mmjax.batch import Vocabulary
from mmjax.codecs import autoencoder
from mmjax.codecs.autoencoder import CodecConfig
from mmjax.codecs.quantise import QuantiserConfig
from mmjax.convert.decoder import (
    decoder_config,
    decoder_rows,
    given_decoder,
    hidden_states,
    next_token_loss,
    one_device,
)
from mmjax.convert.rows import Row
from mmjax.error import UserError
from mmjax.layers.conv import GROUPS
from mmjax.models.chameleon import Config, Parts

FAMILY = "chameleon"
IGNORED = ()
PREFIX, PLACE = "IMGIMG", "<image>"
SENTINELS = {
    "pad": "<pad>", "bos": "<s>", "eos": "</s>", "boi": "<racm3:break>", "eoi": "<eoss>",
    "sep": "<reserved08706>",
}  # fmt: skip
EPS = 1e-5
DEFAULTS = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "intermediate_size": 11008, "vocab_size": 65536, "swin_norm": False,
    "vq_config": {
        "resolution": 512, "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2, "attn_resolutions": None, "latent_channels": 256, "embed_dim": 256,
        "num_embeddings": 8192, "double_latent": False, "attn_type": "vanilla",
    },
}  # fmt: skip


def whole(given: Mapping) -> dict:
    """Their config.json with every default written out.

    Raises:
        UserError: for shapes that the codec here does not have.
    """
    vq = DEFAULTS["vq_config"] | (given.get("vq_config") or {})  # type: ignore[operator]
    widths = [vq["base_channels"] * m for m in vq["channel_multiplier"]]
    for wrong, what in (
        (vq["double_latent"], "double_latent=True"),
        (any(w % GROUPS for w in widths), f"channels {widths}, no multiples of {GROUPS}"),
    ):
        if wrong:
            raise UserError(f"config.json: vq_config has {what}, which the codec here does not")
    return DEFAULTS | dict(given) | {"vq_config": vq}


def image_ids(given: Mapping) -> dict[int, int]:
    """Code -> id: the names of image ids hold the code's digits as letters, A for 0, and end in Z.

    Raises:
        UserError: if there are not as many as codes, or they do not follow one another.
    """
    names = given.get("vocabulary_map") or {}
    found = {
        int("".join(str(ord(x) - ord("A")) for x in name[len(PREFIX) : -1])): int(number)
        for name, number in names.items()
        if name.startswith(PREFIX)
    }
    count, ids = whole(given)["vq_config"]["num_embeddings"], sorted(found.values())
    if (
        len(found) != count
        or sorted(found) != list(range(count))
        or ids != list(range(ids[0], ids[0] + count))
    ):
        raise UserError(
            f"config.json: vocabulary_map names {len(found)} image ids ({PREFIX}...) where the "
            f"codec has {count} codes; they must be as many, and ids in a row"
        )
    return found


def vocabulary(given: Mapping) -> Vocabulary:
    """Their ids; what they do not name is -1."""
    names, ids = given.get("vocabulary_map") or {}, image_ids(given)
    named: dict[str, Any] = {ours: int(names.get(name, -1)) for ours, name in SENTINELS.items()}
    first = min(ids.values())
    size = whole(given)["vocab_size"]
    kept = {i for name, i in names.items() if name == PLACE or re.fullmatch(r"<reserved\d+>", name)}
    barred = tuple(sorted(kept - set(named.values())))
    return Vocabulary(size, eoss=-1, codes=first, code_count=len(ids), barred=barred, **named)


def config(given: Mapping) -> Config:
    """Their config.json as a configuration of ours.

    Raises:
        UserError: for what is not known here.
    """
    given = whole(given)
    vq = given["vq_config"]
    attends = vq["attn_type"] == "vanilla"  # by any other name there is none
    sides = [vq["resolution"] >> level for level in range(len(vq["channel_multiplier"]))]
    return Config(
        decoder=decoder_config(
            given, EPS, qk_norm=True, head_norms=True, norm="post" if given["swin_norm"] else "pre"
        ),
        codec=CodecConfig(
            image=vq["resolution"],
            channels=vq["base_channels"],
            multipliers=tuple(vq["channel_multiplier"]),
            blocks=vq["num_res_blocks"],
            attend=tuple(s for s in vq["attn_resolutions"] or () if s in sides and attends),
            middle=attends,
            latent=vq["latent_channels"],
            quantiser=QuantiserConfig(
                kind="vq",
                codes=vq["num_embeddings"],
                width=vq["embed_dim"],
                depth=1,
                levels=(),
                commit=0.25,
                decay=0.0,
                unit=False,
                restart=0.0,
                gradient="straight",
                entropy=0.0,
                legacy_beta=True,
            ),
            dtype="float32",
        ),
        z_weight=1e-5,
        text_weight=1.0,
        image_weight=1.0,
    )


def given(c: Config, v: Vocabulary) -> dict:
    """A configuration of ours as their config.json; image ids are named in the order of codes.

    Raises:
        UserError: for one that they have no model for.
    """
    q = c.codec.quantiser
    for wrong, what in (
        (not c.decoder.qk_norm, "model.decoder.qk_norm=False"),
        (c.decoder.head, f"model.decoder.head={c.decoder.head}"),
        (q.kind != "vq" or q.unit, f"model.codec.quantiser.kind={q.kind!r}, unit={q.unit}"),
        (any(c.codec.channels * m % GROUPS for m in c.codec.multipliers), "codec.channels"),
        (c.codec.attend and not c.codec.middle, "model.codec.middle=False with attend"),
    ):
        if wrong:
            raise UserError(f"{what} is not what a Chameleon of theirs has")
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = {f"{PREFIX}{str(n).translate(letters)}Z": v.codes + n for n in range(v.code_count)}
    names |= {name: getattr(v, ours) for ours, name in SENTINELS.items() if getattr(v, ours) >= 0}
    taken = {-1, *names.values()}
    spare = (n for n in (*v.barred, v.eoss, *v.masks, *range(v.size)) if n not in taken)
    names[PLACE] = next(spare)  # no word, if anything else is left
    names |= {f"<reserved{n:05d}>": n for n in v.barred if n != names[PLACE]}
    return given_decoder(c.decoder) | {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "vocab_size": v.size,
        "swin_norm": c.decoder.norm == "post",
        "bos_token_id": v.bos if v.bos >= 0 else None,
        "eos_token_id": v.eos if v.eos >= 0 else None,
        "pad_token_id": v.pad if v.pad >= 0 else None,
        "vocabulary_map": names,
        "vq_config": {
            "resolution": c.codec.image,
            "base_channels": c.codec.channels,
            "channel_multiplier": list(c.codec.multipliers),
            "num_res_blocks": c.codec.blocks,
            "attn_resolutions": list(c.codec.attend) or None,
            "attn_type": "vanilla" if c.codec.middle else "none",
            "latent_channels": c.codec.latent,
            "embed_dim": q.width,
            "num_embeddings": q.codes,
        },
    }


def conv(ours: str, theirs: str, side: int, into: int, out: int) -> list[Row]:
    """A convolution and its bias."""
    return [
        Row(f"{ours}/w", f"{theirs}.weight", (side, side, into, out), kind="conv"),
        Row(f"{ours}/bias", f"{theirs}.bias", (out,)),
    ]


def norm(ours: str, theirs: str, width: int) -> list[Row]:
    """A norm's scale and bias."""
    return [
        Row(f"{ours}_scale", f"{theirs}.weight", (width,)),
        Row(f"{ours}_bias", f"{theirs}.bias", (width,)),
    ]


def residual(ours: str, theirs: str, into: int, out: int) -> list[Row]:
    """A residual block."""
    rows = norm(f"{ours}/first_norm", f"{theirs}.norm1", into)
    rows += conv(f"{ours}/first", f"{theirs}.conv1", 3, into, out)
    rows += norm(f"{ours}/second_norm", f"{theirs}.norm2", out)
    rows += conv(f"{ours}/second", f"{theirs}.conv2", 3, out, out)
    return rows + (
        [] if into == out else conv(f"{ours}/skip", f"{theirs}.nin_shortcut", 1, into, out)
    )


def attention(ours: str, theirs: str, width: int) -> list[Row]:
    """Attention between places."""
    rows = norm(f"{ours}/norm", f"{theirs}.norm", width)
    for name, other in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "proj_out")):
        rows += conv(f"{ours}/{name}", f"{theirs}.{other}", 1, width, width)
    return rows


def middle(ours: str, theirs: str, width: int, attends: bool) -> list[Row]:
    """What lies between the levels of an encoder or decoder."""
    rows = residual(f"{ours}/middle_0", f"{theirs}.mid.block_1", width, width)
    rows += attention(f"{ours}/middle_attend", f"{theirs}.mid.attn_1", width) if attends else []
    return rows + residual(f"{ours}/middle_1", f"{theirs}.mid.block_2", width, width)


def codec_rows(c: CodecConfig, ours: str, theirs: str, order: tuple[int, ...] | None) -> list[Row]:
    """The codec's encoder, its codebook, and what stands before its decoder."""
    at, there = f"{ours}/encoder", f"{theirs}.encoder"
    rows = conv(f"{at}/in", f"{there}.conv_in", 3, 3, c.channels)
    width, side = c.channels, c.image
    for level, multiplier in enumerate(c.multipliers):
        down = f"{there}.down.{level}"
        for block in range(c.blocks):
            name, out = f"level{level}_{block}", c.channels * multiplier
            rows += residual(f"{at}/{name}", f"{down}.block.{block}", width, out)
            width = out
            if side in c.attend:
                rows += attention(f"{at}/attend{level}_{block}", f"{down}.attn.{block}", width)
        if level < len(c.multipliers) - 1:
            rows += conv(f"{at}/down{level}", f"{down}.downsample.conv", 3, width, width)
            side //= 2
    rows += middle(at, there, width, c.middle)
    rows += norm(f"{at}/out_norm", f"{there}.norm_out", width)
    rows += conv(f"{at}/out", f"{there}.conv_out", 3, width, c.latent)
    q = c.quantiser
    rows += conv(f"{at}/to_codes", f"{theirs}.quant_conv", 1, c.latent, q.width)
    rows += conv(f"{ours}/decoder/from_codes", f"{theirs}.post_quant_conv", 1, q.width, c.latent)
    shape, was = (1, q.codes, q.width), (q.codes, q.width)
    name = f"{theirs}.quantize.embedding.weight"
    return [*rows, Row(f"{ours}/book/codes", name, shape, was=was, order=order)]


def more(c: Config, shapes: Mapping[str, tuple[int, ...]]) -> list[Row]:
    """Weights that a source may have beside: the codec's decoder, in the release of Facebook's."""
    theirs = "model.vqmodel.decoder"
    if f"{theirs}.conv_in.weight" not in shapes:
        return []
    codec, at = c.codec, "codec/decoder"
    width, side = codec.channels * codec.multipliers[-1], codec.side
    rows = conv(f"{at}/in", f"{theirs}.conv_in", 3, codec.latent, width)
    rows += middle(at, theirs, width, codec.middle)
    for level in reversed(range(len(codec.multipliers))):
        up, out = f"{theirs}.up.{level}", codec.channels * codec.multipliers[level]
        for block in range(codec.blocks + 1):
            rows += residual(f"{at}/level{level}_{block}", f"{up}.block.{block}", width, out)
            width = out
            if side in codec.attend:
                rows += attention(f"{at}/attend{level}_{block}", f"{up}.attn.{block}", width)
        if level:
            rows += conv(f"{at}/up{level}", f"{up}.upsample.conv", 3, width, width)
            side *= 2
    rows += norm(f"{at}/out_norm", f"{theirs}.norm_out", width)
    return rows + conv("codec/last", f"{theirs}.conv_out", 3, width, 3)


def rows(c: Config, v: Vocabulary, source: Mapping | None = None) -> list[Row]:
    """All weights that theirs has; source: the config.json they came with, if from there."""
    order = None
    if source is not None:
        codes = {number: code for code, number in image_ids(source).items()}
        order = tuple(codes[v.codes + n] for n in range(v.code_count))
    d = c.decoder.width
    return [
        Row("embed/table", "model.embed_tokens.weight", (v.size, d)),
        Row("head/w", "lm_head.weight", (d, v.size), kind="matrix"),
        *decoder_rows(c.decoder, "model"),
        *codec_rows(c.codec, "codec", "model.vqmodel", order),
    ]


def extra(c: Config) -> dict[str, Any]:
    """Weights of ours that theirs lack, by path: the codec's decoder, as it is before training."""
    layers = autoencoder.modules(c.codec, one_device())
    wanted = {name: layers[name] for name in ("decoder", "last", "book")}
    start = jax.jit(lambda key: nn.meta.unbox(autoencoder.boxed_init(key, c.codec, wanted)))
    flat = flatten_dict(start(jax.random.key(0)), sep="/")
    known = ("decoder/from_codes", "book/codes")
    return {f"codec/{n}": x for n, x in flat.items() if not n.startswith(known)}


def place(c: Config) -> dict[str, Any]:
    """Sizes of the rows that such a model reads, three pictures with words, and its resizing."""
    return {
        "image": c.codec.image, "patch": c.codec.factor, "length": min(4 * c.tokens + 64, 4096),
        "resize": f"shortest={c.codec.image} kernel=lanczos crop={c.codec.image}x{c.codec.image}",
    }  # fmt: skip


def outputs(parts: Parts, params, inputs: Mapping[str, np.ndarray], source: Mapping) -> dict:
    """What a model makes of inputs that are named as theirs, under their names of outputs.

    input_ids [b, l] with <image> where codes stand (attention_mask, labels [b, l]; pixel_values
    [m, 3, h, w] f32 in [-1, 1], in the order of their places). Of pictures alone, codes.
    """
    c, v = parts.config, parts.vocabulary
    found: dict = {}
    if "pixel_values" in inputs:
        signal = jnp.moveaxis(jnp.asarray(inputs["pixel_values"], jnp.float32), 1, -1)
        z = jax.jit(parts.codec.read)(params["codec"], signal)
        keys = jax.random.split(jax.random.key(0), len(z))
        codes = parts.codec.bottleneck(params["codec"], z, jnp.ones(len(z)), keys).codes
        ids = np.asarray(autoencoder.to_ids(c.codec, codes)) + v.codes
        theirs = {number: code for code, number in image_ids(source).items()}
        found["vq_indices"] = np.vectorize(theirs.__getitem__)(ids)
    if "input_ids" not in inputs:
        return found
    tokens = np.array(inputs["input_ids"], np.int32)
    if "pixel_values" in inputs:
        at = tokens == (source.get("vocabulary_map") or {}).get(PLACE)
        if at.sum() != ids.size:
            raise UserError(
                f"inputs.npz has {at.sum()} places for the {ids.size} codes of its "
                f"{len(ids)} pictures"
            )
        tokens[at] = ids.reshape(-1)
    mask = jnp.tril(jnp.ones((1, *(tokens.shape[1],) * 2), bool))
    if "attention_mask" in inputs:
        mask &= jnp.asarray(inputs["attention_mask"])[:, None] > 0
    x = parts.embed(params, jnp.asarray(tokens))
    hidden = hidden_states(c.decoder, params, x, mask)
    found |= {f"hidden_{n}": x for n, x in enumerate(hidden)}
    logits = hidden[-1] @ parts.head(params)
    index = jnp.arange(v.size)[None, None]
    banned = (index >= v.codes) & (index < v.codes + v.code_count)
    lowest = jnp.finfo(jnp.float32).min
    found |= {"logits_raw": logits, "logits": jnp.where(banned, lowest, logits)}
    if "labels" in inputs:
        labels = jnp.asarray(inputs["labels"], jnp.int32)
        found["loss"] = next_token_loss(found["logits"], labels)
    return found
