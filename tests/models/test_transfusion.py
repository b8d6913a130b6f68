"""Causality, isolation of packed documents, and the losses of the transfusion family."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batch import VOCABULARY, random_batch
from small import make, transfusion_config

from mmjax import diffusion, losses
from mmjax.batch import IMAGE, TEXT, causal_mask, mixed_mask, slot_weight
from mmjax.error import UserError
from mmjax.layers.patch import to_signal
from mmjax.mesh import Rules, make_mesh
from mmjax.models import denoise as noisy_pass
from mmjax.models import transfusion

MODEL, PARAMS = make(transfusion_config())
LOSS = jax.jit(MODEL.loss)


@jax.jit
def hidden(batch, noisy, t):
    return noisy_pass.denoise(MODEL.parts, PARAMS, batch, noisy, t)[0]


def outputs(batch, shift=None):
    """Decoder outputs; `shift` (row, slot) disturbs one picture."""
    noisy = np.array(to_signal(batch.pixels))
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
    c = transfusion_config({"norm": norm}, prediction="velocity", signal_mean=0.0, signal_std=1.0)
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
    c = transfusion_config()
    many = jax.random.split(jax.random.key(0), 500)
    after = np.asarray(noisy_pass.noise_level(c, many, jnp.ones((500, 2), bool)))
    free = np.asarray(noisy_pass.noise_level(c, many, jnp.zeros((500, 2), bool)))
    assert after.min() >= 0.5 and after.max() < 1
    assert free.min() < 0.2 and abs(np.median(free) - 0.5) < 0.05
    assert np.unique(free).size == free.size  # one level a picture
    # What follows a clean copy never sees the noise, so there is nothing to limit.
    clean = transfusion_config(context="clean")
    whole = noisy_pass.noise_level(clean, many, jnp.ones((500, 2), bool))
    np.testing.assert_array_equal(whole, free)
    low = noisy_pass.paced(clean, jnp.full(1, 0.01), jnp.ones(1, bool))
    assert low[0] < 0.2


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
    model, _ = make(transfusion_config(changes))

    def grads(m, p):
        return jax.grad(lambda p: losses.total(m.loss(p, batch, keys(batch)), m.weights))(p)

    same, other = (
        jax.jit(lambda p: grads(model, p))(PARAMS),
        jax.jit(lambda p: grads(MODEL, p))(PARAMS),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), same, other)


@pytest.mark.parametrize("changes", [{"norm": "post"}, {"qk_norm": False}, {"kv_heads": 4}])
def test_options_of_the_decoder_change_the_output(changes):
    model, params = make(transfusion_config(changes))
    batch = random_batch(2)
    mine = LOSS(PARAMS, batch, keys(batch))["text"].sum
    assert (
        abs(float(jax.jit(model.loss)(params, batch, keys(batch))["text"].sum) - float(mine)) > 1e-4
    )


def test_dropout_needs_keys_and_changes_the_loss():
    model, _ = make(transfusion_config({"dropout": 0.5}))
    batch = random_batch(2)
    a, b = (float(jax.jit(model.loss)(PARAMS, batch, keys(batch, s))["text"].sum) for s in (0, 1))
    plain = float(LOSS(PARAMS, batch, keys(batch))["text"].sum)
    assert a != plain and a != b


@pytest.mark.parametrize("mask", ["both", "causal"])
@pytest.mark.parametrize("context", ["noisy", "clean"])
def test_flops_count_what_a_loop_counts(context, mask):
    model, _ = make(transfusion_config(context=context, picture_mask=mask))
    batch = random_batch(4)
    d = MODEL.parts.config.decoder
    allowed = np.asarray((mixed_mask if mask == "both" else causal_mask)(batch))
    patch = np.asarray(batch.modality == IMAGE)
    copied = context == "clean"  # a copy sees as many as its original
    pairs = int(allowed.sum() + copied * allowed[patch].sum())
    tokens = int((batch.segment > 0).sum() + copied * patch.sum())
    layer = tokens * (2 * 32 * 8 * (4 + 2 * 2) + 2 * 32 * 32 + 6 * 32 * 48) + 4 * pairs * 32
    words = int((np.asarray(transfusion.target_weight(batch)) > 0).sum())
    pictures = int(batch.image.max(1).sum())
    times = pictures * (1 + copied)  # that pictures go in
    ends = 2 * (pictures + times) * 4 * 12 * 32 + 2 * times * (256 * 32 + 32 * 32)
    want = d.depth * layer + 2 * words * 32 * VOCABULARY.size + ends
    assert model.flops(batch) == want
    assert patch.any() and words


def test_pictures_are_standardised_and_back():
    c = transfusion_config(signal_mean=0.3, signal_std=0.7)
    model, params = make(c)
    batch = random_batch(0)
    signal = model.parts.signal(params, batch)
    back = model.parts.picture(params, signal.reshape(-1, 4, 4, 3))
    np.testing.assert_array_equal(back, batch.pixels.reshape(-1, 4, 4, 3))
    white = batch._replace(pixels=np.full_like(batch.pixels, 255))
    np.testing.assert_allclose(model.parts.signal(params, white), 1.0, rtol=1e-5)


WAYS = {
    "ddpm": dict(path="cosine", prediction="noise", target="noise", time_std=0.0),
    "velocity": dict(prediction="velocity"),
    "unet": dict(unet=8),
    "causal": dict(picture_mask="causal"),
    "clean": dict(context="clean"),
    "shifted": dict(time_shift=3.0),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_form_has_finite_gradients_that_differ_from_the_plain_one(way):
    batch = random_batch(3)

    def objective(model):
        return lambda p: losses.total(model.loss(p, batch, keys(batch)), model.weights)

    model, params = make(transfusion_config(**WAYS[way]))
    value, grads = jax.jit(jax.value_and_grad(objective(model)))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    moved = [float(np.abs(x).max()) for x in jax.tree.leaves(grads)]
    assert min(moved) > 0 or way == "clean"
    plain = losses.total(LOSS(PARAMS, batch, keys(batch)), MODEL.weights)
    assert abs(float(value) - float(plain)) > 1e-4


def test_ddpm_learns_noise_and_a_perfect_network_has_no_loss():
    """|e - e_theta|^2 at uniform times; with e itself as the output it vanishes."""
    c = transfusion_config(**WAYS["ddpm"])
    model, params = make(c)
    batch = random_batch(3)
    clean = model.parts.signal(params, batch)
    noise = jax.random.normal(jax.random.key(2), clean.shape)
    t = jnp.full(clean.shape[:2], 0.4)
    noisy = diffusion.mix(c.path, clean, noise, noisy_pass.wide(t))
    _, found = noisy_pass.denoise(model.parts, params, batch, noisy, t)
    a, s = np.sin(0.2 * np.pi), np.cos(0.2 * np.pi)
    np.testing.assert_allclose(found.data, (noisy - s * found.noise) / a, atol=1e-4)

    def loss(model, output=None):
        """The image term and the network's output, perhaps put by hand."""
        seen = []

        def patch_out(*args):
            seen.append(model.parts.patch_out(*args) if output is None else output)
            return seen[-1]

        parts = model.parts._replace(patch_out=patch_out)
        keys_ = keys(batch)
        term = transfusion.loss_at(model.parts.config, parts, params, batch, t, keys_, keys_)
        return term["image"], seen[0]

    drawn = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(keys(batch))
    term, output = loss(model)
    weight = np.asarray(slot_weight(batch))
    square = (np.asarray(drawn - output) ** 2).mean((2, 3, 4))
    np.testing.assert_allclose(term.sum, (weight * square).sum(), rtol=1e-5)
    assert float(loss(model, drawn)[0].sum) < 1e-9 < float(term.sum)
    velocity, _ = make(transfusion_config(**WAYS["ddpm"] | {"target": "velocity"}))
    assert abs(float(loss(velocity)[0].sum) / float(term.sum) - 1) > 0.1
    uniform = np.asarray(noisy_pass.noise_level(c, keys(batch), jnp.zeros((2, 400), bool)))
    assert abs(uniform.mean() - 0.5) < 0.03 and abs(uniform.std() - 12**-0.5) < 0.02


