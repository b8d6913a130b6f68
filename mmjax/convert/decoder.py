"""The decoder of Llama and its kin: its shape, its weights, what each layer returns."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax.convert.fields import check_sizes
from mmjax.convert.rows import Row
from mmjax.error import UserError
from mmjax.layers.norm import rms_norm
from mmjax.layers.position import rope_angles
from mmjax.mesh import Rules, make_mesh
from mmjax.models.decoder import BIASES, Block, DecoderConfig

# hidden_act -> `layers.encoder.ACTIVATIONS`; of several of theirs the last goes out.
ACTIVATIONS = {
    "quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_fast": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "swish": "silu", "silu": "silu",
}  # fmt: skip
# rope_type -> the fields that say how its frequencies are scaled; see `layers.position.scaled`.
ROPE = {
    "dynamic": (),  # as the default, for texts no longer than those of its training
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip


def one_device() -> Rules:
    """All of a model on the first device."""
    return Rules(make_mesh(1, 1, 1, jax.devices()[:1]))


def decoder_config(given: Mapping, eps: float, **changes) -> DecoderConfig:
    """Their config.json as a decoder; `changes` are fields of ours.

    eps: under the root of norms, where config.json does not say.

    Raises:
        UserError: for what the decoder cannot do.
    """
    rope = given.get("rope_scaling") or given.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    heads, width = given["num_attention_heads"], given["hidden_size"]
    check_sizes(given, "config.json")
    act = given.get("hidden_act", "silu")
    for wrong, what in (
        (kind not in ROPE, f"rope_type={kind!r}"),
        (act not in ACTIVATIONS, f"hidden_act={act!r}"),
    ):
        if wrong:
            raise UserError(f"config.json has {what}, which the decoder here does not have")
    if kind == "llama3":  # where it is left out, the length of rows says it
        most = given.get("original_max_position_embeddings", given.get("max_position_embeddings"))
        rope = ({} if most is None else {"original_max_position_embeddings": most}) | dict(rope)
    if absent := [name for name in ROPE[kind] if name not in rope]:
        raise UserError(f"config.json: rope_type={kind!r} lacks {', '.join(absent)}")
    head = given.get("head_dim") or width // heads
    whole = {
        "width": width,
        "depth": given["num_hidden_layers"],
        "heads": heads,
        "kv_heads": given.get("num_key_value_heads") or heads,
        "mlp": given["intermediate_size"],
        "qk_norm": False,
        "norm": "pre",
        "dropout": 0.0,
        "theta": float(rope.get("rope_theta") or given.get("rope_theta") or 10000.0),
        "remat": False,
        "unroll": 1,
        "dtype": "float32",
        "towers": 1,
        "untie": (),
        "untied_layers": (),
        "grouped": False,
        "eps": given.get("rms_norm_eps", eps),
        "rope_scaling": tuple(float(rope[name]) for name in ROPE[kind]),
        "head": 0 if head * heads == width else head,
        "biases": tuple(name for name in BIASES if given.get(f"{name}_bias")),
        "activation": ACTIVATIONS[act],
    }
    return DecoderConfig(**whole | changes)


def given_decoder(c: DecoderConfig) -> dict:
    """A decoder as their config.json has it.

    Raises:
        UserError: for one with weights of each modality, which they have no model for.
    """
    if c.towers > 1:
        raise UserError(f"model.decoder.untie={c.untie}: they have no model with weights so untied")
    kind = {len(fields): name for name, fields in ROPE.items()}[len(c.rope_scaling)]
    scaling = dict(zip(ROPE[kind], c.rope_scaling, strict=True))
    if kind == "llama3":
        scaling["original_max_position_embeddings"] = int(c.rope_scaling[3])
    return {
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "intermediate_size": c.mlp,
        "hidden_act": {ours: name for name, ours in ACTIVATIONS.items()}[c.activation],
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "rope_parameters": {"rope_theta": c.theta, "rope_type": kind} | scaling,
        "tie_word_embeddings": False,
        "attention_bias": "attention" in c.biases,
        "mlp_bias": "mlp" in c.biases,
    } | ({"head_dim": c.head} if c.head else {})


def decoder_rows(c: DecoderConfig, theirs: str) -> list[Row]:
    """All of a decoder's weights; RoPE turns halves in both, so q and k stand as they are."""
    d, k, n = c.width, c.head_dim, c.depth
    at, there = "decoder/blocks", f"{theirs}.layers.{{}}"
    rows = [
        Row(f"{at}/attention_norm", f"{there}.input_layernorm.weight", (d,), n),
        Row(f"{at}/mlp_norm", f"{there}.post_attention_layernorm.weight", (d,), n),
        Row("decoder/final_norm", f"{theirs}.norm.weight", (d,)),
    ]
    for name, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
        own, other = f"{at}/attention/{name}", f"{there}.self_attn.{name}_proj"
        rows += product(own, other, (d, heads, k), n, "attention" in c.biases)
        if c.qk_norm and name != "v":
            for end, kind in (("scale", "weight"), ("bias", "bias")):
                named = f"{there}.self_attn.{name}_norm.{kind}"
                shape = (heads if c.head_norms else 1, k)  # theirs has one for each head
                rows.append(Row(f"{own}_norm_{end}", named, shape, n, was=(heads, k)))
    own, other = f"{at}/attention/o", f"{there}.self_attn.o_proj"
    rows += product(own, other, (c.heads, k, d), n, "attention" in c.biases, 2)
    for name, shape in (("gate", (d, c.mlp)), ("up", (d, c.mlp)), ("down", (c.mlp, d))):
        own, other = f"{at}/mlp/{name}", f"{there}.mlp.{name}_proj"
        rows += product(own, other, shape, n, "mlp" in c.biases)
    return rows


def product(ours: str, theirs: str, shape, layers: int, bias: bool, into: int = 1) -> list[Row]:
    """A matrix, and its bias if it has one."""
    size = math.prod(shape[into:])
    rows = [Row(ours, f"{theirs}.weight", tuple(shape), layers, "matrix", into)]
    return rows + ([Row(f"{ours}_bias", f"{theirs}.bias", (size,), layers)] if bias else [])


def hidden_states(c: DecoderConfig, params, x, mask) -> list:
    """x [b, l, d] and what each layer makes of it; the last behind the final norm, as theirs."""
    position = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
    angles = rope_angles(position, c.head_dim, c.theta, c.rope_scaling)
    block = Block(one_device(), c.dtype, c)

    @jax.jit
    def step(n, x):
        layer = jax.tree.map(lambda w: w[n], params["decoder"]["blocks"])
        return block.apply({"params": layer}, x, None, n, mask, angles, None, None, None)[0]

    found = [x]
    for n in range(c.depth):
        found.append(step(n, found[-1]))
    return [*found[:-1], rms_norm(found[-1], params["decoder"]["final_norm"], c.eps)]


def next_token_loss(logits, labels):
    """Mean cross-entropy of labels [b, l] under the logits [b, l, v] before them; not of -100."""
    logs, wanted = jax.nn.log_softmax(logits[:, :-1], axis=-1), labels[:, 1:]
    chosen = jnp.take_along_axis(logs, jnp.maximum(wanted, 0)[..., None], axis=-1)[..., 0]
    counted = (wanted >= 0).astype(jnp.float32)
    return -(chosen * counted).sum() / counted.sum()
