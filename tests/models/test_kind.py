"""Pictures of several shapes and modalities in one Transfusion."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from random_batch import VOCABULARY
from small import make, transfusion_config
from tiny import tiny_codec

from mmjax import diffusion, flops
from mmjax.batch import TEXT, Batch
from mmjax.codecs.autoencoder import CodecConfig
from mmjax.error import UserError
from mmjax.layers.patch import collect
from mmjax.losses import means, total
from mmjax.models import denoise, kind, transfusion
from mmjax.models.decoder import UNTIE
from mmjax.sample.decode import prefill
from mmjax.sample.flow import Solver
from mmjax.sample.paint import Stand, looker
from mmjax.values import build

KINDS = {
    "wide": {"height": 2, "width": 8},
    "tall": {"height": 8, "width": 2},
    "depth": {
        "height": 4, "width": 4, "patch": 4, "like": "", "target": "data", "image_weight": 2.0,
        "signal_mean": 0.0,
    },
}  # fmt: skip
# A U-Net around the default and what is like it, and another around the rest; latents and pixels.
UNET = {"unet": 8, "kinds": KINDS | {"depth": KINDS["depth"] | {"unet": 4}}}
CODEC = build(CodecConfig, tiny_codec(4, kind="kl", codes=0) | {"attend": (4,)})
LATENT = {"codec": CODEC, "kinds": KINDS | {"depth": KINDS["depth"] | {"signal_std": 0.5}}}


def trained(**changes):
    """(model, params) with the kind's own output layer, which starts at zero, off it."""
    model, params = make(transfusion_config(**{"kinds": KINDS} | changes))
    out = params["patch_out_depth"]
    out, name = (out, "patch") if "patch" in out else (out["up"], "out")
    out[name] += 0.1
    return model, params


CONFIG = transfusion_config(kinds=KINDS)
MODEL, PARAMS = trained()
CLEAN, _ = trained(context="clean")
MADE = {
    "noisy": (MODEL, PARAMS), "clean": (CLEAN, PARAMS), "unet": trained(**UNET),
    "latent": trained(**LATENT),
}  # fmt: skip


def loss_of(model):
    """Jitted (params, batch, keys) -> ((sum, terms), gradients of what is not frozen)."""

    def run(p, b, k):
        free = {name: x for name, x in p.items() if name not in model.frozen}
        return jax.value_and_grad(lambda f: sum_of(model.loss(p | f, b, k)), has_aux=True)(free)

    return jax.jit(run)


def sum_of(terms):
    return sum(terms[n].sum for n in MODEL.weights), terms


LOSSES = {name: loss_of(model) for name, (model, _) in MADE.items()}
LOSS = LOSSES["noisy"]


def keys(rows: int):
    return jax.vmap(jax.random.key)(np.arange(rows))


def batch(kinds, seed=0) -> Batch:
    """One row a picture: two words, a picture of a kind, two words; noise beside pictures."""
    v, length = VOCABULARY, 16
    fields = {k: np.zeros((len(kinds), length), np.int32) for k in Batch._fields[:5]}
    rng = np.random.default_rng(seed)
    for r, number in enumerate(kinds):
        p = CONFIG.resolved[number].tokens
        line = [v.bos, 7, 8, v.boi, *[v.pad] * p, v.eoi, 9, 10, v.eos]
        n = len(line)
        fields["tokens"][r, :n], fields["segment"][r, :n] = line, 1
        fields["position"][r, :n] = np.arange(n)
        fields["modality"][r, 4 : 4 + p] = CONFIG.resolved[number].modality
        fields["image"][r, 4 : 4 + p] = 1
    weight = ((fields["position"] > 0) & (fields["segment"] > 0)).astype(np.float32)
    pixels = rng.integers(0, 256, (len(kinds), 1, 8, 8, 3)).astype(np.uint8)
    return Batch(**fields, weight=weight, pixels=pixels, kind=np.array(kinds, np.int32)[:, None])


def row(b: Batch, r: int) -> Batch:
    return jax.tree.map(lambda x: x[r : r + 1], b)


def close(a, b, atol=2e-5):
    """Whether trees agree: to atol, times a leaf's largest number where that is above one."""

    def leaf(x, y):
        scale = max(1.0, float(np.abs(x).max()))
        return np.allclose(x, y, rtol=1e-4 if atol else 0, atol=atol * scale)

    return all(jax.tree.leaves(jax.tree.map(leaf, a, b)))


