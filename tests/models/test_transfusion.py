"""Causality, isolation of packed documents, and the losses of the transfusion family."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batch import VOCABULARY, random_batch

from mmjax import losses
from mmjax.batch import IMAGE, TEXT, mixed_mask
from mmjax.layers.patch import patchify, to_signal
from mmjax.mesh import Rules, make_mesh
from mmjax.models import transfusion
from mmjax.models.decoder import DecoderConfig


def decoder(**changes):
    values = dict(
        width=32, depth=2, heads=4, kv_heads=2, mlp=48, qk_norm=True, norm="pre", dropout=0.0,
        theta=1e4, remat=False, unroll=1, dtype="float32",
    )  # fmt: skip
    return DecoderConfig(**values | changes)


def config(**changes):
    shape = decoder(**changes)
    return transfusion.Config(shape, 4, 2, 5.0, 1e-5, 0.0, 1.0, 0.5, "data", 0.6, 0.6)


def make(**changes):
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    model = transfusion.build(config(**changes), VOCABULARY, rules)
    params = jax.jit(model.init)(jax.random.key(0))
    # The velocity head starts at zero, which would hide every leak.
    params["patch_out"]["patch"] = jax.random.normal(
        jax.random.key(1), params["patch_out"]["patch"].shape
    )
    return model, params


MODEL, PARAMS = make()
LOSS = jax.jit(MODEL.loss)


@jax.jit
def hidden(batch, noisy, t):
    x = transfusion.inputs(MODEL.parts, PARAMS, batch, noisy, t)
    return MODEL.parts.run(PARAMS, x, mixed_mask(batch), batch.position)[0]


def outputs(batch, shift=None):
    """Decoder outputs; `shift` (row, slot) disturbs one picture's patches."""
    noisy = np.array(patchify(to_signal(batch.pixels), 2))
    if shift is not None:
        noisy[shift] += 1.0
    return np.asarray(hidden(batch, noisy, jnp.full(noisy.shape[:2], 0.7)))


def reachable(batch):
    """[b, l, l] bool: whether j can reach i through any number of layers."""
    allowed = np.asarray(mixed_mask(batch))
    reach = allowed.copy()
    for _ in range(MODEL.parts.config.decoder.depth):
        reach |= np.einsum("bij,bjk->bik", reach.astype(int), allowed.astype(int)) > 0
    return reach


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_a_token_changes_only_what_may_see_it(seed, data):
    batch = random_batch(seed)
    words = np.argwhere((batch.modality == TEXT) & (batch.segment > 0))
    r, j = words[data.draw(st.integers(0, len(words) - 1))]
    changed = batch.tokens.copy()
    changed[r, j] = (changed[r, j] + 7) % VOCABULARY.size
    difference = np.abs(outputs(batch) - outputs(batch._replace(tokens=changed))).max(-1)
    reach = reachable(batch)[:, :, j]
    reach[np.arange(len(reach)) != r] = False
    held = batch.segment > 0
    assert (difference[held & ~reach] == 0).all()
    assert difference[r, j] > 0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_a_picture_changes_itself_whole_and_nothing_before_it(seed):
    batch = random_batch(seed)
    if not (batch.image == 1).any(axis=1)[0]:
        return
    difference = np.abs(outputs(batch) - outputs(batch, (0, 0))).max(-1)
    columns = np.flatnonzero(batch.image[0] == 1)
    assert (difference[0, columns] > 0).all()
    assert (difference[0, : columns[0]] == 0).all()
    assert (difference[1][batch.segment[1] > 0] == 0).all()


def test_packed_equals_alone():
    """A document's outputs do not depend on its neighbours in the row."""
    batch = random_batch(11)
    assert batch.segment[0].max() >= 2
    together = outputs(batch)
    second = batch.segment[0] == 2
    alone = batch._replace(segment=np.where(second[None], batch.segment, 0))
    np.testing.assert_allclose(outputs(alone)[0, second], together[0, second], atol=2e-6)
    joined = batch._replace(segment=np.minimum(batch.segment, 1))
    assert np.abs(outputs(joined)[0, second] - together[0, second]).max() > 1e-3


def keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), len(batch.tokens))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_loss_at_the_start_is_that_of_knowing_nothing(norm):
    """Text: about log v. Flow: the head starts at zero, so the mean square of the target."""
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    c = dataclasses.replace(
        config(norm=norm), prediction="velocity", signal_mean=0.0, signal_std=1.0
    )
    model = transfusion.build(c, VOCABULARY, rules)
    params = jax.jit(model.init)(jax.random.key(0))
    params["head"]["w"] = jnp.zeros_like(params["head"]["w"])
    batch = random_batch(0)
    mean = losses.means(jax.jit(model.loss)(params, batch, keys(batch)))
    np.testing.assert_allclose(mean["text/nll"], np.log(VOCABULARY.size), rtol=1e-5)
    used = batch.image.max(1) > 0
    signal = np.asarray(to_signal(batch.pixels))[used]
    assert abs(float(mean["image"]) - (1 + (signal**2).mean())) < 0.5
    other = losses.means(LOSS(PARAMS, batch, keys(batch)))
    assert abs(float(other["text/nll"]) - np.log(VOCABULARY.size)) > 1e-2


