"""Chameleon as Facebook released it: `models/7b` or `models/30b` beside `tokenizer`.

The decoder lies in one file or in shards for as many devices, each with its own heads and its own
norms of queries and keys. RoPE turns neighbours there, (0, 1), (2, 3), ..., and halves here, so
what makes queries and keys is sorted: even places first. The image tokenizer has its decoder, which
Hugging Face's does not: what is imported draws.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from mmjax.convert import pickled
from mmjax.convert.hub import read_json, stamps
from mmjax.convert.pickled import Stored
from mmjax.data.store import TOKENIZER
from mmjax.error import UserError

PARAMS, MORE = "params.json", "consolidate_params.json"
TOKENS, CODEC, CODEC_SHAPE = "text_tokenizer.json", "vqgan.ckpt", "vqgan.yaml"
RESIZE = "shortest_rounded={0} kernel=lanczos crop={0}x{0}"  # how it prepares images of that side
# Stands for an image where the text is written; a name of Hugging Face's for a reserved id.
PLACE, RESERVED = "<image>", "<reserved08707>"

# Hugging Face's name of a layer's tensor -> (name there, axis that is split over shards or None,
# what else: "turn" pairs of rows, or "head" a norm of one head).
LAYER = {
    "self_attn.q_proj.weight": ("attention.wq.weight", 0, "turn"),
    "self_attn.k_proj.weight": ("attention.wk.weight", 0, "turn"),
    "self_attn.v_proj.weight": ("attention.wv.weight", 0, ""),
    "self_attn.o_proj.weight": ("attention.wo.weight", 1, ""),
    "self_attn.q_norm.weight": ("attention.q_normalization.weight", None, "head"),
    "self_attn.q_norm.bias": ("attention.q_normalization.bias", None, "head"),
    "self_attn.k_norm.weight": ("attention.k_normalization.weight", None, "head"),
    "self_attn.k_norm.bias": ("attention.k_normalization.bias", None, "head"),
    "mlp.gate_proj.weight": ("feed_forward.w1.weight", 0, ""),
    "mlp.down_proj.weight": ("feed_forward.w2.weight", 1, ""),
    "mlp.up_proj.weight": ("feed_forward.w3.weight", 0, ""),
    "input_layernorm.weight": ("attention_norm.weight", None, ""),
    "post_attention_layernorm.weight": ("ffn_norm.weight", None, ""),
}
ENDS = {
    "model.embed_tokens.weight": ("tok_embeddings.weight", 1, ""),
    "model.norm.weight": ("norm.weight", None, ""),
    "lm_head.weight": ("output.weight", 0, ""),
}


class Held(NamedTuple):
    """A tensor in its files: the parts, the axis along which they lie, and what else; see LAYER."""

    parts: tuple[tuple[Path, Stored], ...]
    axis: int | None
    kind: str
    heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        one = self.parts[0][1].shape
        if self.kind == "head":
            return self.heads, *one
        if self.axis is None:
            return one
        side = sum(part.shape[self.axis] for _, part in self.parts)
        return (*one[: self.axis], side, *one[self.axis + 1 :])

    def read(self) -> np.ndarray:
        """The whole, as Hugging Face's has it."""
        some = [pickled.numbers(file, part) for file, part in self.parts]
        if self.kind == "head":  # one for the heads of a shard, each its own here
            turned = [halves(x[:, None], 1)[:, 0] for x in some]
            return np.repeat(np.stack(turned), self.heads // len(turned), axis=0)
        if self.axis is None:  # each shard has the same
            return np.mean(some, axis=0)
        x = np.concatenate(some, axis=self.axis)
        return halves(x, self.heads) if self.kind == "turn" else x


def halves(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows [h k, d] with RoPE's pairs side by side -> the same, pairs half a head apart."""
    return x.reshape(heads, -1, 2, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


class Original(NamedTuple):
    """What `convert.hub.Hub` is for Hugging Face's directories, under the same names.

    Attributes:
        path: of the decoder's files. config: a config.json of Hugging Face's that says the same.
        tensors: Hugging Face's name -> where it lies. shapes: the same -> its shape.
        sources: all files. beside: further files of the workdir, name -> content.
    """

    path: Path
    config: dict
    tensors: dict[str, Held]
    shapes: dict[str, tuple[int, ...]]
    sources: tuple[Path, ...]
    beside: dict[str, bytes]

    def tensor(self, name: str) -> np.ndarray:
        """One tensor, as f32."""
        return self.tensors[name].read()

    def renamed(self, rules: Iterable[tuple[str, str]]) -> "Original":
        """The same: its names are known."""
        assert not tuple(rules)
        return self

    @property
    def fingerprint(self) -> dict:
        """What tells that the files are still the same."""
        return stamps(self.sources)


def there(path: Path) -> bool:
    """Whether a directory is of this layout, or holds one that is."""
    return (path / PARAMS).is_file() or any(path.glob(f"models/*/{PARAMS}"))


def read(path: Path) -> Original:
    """Opens `models/7b`, or the directory that has `models` and `tokenizer`, with one model.

    Raises:
        UserError: for files that are missing or damaged, or several models.
    """
    if not (path / PARAMS).is_file():
        found = sorted(p.parent for p in path.glob(f"models/*/{PARAMS}"))
        if len(found) > 1:
            raise UserError(
                f"{path / 'models'} has {', '.join(p.name for p in found)}; give one: "
                f"--src={found[0]}"
            )
        path = found[0]
    tokenizer = path.parent.parent / "tokenizer"
    params = read_json(path / PARAMS)
    params |= params.get("model", {})
    params |= read_json(path / MORE) if (path / MORE).is_file() else {}
    if not params.get("qk_normalization", True):
        raise UserError(
            f"{path / PARAMS}: qk_normalization is off, which no Chameleon released has"
        )
    files = sorted(path.glob("consolidated*.pth"))
    if not files:
        raise UserError(f"{path} has no consolidated*.pth; fetch them")
    shards = [pickled.tensors(file) for file in files]
    wanted = ("dim", "n_layers", "n_heads", "norm_eps")
    if absent := [name for name in wanted if name not in params]:
        raise UserError(f"{path / PARAMS} lacks {', '.join(absent)}; fetch it anew")
    heads = params["n_heads"], params.get("n_kv_heads") or params["n_heads"]
    tensors = decoder_of(path, files, shards, heads)
    codec = tokenizer / CODEC
    for name, stored in pickled.tensors(codec).items():
        if not name.startswith("loss."):
            tensors[f"model.vqmodel.{name}"] = Held(((codec, stored),), None, "", 1)
    text = read_json(tokenizer / TOKENS)
    names = vocabulary_map(tokenizer / TOKENS, text)
    shapes = {name: held.shape for name, held in tensors.items()}
    config = config_of(params, shapes, names, tokenizer / CODEC_SHAPE)
    beside = {TOKENIZER: json.dumps(text).encode()}
    sources = (*files, codec, path / PARAMS)
    return Original(path, config, tensors, shapes, sources, beside)


def decoder_of(path: Path, files, shards, heads: tuple[int, int]) -> dict[str, Held]:
    """The decoder's tensors under Hugging Face's names; unknown ones keep theirs."""
    if len({len(shard) for shard in shards}) > 1 or any(set(s) != set(shards[0]) for s in shards):
        raise UserError(f"{path}: its {len(files)} files hold different tensors; fetch them anew")
    names = {old: (new, axis, kind) for new, (old, axis, kind) in ENDS.items()}
    layers = {old: (new, axis, kind) for new, (old, axis, kind) in LAYER.items()}
    tensors = {}
    for old in shards[0]:
        if old == "rope.freqs":  # follows from the configuration
            continue
        new, axis, kind = names.get(old, (old, None, ""))
        if old.startswith("layers."):
            _, number, rest = old.split(".", 2)
            if rest in layers:
                new, axis, kind = layers[rest]
                new = f"model.layers.{number}.{new}"
        mine = heads[int(".k_" in new)]
        parts = tuple((file, shard[old]) for file, shard in zip(files, shards, strict=True))
        tensors[new] = Held(parts, axis, kind, mine)
    return tensors


def vocabulary_map(path: Path, text: dict) -> dict[str, int]:
    """Names and ids of all tokens; `text` is changed: a reserved one stands for images.

    Raises:
        UserError: if that one is not there.
    """
    vocabulary, added = text.get("model", {}).get("vocab", {}), text.get("added_tokens", [])
    if RESERVED not in vocabulary:
        raise UserError(
            f"{path} has no {RESERVED}, the token that stands for images; fetch it anew"
        )
    vocabulary[PLACE] = vocabulary.pop(RESERVED)
    for token in added:
        token["content"] = PLACE if token["content"] == RESERVED else token["content"]
    return vocabulary | {token["content"]: token["id"] for token in added}


def config_of(params: Mapping, shapes: Mapping, names: dict[str, int], codec: Path) -> dict:
    """A config.json of Hugging Face's.

    Raises:
        UserError: for a tokenizer's configuration that is missing or damaged.
    """
    try:
        vq = yaml.safe_load(codec.read_text())["model"]["params"]
        vq = vq | vq["ddconfig"]
        vq = {
            "resolution": vq["resolution"],
            "base_channels": vq["ch"],
            "channel_multiplier": list(vq["ch_mult"]),
            "num_res_blocks": vq["num_res_blocks"],
            "attn_resolutions": list(vq["attn_resolutions"]) or None,
            "latent_channels": vq["z_channels"],
            "embed_dim": vq["embed_dim"],
            "num_embeddings": vq["n_embed"],
            "double_latent": vq.get("double_z", True),
        }
    except FileNotFoundError as error:
        raise UserError(f"{codec} does not exist; fetch it") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{codec} does not describe a codec: {error!r}; fetch it anew") from error
    theta = float(params.get("rope_theta", 10000.0))
    first = "model.layers.0.mlp.gate_proj.weight"
    for name in (first, "lm_head.weight"):
        if name not in shapes:
            raise UserError(f"{codec.parent.parent}: its weights lack {name}; fetch them anew")
    return {
        "architectures": ["ChameleonForConditionalGeneration"],
        "model_type": "chameleon",
        "hidden_size": params["dim"],
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "intermediate_size": shapes[first][0],
        "vocab_size": shapes["lm_head.weight"][0],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "max_position_embeddings": 16384 if theta > 10000.0 else 4096,
        "swin_norm": bool(params.get("swin_norm", False)),
        "tie_word_embeddings": False,
        "bos_token_id": names.get("<s>"),
        "eos_token_id": names.get("</s>"),
        "pad_token_id": names.get("<pad>"),
        "vocabulary_map": names,
        "vq_config": vq,
    }