@pytest.mark.parametrize("which", MADE)
def test_kinds_in_one_batch_give_what_each_gives_alone(which):
    b, loss, params = batch([0, 1, 2, 3]), LOSSES[which], MADE[which][1]
    (_, terms), grads = loss(params, b, keys(4))
    alone = [loss(params, row(b, r), keys(4)[r : r + 1]) for r in range(4)]
    for n, name in enumerate(["image_wide", "image_tall", "image_depth"], start=1):
        assert terms[name].count == 1
        np.testing.assert_allclose(terms[name].sum, alone[n][0][1][name].sum, rtol=1e-5)
    square, whole = alone[0][0][1]["image"].sum, terms["image"]
    like = sum(terms[name].sum for name in ("image_wide", "image_tall"))
    assert whole.count == 3
    np.testing.assert_allclose(whole.sum, square + like, rtol=1e-5)
    assert close(grads, jax.tree.map(lambda *g: sum(g), *[g for _, g in alone]), 1e-4)
    assert not close(grads, alone[0][1], 1e-4)


def test_shapes_of_equal_length_are_told_apart():
    b = batch([1])
    wide = LOSS(PARAMS, b, keys(1))[0][1]
    tall = LOSS(PARAMS, b._replace(kind=b.kind + 1), keys(1))[0][1]
    assert wide["image_wide"].count == tall["image_tall"].count == 1
    assert wide["image_tall"].count == tall["image_wide"].count == 0
    assert wide["image"].count == tall["image"].count == 1
    assert abs(wide["text"].sum - tall["text"].sum) > 1e-4


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("which", ["noisy", "unet", "latent"])
def test_nothing_beside_a_picture_matters(kind, which):
    b, loss, params = batch([kind]), LOSSES[which], MADE[which][1]
    h, w, _ = CONFIG.resolved[kind].shape
    beside, inside = b.pixels.copy(), b.pixels.copy()
    beside[:, :, h:], beside[:, :, :, w:] = 77, 78
    inside[:, :, h - 1, w - 1] ^= 255
    assert (beside != b.pixels).any()
    here = loss(params, b, keys(1))
    assert close(here, loss(params, b._replace(pixels=beside), keys(1)), 0)
    assert not close(here, loss(params, b._replace(pixels=inside), keys(1)), 1e-4)


def test_a_modality_has_ends_of_its_own_and_a_shape_only_places():
    _, grads = LOSS(PARAMS, batch([3]), keys(1))
    touched = {k for k, g in grads.items() if any(abs(x).max() > 0 for x in jax.tree.leaves(g))}
    assert {"patch_in_depth", "patch_out_depth"} <= touched
    assert not {"patch_in", "patch_out", "patch_in_wide"} & touched
    _, grads = LOSS(PARAMS, batch([1]), keys(1))
    assert abs(grads["patch_in"]["patch"]).max() > 0 and abs(grads["patch_out"]["patch"]).max() > 0
    assert abs(grads["patch_in_wide"]["place"]).max() > 0 == abs(grads["patch_in"]["place"]).max()
    assert list(PARAMS["patch_in_wide"]) == ["place"] and "patch_out_wide" not in PARAMS
    assert MODEL.weights == {"text": 1.0, "image": 5.0, "image_depth": 2.0}


def test_shapes_of_one_modality_have_one_mean_and_a_modality_its_own():
    """However they are spread over shapes, pictures weigh as much as in a model of one shape."""
    b = batch([0, 1, 1, 2, 3])
    terms = LOSS(PARAMS, b, keys(5))[0][1]
    alone = [LOSS(PARAMS, row(b, r), keys(5)[r : r + 1])[0][1] for r in range(4)]
    alike = [found["image"].sum for found in alone]
    assert terms["image"].count == 4 and terms["image_depth"].count == 1
    np.testing.assert_allclose(means(terms)["image"], np.mean(alike), rtol=1e-5)
    assert terms["image_wide"].count == 2 and terms["image_tall"].count == 1
    whole = total(terms, MODEL.weights)
    apart = means(terms)["text"] + 5.0 * np.mean(alike) + 2.0 * means(terms)["image_depth"]
    np.testing.assert_allclose(whole, apart, rtol=1e-5)


def test_a_model_without_kinds_is_as_it_was():
    plain, params = make(transfusion_config())
    assert sorted(params) == ["decoder", "embed", "head", "patch_in", "patch_out"]
    assert sorted(plain.weights) == ["image", "text"]
    assert len(PARAMS) > len(params)


