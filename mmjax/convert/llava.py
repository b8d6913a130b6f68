"""LLaVA of Hugging Face's `transformers`: `LlavaForConditionalGeneration`.

Its tensors have been spelled in three ways: as published with `vision_tower.vision_model.`, as the
library writes them now without that level, and as it keeps them in memory, with `model.` in front.
All are read, the published one is written, and the library loads any.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Vocabulary
from mmjax.convert import clip, llama
from mmjax.convert.clip import encoder_config, given_tower, sides, vision_rows
from mmjax.convert.decoder import ACTIVATIONS, product
from mmjax.convert.rows import Row
from mmjax.error import UserError
from mmjax.layers.vision import VisionConfig
from mmjax.models.language import Parts
from mmjax.models.llava import Config, features

FAMILY = "llava"
IGNORED = (*llama.IGNORED, "embeddings.position_ids")
RENAMED = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(multi_modal_projector|vision_tower)\.", r"\1."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
)
# Half of what a config.json may leave out; a vision_config that is there has CLIP's own defaults.
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "num_hidden_layers": 24,
    "num_attention_heads": 16, "intermediate_size": 4096, "image_size": 336, "patch_size": 14,
}  # fmt: skip
DEFAULTS = {
    "image_token_index": 32000, "vision_feature_layer": -2, "projector_hidden_act": "gelu",
    "vision_feature_select_strategy": "default", "multimodal_projector_bias": True,
    "vision_config": VISION, "text_config": {},
}  # fmt: skip
SELECT = {"default": "patches", "full": "all"}
TOWERS = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}


def whole(given: Mapping) -> dict:
    """Their config.json with every default written out.

    Raises:
        UserError: for a tower, language model or projector that is not known here.
    """
    found = DEFAULTS | {k: v for k, v in given.items() if v is not None}
    found["image_token_index"] = found.get("image_token_id", found["image_token_index"])
    kind = found["vision_config"].get("model_type", "clip_vision_model")
    text = found["text_config"].get("model_type", "llama")
    for wrong, what in (
        (kind not in TOWERS, f"vision_config.model_type={kind!r}"),
        (text != "llama", f"text_config.model_type={text!r}"),
        (
            found["vision_feature_select_strategy"] not in SELECT,
            f"vision_feature_select_strategy={found['vision_feature_select_strategy']!r}",
        ),
        (
            found["projector_hidden_act"] not in ACTIVATIONS,
            f"projector_hidden_act={found['projector_hidden_act']!r}",
        ),
    ):
        if wrong:
            raise UserError(f"config.json has {what}, which the LLaVA here does not have")
    base = clip.DEFAULTS[TOWERS[kind]]["vision_config"]
    vision = base | dict(found["vision_config"]) | {"model_type": kind}
    return found | {"vision_config": vision, "text_config": llama.DEFAULTS | found["text_config"]}


def vocabulary(given: Mapping) -> Vocabulary:
    """Their ids; a picture has no id before and behind it."""
    return llama.vocabulary(whole(given)["text_config"])


def config(given: Mapping) -> Config:
    """Their config.json as a configuration of ours.

    Raises:
        UserError: for what is not known here.
    """
    given = whole(given)
    vision, layers = given["vision_config"], given["vision_feature_layer"]
    model = clip.config({"model_type": TOWERS[vision["model_type"]]})
    tower = model.vision
    select = SELECT[given["vision_feature_select_strategy"]]
    if select == "patches" and tower.pool != "token":
        select = "rest"  # for want of a class token theirs leaves the first patch out
    return Config(
        decoder=llama.decoder(given["text_config"]),
        vision=VisionConfig(
            encoder=encoder_config(vision, "float32"),
            **sides(vision),
            pool=tower.pool if vision.get("vision_use_head", True) else "mean",  # it is not read
            positions=tower.positions,
            patch_bias=tower.patch_bias,
            pre_norm=tower.pre_norm,
        ),
        layers=tuple(layers) if isinstance(layers, list | tuple) else (layers,),
        select=select,
        activation=ACTIVATIONS[given["projector_hidden_act"]],
        z_weight=0.0,
        mean=model.mean,
        std=model.std,
        train=("projector", "embed", "decoder", "head"),
        bias=given["multimodal_projector_bias"],
    )


def given(c: Config, v: Vocabulary) -> dict:
    """A configuration of ours as their config.json.

    The id of a picture's place, which we have no use for, is the highest.

    Raises:
        UserError: for one that they have no model for.
    """
    kind = "clip" if c.vision.pool == "token" else "siglip"
    own = clip.config({"model_type": kind}).vision
    for name in ("pool", "positions", "patch_bias", "pre_norm"):
        x, wanted = getattr(c.vision, name), getattr(own, name)
        if x != wanted and (name, x) != ("pool", "mean"):
            raise UserError(f"model.vision.{name}={x!r} is not what a LLaVA of theirs has")
    act = {ours: name for name, ours in ACTIVATIONS.items()}[c.activation]
    layers, left = list(c.layers), c.vision.left_out(c.select)
    seen = {"image_size": c.vision.image, "patch_size": c.vision.patch}
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": v.size - 1,
        "image_seq_length": c.tokens,
        "vision_feature_layer": layers[0] if len(layers) == 1 else layers,
        "vision_feature_select_strategy": "default" if left else "full",
        "projector_hidden_act": act,
        "multimodal_projector_bias": c.bias,
        "tie_word_embeddings": False,
        "vision_config": given_tower(c.vision.encoder)
        | seen
        | {"model_type": f"{kind}_vision_model"}
        | ({"vision_use_head": False} if c.vision.pool == "mean" else {}),
        "text_config": llama.given_language(c.decoder, v),
    }


def rows(c: Config, v: Vocabulary, source: Mapping | None = None) -> list[Row]:
    """All weights of a model."""
    del source
    d, wide = c.decoder.width, c.vision.encoder.width * len(c.layers)
    at = "multi_modal_projector"
    return [
        *llama.language_rows(c.decoder, v, "language_model."),
        *vision_rows(c.vision, "vision", "vision_tower.vision_model"),
        *product("projector/up", f"{at}.linear_1", (wide, d), 0, c.bias),
        *product("projector/down", f"{at}.linear_2", (d, d), 0, c.bias),
    ]


def extra(c: Config) -> dict[str, Any]:
    """Weights of ours that theirs lack: none."""
    del c
    return {}


def place(c: Config) -> dict[str, Any]:
    """Sizes of the rows that such a model reads, pictures and words, and its tower's resizing."""
    more = c.tokens - c.vision.side**2
    cut = c.vision.pool == "token"
    return {
        "image": c.image, "patch": c.patch, "length": 2 * c.tokens + 512, "extra": more,
        "crop": c.vision.crop,
        "resize": clip.CROP.format(c.image) if cut else "pil_bicubic_stretch",
    }  # fmt: skip


