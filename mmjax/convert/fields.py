"""The fields of a config.json of theirs, held against what they may be, before a model is made.

A field that is not read here is not looked at, as they ignore it. What one may leave out may be
null where theirs takes null for the same.
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.error import UserError

MOST = 2**31 - 1
LAYERS = 4096  # more than any model has; each becomes names of tensors

Rule = tuple[Callable[[Any], bool], str]  # a test, and what it wants in words


def whole(x, least: int = 1, most: int = MOST) -> bool:
    """Whether a value is a whole number, in JSON no bool and no 3.0."""
    return type(x) is int and least <= x <= most


def number(x) -> bool:
    """Whether a value is a number that f32 holds."""
    return type(x) in (int, float) and abs(x) < 1e30  # of NaN nothing is true


def many(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A test of each of a list, which has some."""
    return lambda x: isinstance(x, list) and bool(x) and all(map(test, x))


def maybe(rule: Rule) -> Rule:
    """The same, or null."""
    test, said = rule
    return lambda x: x is None or test(x), f"{said}, or null"


COUNT: Rule = whole, f"a whole number from 1 to {MOST:,}"
DEPTH: Rule = lambda x: whole(x, 1, LAYERS), f"a whole number from 1 to {LAYERS:,}"
NONE_OR_MORE: Rule = lambda x: whole(x, 0), f"a whole number from 0 to {MOST:,}"
POSITIVE: Rule = lambda x: number(x) and x > 0, "a number above 0"
EPS: Rule = lambda x: number(x) and 0 <= x < 1, "a number from 0 to below 1"
FLAG: Rule = lambda x: isinstance(x, bool), "true or false"
WORD: Rule = lambda x: isinstance(x, str), "a string"
GROUP: Rule = maybe((lambda x: isinstance(x, dict), "a group of fields"))
SIDE: Rule = lambda x: whole(x) or many(whole)(x), "a whole number above 0, or a list of such"
COUNTS: Rule = lambda x: many(whole)(x) and len(x) <= 16, "a list of 1 to 16 whole numbers above 0"
LAYER: Rule = (
    lambda x: whole(x, -LAYERS, LAYERS) or many(lambda y: whole(y, -LAYERS, LAYERS))(x),
    "the number of a layer, or a list of such",
)
IDS: Rule = (
    lambda x: x is None or whole(x, -1) or many(lambda y: whole(y, 0))(x),
    "a token's id, a list of such, or null",
)
NAMES: Rule = maybe((
    lambda x: isinstance(x, dict) and all(whole(n, 0) for n in x.values()),
    "a group of tokens with their ids",
))  # fmt: skip