def test_flops_count_true_patches():
    assert MODEL.flops(batch([1])) == MODEL.flops(batch([2]))
    assert MODEL.flops(batch([3])) < MODEL.flops(batch([0]))
    # A clean copy of a picture goes in once more, beside what it costs in the decoder.
    d = CONFIG.decoder
    for n, k in enumerate(CONFIG.resolved):
        b = batch([n])
        copies, seen = flops.patch_counts(b, True)
        more = flops.decoder(d.width, d.depth, d.heads, d.kv_heads, d.head_dim, d.mlp, copies, seen)
        more += 2 * (256 * d.width + d.width**2) + 2 * k.tokens * k.cells**2 * 3 * d.width
        assert CLEAN.flops(b) - MODEL.flops(b) == more


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kinds": {"a": {"height": 3, "width": 4}}}, "patch=2"),
        ({"kinds": {"a": {"height": 4, "width": 4, "path": "cosine"}}}, "like=''"),
        ({"kinds": {"a": {"height": 4, "width": 4, "image_weight": 2.0}}}, "like=''"),
        ({"kinds": {"a": {"height": 4, "width": 4, "hight": 4}}}, "hight"),
        ({"kinds": {"a": {"height": 4, "width": 4, "like": "b"}}}, "like='b'"),
        ({"kinds": {"a": {"height": 4, "width": 4, "path": "x"}}}, "model.kinds.a.path='x'"),
        (
            {"kinds": {"a": {"height": 4, "width": 4, "like": "", "time_shift": 0.0}}},
            "a.time_shift",
        ),
        ({"kinds": {"a": {"height": 4, "width": 4, "unet": 8}}}, "like=''"),
        (
            {"kinds": {"a": {"height": 3, "width": 3, "patch": 3, "like": "", "unet": 8}}},
            "model.kinds.a.unet=8 needs patches of 2, 4",
        ),
        ({"kinds": KINDS, "codec": CODEC}, "model.kinds.depth is pixels"),
        ({"kinds": {"a": {"height": 4, "width": 4, "codec": None}}}, "set model.codec"),
        (
            {"kinds": {"a": {"height": 4, "width": 4, "modality": 2}}},
            "follows from like",
        ),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(changes, word):
    with pytest.raises(UserError) as error:
        transfusion_config(**changes)
    assert word in str(error.value) and "\n" not in str(error.value)


OWN = {
    "path": "cosine", "prediction": "noise", "target": "data", "time_mean": 1.0,
    "time_std": 0.3, "time_shift": 2.0, "signal_mean": 0.2, "signal_std": 0.8,
}  # fmt: skip


@pytest.mark.parametrize("field", ["", *sorted(OWN)])
def test_a_modality_of_its_own_has_the_loss_of_a_transfusion_of_it_alone(field):
    """With every field its own; with any one of them the default's it is another loss."""
    said = {"height": 4, "width": 4, "patch": 4, "like": "", **OWN}
    model, params = make(transfusion_config(kinds={"depth": said}))
    params["patch_out_depth"]["patch"] += 0.1
    b = batch([3, 3])
    b = b._replace(pixels=b.pixels[:, :, :4, :4], kind=np.ones_like(b.kind))
    found = jax.jit(model.loss)(params, b, keys(2))
    changes = OWN | ({field: getattr(CONFIG, field)} if field else {})
    alone, _ = make(transfusion_config(patch=4, **changes))
    ends = {end: params[f"{end}_depth"] for end in ("patch_in", "patch_out")}
    want = jax.jit(alone.loss)(params | ends, b._replace(kind=None), keys(2))
    alike = np.allclose(found["image_depth"].sum, want["image"].sum, rtol=1e-5)
    assert field or np.allclose(found["text"].sum, want["text"].sum, rtol=1e-5)
    assert alike == (not field) and found["image"].count == 0 < want["image"].count


