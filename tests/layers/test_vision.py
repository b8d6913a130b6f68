"""The vision tower: patches as a convolution, positions, other grids, and what stands for all."""

import re
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert.clip import vision_rows
from mmjax.convert.rows import from_theirs
from mmjax.error import UserError
from mmjax.layers.encoder import VARIANTS, EncoderConfig
from mmjax.layers.norm import layer_norm
from mmjax.layers.patch import patchify, unpatchify
from mmjax.layers.vision import POOLS, TextConfig, TextTower, Vision, VisionConfig, resized, sincos
from mmjax.mesh import Rules, make_mesh

GOLDEN = Path(__file__).parent.parent / "golden"
RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
ENCODER = EncoderConfig(16, 2, 4, 24, "gelu_tanh", 1e-6, False, 1, "float32")
VISION = VisionConfig(ENCODER, 12, 4, "token", "learned", False, True)
TEXT = TextConfig(ENCODER, 8, True, "end")


def pictures(seed=0, count=2):
    return jax.random.normal(jax.random.key(seed), (count, 12, 12, 3))


def tower(c):
    layer = Vision(RULES, "float32", c)
    return layer, jax.jit(layer.init)(jax.random.key(0), pictures())


def test_patches_and_a_matrix_are_a_convolution():
    x, w = pictures(), jax.random.normal(jax.random.key(1), (4 * 4 * 3, 5))
    found = patchify(x, 4) @ w
    want = jax.lax.conv_general_dilated(
        x, w.reshape(4, 4, 3, 5), (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, want.reshape(2, 9, 5), atol=1e-5)
    np.testing.assert_array_equal(unpatchify(patchify(x, 4), 4, 12, 12), x)
    turned = patchify(jnp.swapaxes(x, 1, 2), 4) @ w
    assert np.abs(turned - found).max() > 1


def test_a_vit_is_torchs():
    """A class token, biases of patches and no norm before the blocks, which no CLIP has so."""
    with np.load(GOLDEN / "hf_vit.npz") as file:
        arrays = {k: file[k] for k in file.files}
    state = {k.removeprefix("state/"): x for k, x in arrays.items() if k.startswith("state/")}
    told = (
        (r"^embeddings\.cls_token$", "embeddings.class_embedding"),
        (r"^embeddings\.position_embeddings$", "embeddings.position_embedding.weight"),
        (r"patch_embeddings\.projection", "patch_embedding"), (r"^layers\.", "encoder.layers."),
        (r"attention\.o_proj", "self_attn.out_proj"), (r"\.attention\.", ".self_attn."),
        (r"layernorm_before", "layer_norm1"), (r"layernorm_after", "layer_norm2"),
        (r"^layernorm\.", "post_layernorm."),
    )  # fmt: skip
    for pattern, other in told:
        state = {re.sub(pattern, other, name): x for name, x in state.items()}
    state = {f"v.{k}": x[0] if x.ndim == 3 else x for k, x in state.items()}
    state["v.embeddings.class_embedding"] = state["v.embeddings.class_embedding"][0]
    c = VisionConfig(
        EncoderConfig(16, 3, 4, 24, "gelu", 1e-6, False, 1, "float32"), 20, 4, "token", "learned",
        True, False,
    )  # fmt: skip
    params = from_theirs(vision_rows(c, "vision", "v"), state.__getitem__)["vision"]
    signal = np.moveaxis(arrays["in/pixel_values"], 1, -1)
    with jax.default_matmul_precision("highest"):
        pooled, hidden = Vision(RULES, "float32", c).apply({"params": params}, signal)
    for n, one in enumerate(hidden):
        np.testing.assert_allclose(one, arrays[f"out/hidden_{n}"], atol=1e-4)
    np.testing.assert_allclose(pooled, arrays["out/pooled"], atol=1e-4)
    assert len(hidden) == 4 and np.abs(hidden[3] - hidden[2]).max() > 0.1


@pytest.mark.parametrize("size", [(6, 5), (2, 7), (4, 4)])
def test_positions_of_other_grids_are_torchs(size):
    with np.load(GOLDEN / "torch_bicubic.npz") as file:
        table, want = file["table"], file[f"{size[0]}x{size[1]}"]
        by_factor = file[f"{size[0]}x{size[1]}_by_factor"]
    np.testing.assert_allclose(resized(table, 4, size), want, atol=2e-6)
    np.testing.assert_allclose(resized(table, 4, size, nudge=0.1), by_factor, atol=4e-6)
    assert np.abs(by_factor - want).max() > 1e-2
    token = np.full((1, 3), 7.0, np.float32)
    with_token = resized(np.concatenate([token, table]), 4, size)
    np.testing.assert_array_equal(with_token[:1], token)
    np.testing.assert_allclose(with_token[1:], want, atol=2e-6)
    if size != (4, 4):
        other = jax.image.resize(table.reshape(4, 4, 3), (*size, 3), "cubic", antialias=False)
        assert np.abs(np.asarray(other).reshape(-1, 3) - want).max() > 0.01  # another kernel


def test_sincos_positions_by_their_definition():
    found = sincos((3, 3), 16)
    for y in range(3):
        for x in range(3):
            for i in range(4):
                w = 10000.0 ** (-i / 3)
                want = np.sin(x * w), np.cos(x * w), np.sin(y * w), np.cos(y * w)
                np.testing.assert_allclose(found[3 * y + x, i::4], want, atol=1e-6)
    assert len(np.unique(found.round(4), axis=0)) == 9
    with pytest.raises(UserError, match="'sincos' needs a width that 4 divides, not 18"):
        wide = replace(ENCODER, width=18, heads=2)
        replace(VISION, positions="sincos", encoder=wide)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("positions", ["learned", "sincos"])
def test_every_way_to_pool_sees_all_patches_and_where_they_are(pool, positions):
    layer, params = tower(replace(VISION, pool=pool, positions=positions))
    x = pictures()
    pooled, hidden = layer.apply(params, x)
    length = 9 + (pool == "token")
    assert hidden.shape == (3, 2, length, 16)
    assert pooled.shape == ((2, 9, 16) if pool == "none" else (2, 16))
    for corner in (x.at[0, 0, 0].add(5.0), x.at[0, -1, -1].add(5.0)):
        other, _ = layer.apply(params, corner)
        assert np.abs(other[0] - pooled[0]).max() > 1e-3
        np.testing.assert_allclose(other[1], pooled[1], atol=1e-6)
    mirrored, _ = layer.apply(params, unpatchify(patchify(x, 4)[:, ::-1], 4, 12, 12))
    assert np.abs(mirrored - pooled).max() > 1e-4


@pytest.mark.parametrize(("causal", "pool"), [(True, "end"), (False, "last")])
def test_text_is_read_as_the_tower_says(causal, pool):
    layer = TextTower(RULES, "float32", replace(TEXT, causal=causal, pool=pool), 20, eos=2)
    tokens = jnp.array([[1, 5, 6, 2, 0, 0], [1, 7, 8, 9, 10, 2]])
    params = jax.jit(layer.init)(jax.random.key(0), tokens)
    pooled, hidden = layer.apply(params, tokens)
    assert pooled.shape == (2, 16) and hidden.shape == (3, 2, 6, 16)
    padded, _ = layer.apply(params, tokens.at[0, 4:].set(11))
    later = np.abs(np.asarray(padded - pooled))
    assert (later[0].max() < 1e-6) == (pool == "end") and later[1].max() < 1e-6
    other, _ = layer.apply(params, tokens.at[0, 1].set(12))
    assert np.abs(other[0] - pooled[0]).max() > 1e-3


@pytest.mark.parametrize(("pool", "places"), [("end", (3, 0)), ("highest", (1, 4))])
def test_a_text_is_the_place_of_its_end_or_of_its_highest_id(pool, places):
    """Without an end, it is the first: what torch's argmax of no match gives."""
    layer = TextTower(RULES, "float32", replace(TEXT, pool=pool), 20, eos=2)
    tokens = jnp.array([[1, 9, 6, 2, 0, 2], [1, 7, 8, 9, 10, 0]])
    params = jax.jit(layer.init)(jax.random.key(0), tokens)
    pooled, hidden = layer.apply(params, tokens)
    w = nn.meta.unbox(params)["params"]
    normed = layer_norm(hidden[-1], w["final_norm_scale"], w["final_norm_bias"], ENCODER.eps)
    for row, place in enumerate(places):
        np.testing.assert_allclose(pooled[row], normed[row, place], atol=1e-6)


def test_shapes_that_do_not_fit_are_named():
    for change, said in (
        ({"patch": 5}, "vision.patch=5 must divide vision.image=12"),
        ({"patch": 0}, "vision.patch=0 must divide vision.image=12"),
        ({"pool": "max"}, "vision.pool='max' is unknown; have: token, mean, attention, none"),
        ({"positions": "rope"}, "vision.positions='rope' is unknown"),
    ):
        with pytest.raises(UserError, match=said):
            replace(VISION, **change)
    with pytest.raises(UserError, match=r"encoder.heads=3 must divide encoder.width=16"):
        replace(ENCODER, heads=3)
    with pytest.raises(UserError, match=r"encoder.activation='tanh' is unknown"):
        replace(ENCODER, activation="tanh")
    with pytest.raises(UserError, match=r"text.pool='first' is unknown"):
        replace(TEXT, pool="first")


@pytest.mark.parametrize(
    ("name", "patch", "count"),
    [
        ("Ti", 16, 5_524_416),
        ("S", 16, 21_665_664),
        ("B", 16, 85_798_656),
        ("L", 16, 303_301_632),
        ("H", 14, 630_764_800),
        ("g", 14, 1_011_202_432),
        ("G", 14, 1_842_775_680),
    ],
)
def test_sizes_with_names_have_their_weights(name, patch, count):
    """At 224 pixels, without a classifier: the counts that are published (timm's tables)."""
    encoder = replace(ENCODER, **VARIANTS[name])
    c = VisionConfig(encoder, 224, patch, "token", "learned", True, False)
    layer = Vision(RULES, "float32", c)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_the_largest_grow_as_they_are_called():
    blocks = [12 * v["depth"] * v["width"] ** 2 for v in VARIANTS.values()]
    assert blocks == sorted(blocks) and list(VARIANTS) == [
        "mu",
        "Ti",
        "S",
        "B",
        "L",
        "So400m",
        "H",
        "g",
        "G",
    ]