def test_a_mask_that_is_causal_in_pictures_hides_later_patches():
    batch = random_batch(3)
    for way, hidden in ((WAYS["causal"], True), ({}, False)):
        model, params = make(transfusion_config(**way))
        signal = np.array(model.parts.signal(params, batch))
        level = jnp.full(signal.shape[:2], 0.7)
        column = int(np.argmax(batch.image[0] == 1))
        changed = signal.copy()
        changed[0, 0, 2:, 2:] += 1.0  # the last patch
        run = jax.jit(partial(noisy_pass.denoise, model.parts))
        before, after = (run(params, batch, x, level)[0] for x in (signal, changed))
        difference = np.abs(np.asarray(after - before)).max(-1)[0]
        assert (difference[column : column + 3] == 0).all() == hidden
        assert difference[column + 3] > 0


def test_clean_context_shows_noise_to_nobody_else():
    """Text sees pictures as they are; a picture's copy sees itself and what stands before it."""
    model, params = make(transfusion_config(context="clean"))
    batch = random_batch(3)
    signal = np.array(model.parts.signal(params, batch))
    t = jnp.full(signal.shape[:2], 0.3)
    run = jax.jit(lambda b, x: noisy_pass.denoise(model.parts, params, b, x, t))
    hidden, found = run(batch, signal)
    noisy = signal.copy()
    noisy[0, 0] += 1.0
    other, changed = run(batch, noisy)
    held = batch.segment > 0
    np.testing.assert_array_equal(hidden[held], other[held])
    difference = np.abs(np.asarray(changed.velocity - found.velocity)).max((2, 3, 4))
    assert difference[0, 0] > 0 and difference[0, 1:].max() == 0 and difference[1].max() == 0
    # What stands before reaches the copy, what stands behind does not.
    first = int(np.argmax(batch.image[0] == 1))
    for column, reaches in ((first - 1, True), (first + 5, False)):
        tokens = batch.tokens.copy()
        tokens[0, column] = (tokens[0, column] + 3) % VOCABULARY.size
        moved = run(batch._replace(tokens=tokens), signal)[1].velocity
        assert (np.abs(np.asarray(moved - found.velocity))[0, 0].max() > 0) == reaches