@pytest.mark.parametrize("t", [1.0, 0.5])
def test_with_clean_pictures_both_contexts_agree(t):
    """At t = 1 a copy is the original, however many patches other kinds have."""
    b = batch([0, 1, 2, 3])
    at = jnp.full((4, 1), t), keys(4), keys(4)
    noisy, clean = (
        transfusion.loss_at(m.parts.config, m.parts, PARAMS, b, *at) for m in (MODEL, CLEAN)
    )
    for name in MODEL.weights:
        alike = t == 1.0 or name != "text"  # here no picture follows another
        assert np.allclose(noisy[name].sum, clean[name].sum, rtol=1e-5) == alike, name


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("which", ["noisy", "unet", "latent"])
def test_drawing_a_kind_is_one_pass_over_the_whole_row(number, which):
    """The look behind a prompt, with the kind's own ends, against the row in one piece."""
    model, params = MADE[which]
    parts = model.parts
    b, view, count = batch([number]), parts.kinds[number], CONFIG.resolved[number].tokens
    x = jax.random.normal(jax.random.key(1), (1, *view.config.shape))
    before = b._replace(**{f: getattr(b, f)[:, :4] for f in Batch._fields[:6]})
    filled = prefill(view, params, before, count)
    stand = Stand(filled.cache, filled.length[None], filled.position[None] + 1, filled.sees)
    solver = Solver("euler", 4, 1.0, 1.0, 0.0, 1.0, 1.0)
    look = looker(view, params, stand, solver, shared=False)
    found, _ = look(x, jnp.array([0.3]), stand.cache, jnp.array([True]))

    def whole(other: int):
        """Velocity where the row's picture is x, of one kind or, wrongly, of another."""
        t, k = jnp.full((1, 1), 0.3), parts.kinds[other].config
        signals = [jnp.resize(x, (1, 1, *v.config.shape)) for v in parts.kinds]
        told = b._replace(kind=np.full_like(b.kind, other))
        patches, kept = kind.embedded(parts, params, told, signals, t)
        inputs = denoise.inputs(parts, params, told, patches)
        hidden, _ = parts.run(params, inputs, parts.mask(told), told.position)
        out = collect(hidden, told.image, 1, k.tokens)
        out = parts.kinds[other].patch_out(params, out, kept[other])
        return diffusion.estimate(
            k.path, k.prediction, out, signals[other], t[..., None, None, None]
        ).velocity[0]

    np.testing.assert_allclose(found, whole(number), atol=1e-4)
    same = [n for n, v in enumerate(parts.kinds) if v.config.shape == view.config.shape]
    for other in set(same) - {number}:
        assert np.abs(np.asarray(found - whole(other))).max() > 1e-2


@pytest.mark.parametrize("which", ["unet", "latent"])
def test_a_shape_like_the_default_shares_its_ends_whatever_they_are(which):
    model, params = MADE[which]
    assert list(params["patch_in_wide"]) == ["place"] and "patch_out_wide" not in params
    wide, depth = model.parts.kinds[1], model.parts.kinds[3]
    assert (wide.codec is None, depth.codec) == (which == "unet", None)
    factor = 2 if which == "latent" else 1
    assert wide.config.shape[:2] == (2 // factor, 8 // factor) and depth.config.shape == (4, 4, 3)
    _, grads = LOSSES[which](params, batch([1]), keys(1))
    for end in ("patch_in", "patch_out"):
        moved = [abs(g).max() > 0 for g in jax.tree.leaves(grads[end])]
        assert any(moved) and not any(abs(g).max() for g in jax.tree.leaves(grads[f"{end}_depth"]))
    signal = jax.random.normal(jax.random.key(0), (1, *wide.config.shape))
    assert wide.picture(params, signal).shape == (1, 2, 8, 3)


def towers(grads) -> set[int]:
    """Numbers of the decoder's towers that have a gradient."""
    moved = [p[-1] for p, g in flatten_dict(grads["decoder"]).items() if abs(g).max() > 0]
    return {int(found[1]) if (found := re.search(r"_(\d)$", name)) else 0 for name in moved}


@pytest.mark.parametrize(("count", "context"), [(2, "noisy"), (3, "noisy"), (3, "clean")])
def test_a_modality_of_its_own_has_a_tower_if_there_are_so_many(count, context):
    apart = {"towers": count, "untie": UNTIE}
    model, params = trained(decoder=apart, context=context)
    loss = loss_of(model)
    for number, tower in ((0, 1), (1, 1), (3, count - 1)):
        b = batch([number])
        assert set(np.unique(b.modality)) == {TEXT, 2 if number == 3 else 1}
        _, grads = loss(params, b, keys(1))
        assert towers(grads) == {0, tower}


@pytest.mark.parametrize(("number", "tower"), [(1, 1), (3, 2)])
def test_a_modality_is_drawn_with_its_own_tower(number, tower):
    model, params = trained(decoder={"towers": 3, "untie": UNTIE})
    view = model.parts.kinds[number]
    rows = batch([number])
    before = rows._replace(**{f: getattr(rows, f)[:, :4] for f in Batch._fields[:6]})

    def velocity(params):
        filled = prefill(view, params, before, CONFIG.resolved[number].tokens)
        stand = Stand(filled.cache, filled.length[None], filled.position[None] + 1, filled.sees)
        solver = Solver("euler", 4, 1.0, 1.0, 0.0, 1.0, 1.0)
        look = looker(view, params, stand, solver, shared=False)
        x = jax.random.normal(jax.random.key(1), (1, *view.config.shape))
        return look(x, jnp.array([0.3]), stand.cache, jnp.array([True]))[0].sum()

    assert towers(jax.jit(jax.grad(velocity))(params)) == {0, tower}