def test_padding_has_no_gradient():
    batch = random_batch(0)
    pad = np.argwhere(batch.segment == 0)
    assert len(pad)

    def objective(table):
        params = PARAMS | {"embed": {"table": table}}
        terms = MODEL.loss(params, batch, keys(batch))
        return losses.total(terms, MODEL.weights)

    grad = np.asarray(jax.jit(jax.grad(objective))(PARAMS["embed"]["table"]))
    # The id of the padding is also that of patches, whose embedding is replaced: never read.
    assert (grad[VOCABULARY.pad] == 0).all() and np.abs(grad[VOCABULARY.bos]).max() > 0


def test_noise_level_is_limited_where_text_follows():
    c = config()
    many = jax.random.split(jax.random.key(0), 500)
    after = np.asarray(transfusion.noise_level(c, many, jnp.ones((500, 2), bool)))
    free = np.asarray(transfusion.noise_level(c, many, jnp.zeros((500, 2), bool)))
    assert after.min() >= 0.5 and after.max() < 1
    assert free.min() < 0.2 and abs(np.median(free) - 0.5) < 0.05
    assert np.unique(free).size == free.size  # one level a picture


def test_rows_draw_noise_of_their_own():
    """A row's loss does not depend on which rows stand beside it."""
    batch = random_batch(5)
    alone = jax.tree.map(lambda x: x[:1], batch)
    both = LOSS(PARAMS, batch, keys(batch))
    first = LOSS(PARAMS, alone, keys(batch)[:1])
    second = LOSS(PARAMS, jax.tree.map(lambda x: x[1:], batch), keys(batch)[1:])
    np.testing.assert_allclose(
        both["image"].sum, first["image"].sum + second["image"].sum, rtol=1e-5
    )
    other = LOSS(PARAMS, alone, keys(batch, 1)[:1])
    assert float(other["image"].sum) != float(first["image"].sum)


@pytest.mark.parametrize("changes", [{"remat": True}, {"unroll": 2}])
def test_remat_and_unrolling_change_nothing(changes):
    batch = random_batch(2)
    model, _ = make(**changes)

    def grads(m, p):
        return jax.grad(lambda p: losses.total(m.loss(p, batch, keys(batch)), m.weights))(p)

    same, other = (
        jax.jit(lambda p: grads(model, p))(PARAMS),
        jax.jit(lambda p: grads(MODEL, p))(PARAMS),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), same, other)


@pytest.mark.parametrize("changes", [{"norm": "post"}, {"qk_norm": False}, {"kv_heads": 4}])
def test_options_of_the_decoder_change_the_output(changes):
    model, params = make(**changes)
    batch = random_batch(2)
    mine = LOSS(PARAMS, batch, keys(batch))["text"].sum
    assert (
        abs(float(jax.jit(model.loss)(params, batch, keys(batch))["text"].sum) - float(mine)) > 1e-4
    )


def test_dropout_needs_keys_and_changes_the_loss():
    model, _ = make(dropout=0.5)
    batch = random_batch(2)
    a, b = (float(jax.jit(model.loss)(PARAMS, batch, keys(batch, s))["text"].sum) for s in (0, 1))
    plain = float(LOSS(PARAMS, batch, keys(batch))["text"].sum)
    assert a != plain and a != b


def test_flops_count_what_a_loop_counts():
    batch = random_batch(4)
    d = MODEL.parts.config.decoder
    pairs = int(np.asarray(mixed_mask(batch)).sum())
    tokens = int((batch.segment > 0).sum())
    layer = tokens * (2 * 32 * 8 * (4 + 2 * 2) + 2 * 32 * 32 + 6 * 32 * 48) + 4 * pairs * 32
    words = int((np.asarray(transfusion.target_weight(batch)) > 0).sum())
    pictures = int(batch.image.max(1).sum())
    patches = 2 * pictures * 4 * 2 * 12 * 32 + 2 * pictures * (256 * 32 + 32 * 32)
    want = d.depth * layer + 2 * words * 32 * VOCABULARY.size + patches
    assert MODEL.flops(batch) == want
    assert (batch.modality == IMAGE).any()


def test_data_prediction_is_the_velocity_it_implies():
    """From the true x_1 follows the true velocity; near t = 1 its size is bounded."""
    c = config()
    clean, noise = jax.random.normal(jax.random.key(0), (2, 3, 1, 4, 12))
    t = jnp.array([[0.1], [0.5], [0.9]])
    s = t[:, :, None, None]
    noisy = s * clean + (1 - s) * noise
    got = transfusion.velocity_of(c, clean, noisy, t)
    np.testing.assert_allclose(got, clean - noise, atol=1e-5)
    assert np.abs(np.asarray(transfusion.velocity_of(c, noise, noisy, t) - got)).max() > 0.1
    late = transfusion.velocity_of(c, clean, clean + 0.1, jnp.full((3, 1), 0.9999))
    np.testing.assert_allclose(late, -0.1 / 0.05, rtol=1e-4)
    plain = dataclasses.replace(c, prediction="velocity")
    np.testing.assert_array_equal(transfusion.velocity_of(plain, clean, noisy, t), clean)


def test_patches_are_standardised_and_back():
    c = dataclasses.replace(config(), signal_mean=0.3, signal_std=0.7)
    pixels = random_batch(0).pixels
    np.testing.assert_array_equal(
        transfusion.to_picture(c, transfusion.to_patches(c, pixels)), pixels
    )
    white = np.full((1, 4, 4, 3), 255, np.uint8)
    np.testing.assert_allclose(transfusion.to_patches(c, white), 1.0, rtol=1e-5)