def test_with_a_clean_picture_both_contexts_agree():
    """At t = 1 the copy is the original: same losses, whether it stands beside or in its place."""
    batch = random_batch(3)
    models = [make(transfusion_config(context=name)) for name in ("noisy", "clean")]
    signal = models[0][0].parts.signal(models[0][1], batch)
    for t, alike in ((1.0, True), (0.5, False)):
        level = jnp.full(signal.shape[:2], t)
        noise = jax.random.normal(jax.random.key(0), signal.shape)
        noisy = diffusion.mix("flow", signal, noise, noisy_pass.wide(level))
        (h, a), (g, b) = (noisy_pass.denoise(m.parts, p, batch, noisy, level) for m, p in models)
        held = batch.segment > 0
        used = np.asarray(transfusion.slot_weight(batch)) > 0
        assert np.allclose(h[held], g[held], atol=2e-5) == alike
        if alike:
            np.testing.assert_allclose(a.data[used], b.data[used], atol=2e-5)


def test_names_and_sizes_are_checked():
    for changes, words in (
        ({"path": "line"}, "model.path='line' is unknown; have: flow, cosine"),
        ({"context": "old"}, "model.context='old' is unknown; have: noisy, clean"),
        ({"picture_mask": "none"}, "model.picture_mask='none' is unknown; have: both, causal"),
        ({"patch": 3}, "model.patch=3 must divide model.image=4"),
        ({"unet": -8}, "model.unet=-8 must be at least 0"),
        ({"patch": 1, "unet": 8}, "model.unet=8 needs patches of 2, 4, 8"),
        ({"context_time": 500.0}, "model.context_time=500.0 must be at least 0, which is noise"),
        ({"time_std": -1.0}, "model.time_std=-1.0 must be at least 0"),
        ({"time_shift": 0.0}, "model.time_shift=0.0 must be above 0"),
        ({"signal_std": 0.0}, "model.signal_std=0.0 must be above 0"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            transfusion_config(**changes)