BLOCKS = {
    "hidden_size": COUNT, "num_hidden_layers": DEPTH, "num_attention_heads": COUNT,
    "intermediate_size": COUNT, "hidden_act": WORD,
}  # fmt: skip
TOKENS = {
    "vocab_size": COUNT, "bos_token_id": IDS, "eos_token_id": IDS, "pad_token_id": IDS,
    "max_position_embeddings": maybe(COUNT), "tie_word_embeddings": maybe(FLAG),
}  # fmt: skip
ROPE = {
    "type": WORD, "rope_type": WORD, "rope_theta": maybe(POSITIVE), "factor": POSITIVE,
    "low_freq_factor": POSITIVE, "high_freq_factor": POSITIVE,
    "original_max_position_embeddings": COUNT,
}  # fmt: skip
DECODER = BLOCKS | TOKENS | {
    "num_key_value_heads": maybe(COUNT), "head_dim": maybe(COUNT), "rms_norm_eps": EPS,
    "rope_theta": maybe(POSITIVE), "rope_scaling": GROUP, "rope_parameters": GROUP,
    "attention_bias": maybe(FLAG), "mlp_bias": maybe(FLAG), "model_type": WORD,
    "original_max_position_embeddings": maybe(COUNT),
}  # fmt: skip
TOWER = BLOCKS | {"layer_norm_eps": EPS, "model_type": WORD}
VISION = TOWER | {
    "image_size": SIDE, "patch_size": SIDE, "vision_use_head": FLAG, "embed_dim": COUNT,
}  # fmt: skip
ROPES = {"rope_scaling": ROPE, "rope_parameters": ROPE}
TWO = {"projection_dim": COUNT} | dict.fromkeys(
    ("vision_config", "text_config", "vision_config_dict", "text_config_dict"), GROUP
)
TOWERS = {
    "": TWO, "vision_config": VISION, "vision_config_dict": VISION,
    "text_config": TOWER | TOKENS, "text_config_dict": TOWER | TOKENS,
}  # fmt: skip
# model_type -> "" or the name of a group, dotted -> field -> what it may be.
FIELDS: dict[str, dict[str, dict[str, Rule]]] = {
    "clip": TOWERS,
    "siglip": TOWERS,
    "llama": {"": DECODER, **ROPES},
    "llava": {
        "": {
            "image_token_index": maybe(NONE_OR_MORE), "image_token_id": maybe(NONE_OR_MORE),
            "vision_feature_layer": maybe(LAYER), "projector_hidden_act": maybe(WORD),
            "vision_feature_select_strategy": maybe(WORD), "vision_config": GROUP,
            "multimodal_projector_bias": maybe(FLAG), "text_config": GROUP,
            "tie_word_embeddings": maybe(FLAG),
        },
        "vision_config": VISION, "text_config": DECODER,
        **{f"text_config.{name}": rules for name, rules in ROPES.items()},
    },
    "idefics": {
        "": {name: maybe(rule) for name, rule in DECODER.items()} | {
            "additional_vocab_size": maybe(NONE_OR_MORE), "alpha_type": maybe(WORD),
            "cross_layer_interval": maybe(COUNT), "qk_layer_norms": maybe(FLAG),
            "use_resampler": maybe(FLAG), "vision_config": GROUP, "perceiver_config": GROUP,
        },
        "vision_config": VISION, **ROPES,
        "perceiver_config": {
            "resampler_n_latents": COUNT, "resampler_depth": DEPTH, "resampler_n_heads": COUNT,
            "resampler_head_dim": COUNT, "qk_layer_norms_perceiver": FLAG, "use_resampler": FLAG,
        },
    },
    "chameleon": {
        "": DECODER | {"swin_norm": FLAG, "vocabulary_map": NAMES, "vq_config": GROUP}, **ROPES,
        "vq_config": {
            "resolution": COUNT, "base_channels": COUNT, "channel_multiplier": COUNTS,
            "num_res_blocks": DEPTH, "latent_channels": COUNT, "embed_dim": COUNT,
            "num_embeddings": COUNT, "double_latent": FLAG, "attn_type": WORD,
            "attn_resolutions": maybe((
                lambda x: x == [] or many(whole)(x), "a list of whole numbers above 0",
            )),
        },
    },
}  # fmt: skip


def check(given: Mapping, where: str) -> None:
    """Holds the fields of a config.json by themselves against what they may be.

    where: its path, for messages.

    Raises:
        UserError: naming the first that may not be so.
    """
    for place, rules in FIELDS[given["model_type"]].items():
        group: Any = given
        for name in filter(None, place.split(".")):
            group = group.get(name) or {}
        for name, (test, words) in rules.items():
            if name in group and not test(group[name]):
                told = f"{place}.{name}" if place else name
                raise UserError(
                    f"{where}: {told}={reprlib.repr(group[name])} must be {words}; correct it or "
                    f"fetch it anew"
                )


def check_sizes(group: Mapping, where: str, place: str = "") -> None:
    """Holds sizes of a decoder or a tower, defaults written out, against each other.

    Raises:
        UserError: for heads that do not divide.
    """
    at = f"{place}." if place else ""
    width, heads = group["hidden_size"], group["num_attention_heads"]
    own, groups = group.get("head_dim"), group.get("num_key_value_heads") or heads
    for wrong, what in (
        (not own and width % heads, f"hidden_size={width} is no multiple of {at}num_attention_"
         f"heads={heads}"),
        (heads % groups, f"num_attention_heads={heads} is no multiple of {at}num_key_value_"
         f"heads={groups}"),
    ):  # fmt: skip
        if wrong:
            raise UserError(f"{where}: {at}{what}; correct it or fetch it anew")