def outputs(parts: Parts, params, inputs: Mapping[str, np.ndarray], source: Mapping) -> dict:
    """What a model makes of inputs that are named as theirs, under their names of outputs.

    input_ids [b, l] with their image token where features stand (attention_mask, labels [b, l];
    pixel_values [m, 3, h, w] f32, in the order of their places).

    Raises:
        UserError: where there are more places than features, or fewer.
    """
    c = parts.config
    found: dict[str, Any] = {}
    tokens = jnp.asarray(inputs["input_ids"], jnp.int32)
    at = tokens == whole(source)["image_token_index"]
    x = parts.embed(params, tokens)
    seen = jnp.zeros((0, x.shape[-1]))
    if "pixel_values" in inputs:
        signal = jnp.moveaxis(jnp.asarray(inputs["pixel_values"], jnp.float32), 1, -1)
        assert parts.vision is not None
        _, hidden = jax.jit(parts.vision)(params, signal)
        found |= {f"vision_hidden_{n}": y for n, y in enumerate(hidden)}
        assert parts.project is not None
        found["image_features"] = parts.project(params, features(c, hidden))
        seen = found["image_features"].reshape(-1, x.shape[-1])
    if int(at.sum()) != len(seen):
        raise UserError(
            f"inputs.npz has {int(at.sum())} places for the {len(seen)} features of its pictures"
        )
    if len(seen):
        number = jnp.cumsum(at.reshape(-1)).reshape(at.shape) - 1
        x = jnp.where(at[..., None], seen[jnp.clip(number, 0, len(seen) - 1)], x)
    return found | llama.written(parts, params, x, inputs)
