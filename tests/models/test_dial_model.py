"""The dial's family at its ends and between: what it must equal, and what must not leak."""

from dataclasses import replace
from itertools import product
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dials import CODE_MODEL, CODE_PARAMS, CODED, CODES, PARAMS, PATCHES, RULES, codes, patches
from hypothesis import given, settings
from hypothesis import strategies as st
from random_batch import VOCABULARY, random_batch
from repeats import repeats
from small import make, transfusion_config

from mmjax import dial, losses
from mmjax.batch import causal_mask, mixed_mask
from mmjax.error import UserError
from mmjax.models import blocks, transfusion
from mmjax.models import denoise as noisy_pass
from mmjax.models import dial as family


def keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), len(batch.tokens))


def code_batch(seed, trained=0.9):
    """Documents of words and codes, a share of it trained on."""
    batch = random_batch(seed, length=64, slots=2, patches=CODES.tokens)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(CODED.codes, CODED.size, batch.tokens.shape)
    words = np.where(batch.tokens >= 7, batch.tokens + 2, batch.tokens)
    return batch._replace(
        tokens=np.where(batch.image > 0, drawn, words).astype(np.int32),
        weight=batch.weight * (rng.random(batch.weight.shape) < trained),
        pixels=np.zeros((len(batch.tokens), 2, 0, 0, 3), np.uint8),
    )


BATCH, CODE_BATCH = random_batch(0), code_batch(3)


def terms(model, params, batch, seed=0):
    """As XLA compiles by default: what equals bit for bit is then fused alike."""
    loss = jax.jit(model.loss, compiler_options={"xla_cpu_use_fusion_emitters": True})
    return loss(params, batch, keys(batch, seed))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name].sum, b[name].sum, err_msg=name)
        np.testing.assert_array_equal(a[name].count, b[name].count, err_msg=name)


@pytest.mark.parametrize(
    "changes", [{}, {"context": "clean"}, *repeats({"time_std": 0.0, "path": "cosine"})]
)
def test_one_and_zero_are_transfusion(changes):
    base = transfusion.build(replace(PATCHES, **changes), VOCABULARY, RULES)
    want = terms(base, PARAMS, BATCH)
    for form in dial.FORMS:
        assert_equal(terms(patches(1.0, 0.0, form, **changes), PARAMS, BATCH), want)
    wrong = terms(patches(0.6, 0.0, **changes), PARAMS, BATCH)
    assert float(wrong["text"].sum) != float(want["text"].sum)
    assert float(wrong["text"].count) == float(want["text"].count)
    wrong = terms(patches(1.0, 0.4, **changes), PARAMS, BATCH)
    assert float(wrong["image"].sum) != float(want["image"].sum)


def test_one_and_one_with_codes_are_chameleon():
    want = terms(CODE_MODEL, CODE_PARAMS, CODE_BATCH)
    for form in dial.FORMS:
        assert_equal(terms(codes(1.0, 1.0, form), CODE_PARAMS, CODE_BATCH), want)
    for wrong in (codes(0.9, 1.0), codes(1.0, 0.9)):
        found = terms(wrong, CODE_PARAMS, CODE_BATCH)
        assert float(found["tokens"].sum) != float(want["tokens"].sum)
        assert float(found["tokens"].count) == float(want["tokens"].count)


def test_the_parameters_are_the_bases_and_one_more():
    for model, base in ((patches(0.3, 0.3), make(PATCHES)[0]), (codes(0.3, 0.3), CODE_MODEL)):
        shapes, plain = (jax.eval_shape(m.init, jax.random.key(0)) for m in (model, base))
        assert shapes.pop("mask").shape == (32,)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, plain)
        assert jax.tree.structure(plain | {"mask": 0}) == jax.tree.structure(
            model.specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec)
        )
        assert model.frozen == base.frozen and model.weights == base.weights
    key = jax.random.key(3)
    np.testing.assert_array_equal(model.init(key)["head"]["w"], CODE_MODEL.init(key)["head"]["w"])


# One document, BOS and n words, all of them one span.
N = 4
WORDS = random_batch(1, rows=1, length=N + 1)._replace(
    tokens=np.array([[1, 9, 17, 30, 12]], np.int32),
    modality=np.zeros((1, N + 1), np.int32),
    segment=np.ones((1, N + 1), np.int32),
    position=np.arange(N + 1, dtype=np.int32)[None],
    image=np.zeros((1, N + 1), np.int32),
    weight=np.array([[0.0] + [1.0] * N], np.float32),
    pixels=np.zeros((1, 1, 4, 4, 3), np.uint8),
)
MEMBER = jnp.asarray(WORDS.weight > 0)


def drawn_at(alpha, s, masked):
    """A draw with its clock and masks [n] put by hand; every alpha the general way."""
    now = dial.moment("ramp", alpha, dial.spans(WORDS, MEMBER), jnp.full(MEMBER.shape, s))
    masked = jnp.concatenate([jnp.zeros(1, bool), masked])[None]
    return family.Draw(now, MEMBER, masked)


def sum_at(alpha, weight="elbo", schedule="linear"):
    """(s, masked [n]) -> the loss's sum over the document, under jit."""
    model = patches(alpha, 0.0, weight=weight, schedule=schedule)
    c, parts = model.parts.config, model.parts

    @jax.jit
    @jax.vmap
    def found(s, masked):
        drawn = drawn_at(alpha, s, masked)
        return family.loss_of(c, parts, PARAMS, WORDS, drawn, keys(WORDS))["text"].sum

    return found


def expected(alpha, points, shares, schedule="linear"):
    """The loss, exactly over masks, by quadrature over s."""
    states = np.array(list(product([True, False], repeat=N)))
    s = np.repeat(points, len(states)).astype(np.float32)
    masked = np.tile(states, (len(points), 1))
    window = dial.windows("ramp", alpha, jnp.arange(N)[None], jnp.full((1, N), N))
    time = np.asarray(dial.local_time(s[:, None], window), np.float64)
    clean = time if schedule == "linear" else 1 - np.cos(np.pi * time / 2)
    chance = np.where(masked, 1 - clean, clean).prod(1)
    share = np.repeat(shares, len(states)) * chance
    return (share * np.asarray(sum_at(alpha, schedule=schedule)(s, masked), np.float64)).sum()


@jax.jit
def nll_under(mask, masked, tokens):
    """-log p [n] of each token from the row before it; mask [l, l], masked [l] hide tokens."""
    base = make_parts()
    x = base.embed(PARAMS, tokens[None])
    x = jnp.where(masked[None, :, None], PARAMS["mask"][None, None], x)
    hidden, _ = base.run(PARAMS, x, mask[None], WORDS.position)
    logits = (hidden[0, :-1] @ PARAMS["head"]["w"]).astype(jnp.float32)
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, tokens[1:, None], axis=1)[:, 0], logits


def make_parts():
    return transfusion.build(PATCHES, VOCABULARY, RULES).parts


TOKENS = jnp.asarray(WORDS.tokens[0])


def test_discrete_alpha_one_is_autoregression():
    causal = jnp.asarray(np.tril(np.ones((N + 1, N + 1), bool)))
    nll, logits = nll_under(causal, jnp.zeros(N + 1, bool), TOKENS)
    points = (np.arange(N) + 0.5) / N
    np.testing.assert_allclose(expected(1.0, points, np.full(N, 1 / N)), nll.sum(), rtol=1e-5)
    fast = terms(patches(1.0, 0.0), PARAMS, WORDS)["text"]
    np.testing.assert_allclose(fast.sum, nll.sum(), rtol=1e-5)
    assert fast.count == N
    # At each moment the active token's logits are those of teacher forcing, to the last bit.
    for k, s in enumerate(points):
        for reveal in (False, True):
            masked = (np.arange(N) > k) | ((np.arange(N) == k) & ~np.array(reveal))
            drawn = drawn_at(1.0, np.float32(s), jnp.asarray(masked))
            assert np.flatnonzero(np.asarray(drawn.now.active)) == [k + 1]
            seen = dial.visible(WORDS, drawn.now, drawn.discrete)[0]
            _, found = nll_under(seen, drawn.masked[0], TOKENS)
            np.testing.assert_array_equal(found[k], logits[k])
        wide = drawn_at(0.5, np.float32(s), jnp.asarray(masked))
        seen = dial.visible(WORDS, wide.now, wide.discrete)[0]
        _, found = nll_under(seen, wide.masked[0], TOKENS)
        if np.asarray(wide.now.active).sum() > 1:
            assert np.abs(np.asarray(found - logits)[k]).max() > 1e-3
    assert abs(expected(0.5, points, np.full(N, 1 / N)) - float(nll.sum())) > 1e-2


def test_discrete_alpha_zero_is_masked_diffusion_and_any_order():
    """The mean over all orders, from the network's answers to each set of revealed tokens."""
    full = np.ones((N + 1, N + 1), bool)
    full[0, 1] = False  # the anchor does not see the token it predicts
    states = np.array(list(product([True, False], repeat=N)))
    hide = jax.vmap(nll_under, (None, 0, None))
    padded = np.pad(states, ((0, 0), (1, 0)))
    nll = np.asarray(hide(jnp.asarray(full), jnp.asarray(padded), TOKENS)[0], np.float64)
    orders = 0.0
    for masked, losses_of in zip(states, nll, strict=True):
        k = int((~masked).sum())
        if k < N:
            share = factorial(k) * factorial(N - 1 - k) / factorial(N)
            orders += share * losses_of[masked].sum()
    # In s the integrand is a polynomial of degree 3: Gauss' rule with 4 points is exact.
    x, w = np.polynomial.legendre.leggauss(4)
    np.testing.assert_allclose(expected(0.0, (x + 1) / 2, w / 2), orders, rtol=1e-5)
    # Masks by another law, weighted by that law's rate, are the same bound.
    x, w = np.polynomial.legendre.leggauss(24)
    cosine = expected(0.0, (x + 1) / 2, w / 2, "cosine")
    np.testing.assert_allclose(cosine, orders, rtol=1e-4)
    peeking = np.asarray(hide(jnp.ones_like(full), jnp.asarray(padded), TOKENS)[0])
    assert np.abs(peeking - nll)[:, 0].max() > 1e-3


def test_without_the_bounds_weight_every_masked_token_counts_two():
    """Half of the tokens are masked over all times: a sum of the size of the bound's."""
    s = jnp.array([0.25, 0.75])
    masked = jnp.ones((2, N), bool)
    bound, plain = (np.asarray(sum_at(0.0, w)(s, masked)) for w in ("elbo", "none"))
    np.testing.assert_allclose(bound, plain / 2 / (1 - np.array([0.25, 0.75])), rtol=1e-5)


def both_ways(batch):
    """[b, l, l]: causal, pictures both ways, BOI seeing all of its codes but the first."""
    allowed = np.zeros((*batch.tokens.shape, batch.tokens.shape[1]), bool)
    for b, i, j in np.ndindex(*allowed.shape):
        image, ahead = batch.image[b], batch.image[b][min(i + 1, len(batch.image[b]) - 1)]
        inside = image[i] == image[j] > 0
        anchor = image[i] != ahead and image[j] == ahead > 0 and j > i + 1
        same = batch.segment[b, i] == batch.segment[b, j]
        allowed[b, i, j] = same and (j <= i or inside or anchor)
    return allowed


def test_one_and_zero_over_codes_is_masked_pictures_behind_autoregressive_text():
    """Show-o (arXiv 2408.12528): cosine masks, no weight of the bound; read out shifted here."""
    batch, model = code_batch(5, trained=1.0), codes(1.0, 0.0, "ramp", "none", "cosine")
    found = terms(model, CODE_PARAMS, batch, 2)
    drawn = jax.jit(lambda k: family.draw(model.parts.config, batch, CODED, k))(keys(batch, 2))
    masked = np.asarray(drawn.masked)
    hidden = np.asarray(code_hidden(batch, drawn, both_ways(batch)), np.float32)
    logits = hidden[:, :-1] @ np.asarray(CODE_PARAMS["head"]["w"], np.float32)
    nll = -jax.nn.log_softmax(logits)
    nll = np.take_along_axis(np.asarray(nll), batch.tokens[:, 1:, None], -1)[..., 0]
    weight = np.asarray(batch.weight[:, 1:] * (batch.segment[:, 1:] == batch.segment[:, :-1]))
    code = batch.image[:, 1:] > 0
    pictures = 0.5 * np.pi * (nll * weight * code * masked[:, 1:]).sum()
    words = (nll * weight * ~code).sum()
    assert 0 < masked.sum() < code.sum() and not masked[:, 1:][~code].any()
    np.testing.assert_allclose(found["image/nll"].sum, pictures, rtol=2e-5)
    np.testing.assert_allclose(found["text/nll"].sum, words, rtol=2e-5)
    linear = terms(codes(1.0, 0.0, "ramp", "none"), CODE_PARAMS, batch, 2)
    assert abs(float(linear["image/nll"].sum) / pictures - 1) > 1e-3


def spans_of(batch, discrete):
    """[b][l]: names of runs of masked text within a document, and of codes; None elsewhere."""
    found = []
    for b, row in enumerate(batch.image):
        names, run = [], 0
        for j, image in enumerate(row):
            run += j == 0 or discrete[b, j] != discrete[b, j - 1] or image != row[j - 1]
            run += j > 0 and batch.segment[b, j] != batch.segment[b, j - 1]
            names.append(run if discrete[b, j] else None)
        found.append(names)
    return found


def test_zero_and_zero_over_codes_is_masked_diffusion_of_both():
    """MMaDA, UniDisc: every span both ways at one time, 1 / (1 - t) a masked token."""
    batch, model = code_batch(5), codes(0.0, 0.0)
    found = terms(model, CODE_PARAMS, batch, 2)
    drawn = jax.jit(lambda k: family.draw(model.parts.config, batch, CODED, k))(keys(batch, 2))
    masked, discrete = np.asarray(drawn.masked), np.asarray(drawn.discrete)
    names, allowed = spans_of(batch, discrete), np.zeros((*batch.tokens.shape, 64), bool)
    for b, i, j in np.ndindex(*allowed.shape):
        own, there = names[b][i], names[b][j]
        ahead = names[b][i + 1] if i < 63 else None
        edge = ahead is not None and own in (None, ahead) and there == ahead and j != i + 1
        same = batch.segment[b, i] == batch.segment[b, j]
        allowed[b, i, j] = same and (j <= i or (own is not None and own == there) or edge)
    hidden = np.asarray(code_hidden(batch, drawn, allowed), np.float32)
    logs = jax.nn.log_softmax(hidden[:, :-1] @ np.asarray(CODE_PARAMS["head"]["w"], np.float32))
    nll = -np.take_along_axis(np.asarray(logs), batch.tokens[:, 1:, None], -1)[..., 0]
    weight = np.asarray(batch.weight[:, 1:] * (batch.segment[:, 1:] == batch.segment[:, :-1]))
    left = np.maximum(1 - np.asarray(drawn.now.time)[:, 1:], family.LEAST)
    share = np.where(discrete[:, 1:], masked[:, 1:] / left, 1.0) * nll * weight
    code = batch.image[:, 1:] > 0
    for name, mine in (("image", code), ("text", ~code)):
        assert 0 < masked[:, 1:][mine].sum() < (discrete[:, 1:] & mine).sum()
        np.testing.assert_allclose(found[f"{name}/nll"].sum, share[mine].sum(), rtol=2e-5)
    causal_only = np.asarray(code_hidden(batch, drawn, causal_mask(batch)), np.float32)
    assert np.abs(causal_only - hidden).max() > 1e-2


LAWS = {"linear": lambda t: 1 - t, "cosine": lambda t: np.cos(np.pi * t / 2)}


@pytest.mark.parametrize("schedule", dial.SCHEDULES)
def test_masks_follow_their_schedule(schedule):
    many = jax.tree.map(lambda x: np.repeat(x, 4000, axis=0), WORDS)
    c = patches(0.0, 0.0, weight="none", schedule=schedule).parts.config
    drawn = jax.jit(lambda k: family.draw(c, many, VOCABULARY, k))(keys(many))
    time, masked = np.asarray(drawn.now.time)[:, 1], np.asarray(drawn.masked)[:, 1:]
    for low in (0.0, 0.25, 0.5, 0.75):
        here = (time >= low) & (time < low + 0.25)
        np.testing.assert_allclose(
            masked[here].mean(), LAWS[schedule](time[here]).mean(), atol=0.03
        )
    np.testing.assert_allclose(np.asarray(family.coefficient(c, drawn))[:, 1:].mean(), 1, atol=0.03)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("form", dial.FORMS)
def test_every_token_counts_one_on_average(alpha, form):
    many = jax.tree.map(lambda x: np.repeat(x, 4000, axis=0), WORDS)
    c = patches(alpha, 0.0, form).parts.config
    drawn = jax.jit(lambda k: family.draw(c, many, VOCABULARY, k))(keys(many))
    share = np.asarray(family.coefficient(c, drawn))
    assert (share[:, 0] == 1).all()
    # Clipping 1 - t costs a thousandth; the draws have heavy tails, so the check is by the part
    # below 20, whose mean is 1 - 1 / (20 w).
    width = float(np.asarray(dial.windows(form, alpha, jnp.arange(N), jnp.full((N,), N)).width)[0])
    small = np.where(share[:, 1:] < 20, share[:, 1:], 0)
    np.testing.assert_allclose(small.mean(0), 1 - 1 / (20 * width), atol=0.15)
    assert share[:, 1:].std() > 0.3


def reachable(allowed, depth):
    reach = allowed.copy()
    for _ in range(depth):
        reach |= np.einsum("bij,bjk->bik", reach.astype(int), allowed.astype(int)) > 0
    return reach


def seen_at(model, batch, seed):
    """A draw, and the mask of its moment."""
    drawn = family.draw(model.parts.config, batch, model.parts.vocabulary, keys(batch, seed))
    posed = family.posed(model.parts.config, model.parts.base, batch, drawn)
    return drawn, np.asarray(posed.mask(batch))


@jax.jit
def code_hidden(batch, drawn, mask):
    base = family.posed(codes(0.5, 0.5).parts.config, CODE_MODEL.parts, batch, drawn)
    x = base.embed(CODE_PARAMS, batch.tokens)
    return base.run(CODE_PARAMS, x, mask, batch.position)[0]


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.data())
def test_codes_and_words_do_not_leak(seed, alpha, data):
    batch = code_batch(seed)
    model = codes(alpha, 1.0 - alpha, data.draw(st.sampled_from(dial.FORMS)))
    drawn, mask = seen_at(model, batch, seed)
    reach = reachable(mask, CODES.decoder.depth)
    number, masked = np.asarray(drawn.now.spans.number), np.asarray(drawn.masked)
    # Spans see no later span, and given or finished rows nothing ahead but as an anchor.
    for r in range(len(mask)):
        a, b = np.meshgrid(number[r], number[r], indexing="ij")
        assert not reach[r][(a > 0) & (b > a)].any()
    before = np.asarray(code_hidden(batch, drawn, mask))
    held = np.argwhere(batch.segment > 0)
    r, j = held[data.draw(st.integers(0, len(held) - 1))]
    tokens = batch.tokens.copy()
    tokens[r, j] = (tokens[r, j] + 7) % CODED.size
    change = np.abs(before - np.asarray(code_hidden(batch._replace(tokens=tokens), drawn, mask)))
    change = change.max(-1)
    mine = np.arange(len(mask)) == r
    assert (change[~mine] == 0).all()
    assert (change[r][~reach[r, :, j] & (batch.segment[r] > 0)] == 0).all()
    assert (change[r, j] == 0) == masked[r, j]  # a hidden token is known to nobody
    if masked[r, j]:
        assert (change == 0).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.data())
def test_patches_do_not_leak(seed, alpha, data):
    batch = random_batch(seed)
    model = patches(1.0 - alpha, alpha, data.draw(st.sampled_from(dial.FORMS)))
    drawn, mask = seen_at(model, batch, seed)
    reach = reachable(mask, 2)
    x = np.random.default_rng(seed).normal(size=(*batch.tokens.shape, 32)).astype(np.float32)
    held = np.argwhere(batch.image > 0)
    if not len(held):
        return
    r, j = held[data.draw(st.integers(0, len(held) - 1))]
    other = x.copy()
    other[r, j] += 1
    change = np.abs(np.asarray(ran(x, mask, batch.position) - ran(other, mask, batch.position)))
    change = change.max(-1)
    assert (change[r][~reach[r, :, j] & (batch.segment[r] > 0)] == 0).all() and change[r, j] > 0
    picture = np.flatnonzero(batch.image[r] == batch.image[r, j])
    now = np.asarray(drawn.now.active)[r]
    if alpha == 0.0:
        assert (change[r, picture] > 0).all()
    if alpha == 1.0:
        assert now[picture].sum() == 1 and (change[r, picture[picture < j]] == 0).all()


@jax.jit
def ran(x, mask, position):
    return make_parts().run(PARAMS, x, mask, position)[0]


def picture_row(seed=0):
    """BOS BOI patches EOI EOS; nothing follows the picture, so its times are free."""
    batch = random_batch(seed, rows=1, length=8, slots=1)
    kind = np.array([[0, 0, 1, 1, 1, 1, 0, 0]], np.int32)
    return batch._replace(
        tokens=np.array([[1, 3, 0, 0, 0, 0, 4, 2]], np.int32), modality=kind, image=kind,
        segment=np.ones((1, 8), np.int32), position=np.arange(8, dtype=np.int32)[None],
        weight=np.array([[0, 1, 1, 1, 1, 1, 1, 1]], np.float32),
        pixels=np.random.default_rng(seed).integers(0, 256, (1, 1, 4, 4, 3)).astype(np.uint8),
    )  # fmt: skip


PICTURE = picture_row()
NOISE = jax.random.normal(jax.random.key(2), (1, 1, 4, 4, 3))


def estimate_at(mask, t, noise=NOISE):
    """The velocity [1, 1, 4, 4, 3] with patches at times t [1, 1, 4], under a mask."""
    base = make_parts()._replace(mask=lambda _: mask)
    clean = base.signal(PARAMS, PICTURE)
    level = noisy_pass.over(PATCHES, t)
    noisy = level * clean + (1 - level) * noise
    return noisy_pass.denoise(base, PARAMS, PICTURE, noisy, t)[1].velocity


def by_patch(x):
    """[1, 1, 4, 4, 3] -> [4, 12]."""
    return np.asarray(x).reshape(2, 2, 2, 2, 3).transpose(0, 2, 1, 3, 4).reshape(4, 12)


def test_continuous_alpha_zero_is_one_time_for_all_patches():
    held = dial.spans(PICTURE, PICTURE.image > 0)
    now = dial.moment("ramp", 0.0, held, jnp.full((1, 8), 0.3))
    mask = dial.visible(PICTURE, now, jnp.zeros((1, 8), bool))
    np.testing.assert_array_equal(mask, mixed_mask(PICTURE))
    each = by_patch(estimate_at(mask, now.time[:, None, 2:6]))
    np.testing.assert_allclose(each, by_patch(estimate_at(mask, jnp.full((1, 1), 0.3))), atol=1e-5)
    apart = by_patch(estimate_at(mask, jnp.array([[[0.3, 0.3, 0.3, 0.5]]])))
    assert np.abs(apart - each).max() > 1e-2


def test_continuous_alpha_one_is_next_patch_flow_matching_in_two_streams():
    """Every moment of the single clock against one pass over [clean ; noisy], block by block."""
    held = dial.spans(PICTURE, PICTURE.image > 0)
    u = jnp.array([0.2, 0.4, 0.6, 0.8])
    model = patches(1.0, 1.0, context="clean", time_std=0.0)
    c = model.parts.config
    drawn = family.draw(c, PICTURE, VOCABULARY, keys(PICTURE))
    base = family.posed(c, model.parts.base, PICTURE, drawn)
    _, sight = blocks.patches(c.image_alpha, PICTURE, 4, keys(PICTURE))
    clean, t = base.signal(PARAMS, PICTURE), u[None, None]
    level = noisy_pass.over(c.transfusion, t)
    noisy = level * clean + (1 - level) * NOISE
    two = by_patch(noisy_pass.denoise(base, PARAMS, PICTURE, noisy, t, sight=sight)[1].velocity)
    for k in range(4):
        now = dial.moment("ramp", 1.0, held, jnp.full((1, 8), (k + u[k]) / 4))
        mask = dial.visible(PICTURE, now, jnp.zeros((1, 8), bool))
        one = by_patch(estimate_at(mask, now.time[:, None, 2:6]))
        np.testing.assert_allclose(one[k], two[k], rtol=1e-4, atol=1e-4)
        # Unstarted patches are noise that nobody sees; finished ones are as they are.
        later = NOISE.at[0, 0, 2:].add(3.0) if k < 2 else NOISE
        seen = by_patch(estimate_at(mask, now.time[:, None, 2:6], later))
        np.testing.assert_array_equal(seen[k], one[k])
        wide = by_patch(estimate_at(mixed_mask(PICTURE), now.time[:, None, 2:6]))
        assert k == 3 or np.abs(wide[k] - two[k]).max() > 1e-3


@pytest.mark.parametrize("s", [0.2, 0.45, 0.8])
def test_copies_at_one_clock_answer_as_the_picture_in_the_row(s):
    """With `context="clean"` and a ramp; what is clean in the row is so in the copies."""
    held = dial.spans(PICTURE, PICTURE.image > 0)
    now = dial.moment("ramp", 0.7, held, jnp.full((1, 8), s))
    t, active = now.time[:, None, 2:6], now.active[:, None, 2:6]
    assert 1 < active.sum() < 4
    row = by_patch(estimate_at(dial.visible(PICTURE, now, jnp.zeros((1, 8), bool)), t))
    model = patches(1.0, 0.7, context="clean")
    c, base = model.parts.config, model.parts.base
    drawn = family.Draw(now, jnp.zeros((1, 8), bool), jnp.zeros((1, 8), bool))
    posed = family.posed(c, base, PICTURE, drawn)
    np.testing.assert_array_equal(posed.mask(PICTURE), causal_mask(PICTURE))
    level = noisy_pass.over(PATCHES, t)
    noisy = level * base.signal(PARAMS, PICTURE) + (1 - level) * NOISE

    def beside(active):
        sight = blocks.beside_active(PICTURE, active)
        found = noisy_pass.denoise(posed, PARAMS, PICTURE, noisy, t, sight=sight)[1]
        return by_patch(found.velocity)

    np.testing.assert_allclose(beside(active), row, rtol=1e-3, atol=1e-3)
    assert np.abs(beside(jnp.zeros_like(active)) - row).max() > 1e-2


def test_clean_pictures_in_the_row_are_read_as_the_dial_leaves_them():
    for alpha, want in ((0.0, mixed_mask), (0.4, causal_mask), (1.0, causal_mask)):
        for form in dial.FORMS:
            _, mask = seen_at(patches(1.0, alpha, form, context="clean"), BATCH, 0)
            np.testing.assert_array_equal(mask, want(BATCH))


@pytest.mark.parametrize(("form", "alpha"), [("ramp", 1.0), ("block", 0.5)])
def test_two_streams_have_the_mean_of_one_clock(form, alpha):
    one = patches(1.0, alpha, form, time_std=0.0)
    two = patches(1.0, alpha, form, time_std=0.0, context="clean")

    def samples(model):
        def found(key):
            return model.loss(PARAMS, PICTURE, key[None])["image"].sum

        return np.asarray(jax.jit(jax.vmap(found))(jax.random.split(jax.random.key(4), 3000)))

    a, b = samples(one), samples(two)
    error = (a.var() / a.size + b.var() / b.size) ** 0.5
    assert abs(a.mean() - b.mean()) < 4 * error
    assert b.var() < 0.7 * a.var()


def test_a_given_document_is_read_as_the_dial_left_it():
    for alpha, want in ((0.0, mixed_mask), (0.5, causal_mask), (1.0, causal_mask)):
        for text in (0.5, 1.0):
            np.testing.assert_array_equal(patches(text, alpha).parts.mask(BATCH), want(BATCH))
    for alpha in (0.5, 1.0):
        found = codes(1.0, alpha).parts.mask(CODE_BATCH)
        np.testing.assert_array_equal(found, causal_mask(CODE_BATCH))


def blocks_both_ways(batch, count):
    """Causal, and both ways among patches of one of `count` blocks of a picture, by hand."""
    seen = np.array(causal_mask(batch))
    for r, image in enumerate(batch.image):
        for one in range(1, image.max() + 1):
            columns = np.flatnonzero(image == one)
            for block in np.array_split(columns, count):
                seen[r][np.ix_(block, block)] = True
    return seen


@pytest.mark.parametrize(("alpha", "count"), [(0.0, 1), (0.5, 2), (1.0, 4)])
@pytest.mark.parametrize("context", ["noisy", "clean"])
def test_clean_blocks_may_see_themselves_both_ways(alpha, count, context):
    """As trained and as given; which is Transfusion's mask at one end, and causal at the other."""
    assert PATCHES.tokens == 4
    model = patches(1.0, alpha, "block", clean_mask="both", context=context)
    want = blocks_both_ways(BATCH, count)
    np.testing.assert_array_equal(model.parts.mask(BATCH), want)
    for seed in range(3):
        np.testing.assert_array_equal(seen_at(model, BATCH, seed)[1], want)
    if alpha == 0.0:
        np.testing.assert_array_equal(want, mixed_mask(BATCH))
    causal = patches(1.0, alpha, "block", context=context).parts.mask(BATCH)
    assert (want != causal).any() == (count == 2)


@pytest.mark.parametrize("text", [0.0, 1.0])
@pytest.mark.parametrize("image", [0.0, 1.0])
def test_what_has_alpha_zero_is_given_under_the_mask_of_its_training(text, image):
    """At alpha = 0 the mask is one at all clocks; at alpha = 1 it is causal."""
    for model, batch in ((patches(text, image), BATCH), (codes(text, image), CODE_BATCH)):
        c, parts = model.parts.config, model.parts
        for seed in range(3):
            drawn = family.draw(c, batch, parts.vocabulary, keys(batch, seed))
            trained = family.posed(c, parts.base, batch, drawn).mask(batch)
            np.testing.assert_array_equal(parts.mask(batch), trained)
        both_ways = text == 0 or image == 0
        assert (np.asarray(trained) != causal_mask(batch)).any() == both_ways


def test_paced_times_have_the_base_familys_distribution():
    for changes in ({}, {"time_mean": -0.5, "time_std": 0.7, "time_shift": 2.0}, {"time_std": 0.0}):
        c = transfusion_config(**changes)
        before = jnp.broadcast_to(jnp.array([[False, True]]), (20_000, 2))
        drawn = noisy_pass.noise_level(c, jax.random.split(jax.random.key(0), 20_000), before)
        share = np.array([0.05, 0.3, 0.5, 0.8, 0.95], np.float32)
        want = np.quantile(np.asarray(drawn), share, axis=0)
        u = jnp.broadcast_to(jnp.asarray(share)[:, None], (5, 2))
        np.testing.assert_allclose(noisy_pass.paced(c, u, before[:5]), want, atol=0.015)
        ends = noisy_pass.paced(c, jnp.array([[0.0, 0.0], [1.0, 1.0]]), before[:2])
        np.testing.assert_allclose(ends, [[0.0, 0.5], [1.0, 1.0]], atol=1e-6)


@pytest.mark.parametrize("model", [patches(0.4, 0.6), patches(0.0, 1.0, context="clean")])
def test_rows_are_independent_and_all_weights_learn(model):
    batch = random_batch(5)
    both = terms(model, PARAMS, batch)
    each = [
        jax.jit(model.loss)(
            PARAMS, jax.tree.map(lambda x, r=r: x[r : r + 1], batch), keys(batch)[r : r + 1]
        )
        for r in range(2)
    ]
    for name in ("text", "image"):
        np.testing.assert_allclose(both[name].sum, sum(float(e[name].sum) for e in each), rtol=1e-4)
    assert float(terms(model, PARAMS, batch, 1)["image"].sum) != float(both["image"].sum)
    grad = jax.jit(
        jax.grad(lambda p: losses.total(model.loss(p, batch, keys(batch)), model.weights))
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grad(PARAMS)))
    assert np.abs(grad(PARAMS)["mask"]).max() > 0


def test_sentinels_around_pictures_and_prompts_are_given():
    """They are clean, and where they have a loss, are predicted with weight 1."""
    model = codes(0.0, 0.0)
    discrete, inside = (
        np.asarray(x) for x in family.members(model.parts.config, CODE_BATCH, CODED)
    )
    np.testing.assert_array_equal(discrete, inside)
    border = np.isin(CODE_BATCH.tokens, (CODED.boi, CODED.eoi)) & (CODE_BATCH.image == 0)
    assert border.any() and not discrete[border | (CODE_BATCH.weight == 0)].any()
    assert discrete[CODE_BATCH.tokens == CODED.eos].any() and discrete[CODE_BATCH.image > 0].any()
    drawn = family.draw(model.parts.config, CODE_BATCH, CODED, keys(CODE_BATCH))
    assert not np.asarray(drawn.masked)[~discrete].any() and np.asarray(drawn.masked).any()
    assert (np.asarray(family.coefficient(model.parts.config, drawn))[~discrete] == 1).all()
    discrete, inside = (
        np.asarray(x) for x in family.members(patches(0.0, 0.0).parts.config, BATCH, VOCABULARY)
    )
    np.testing.assert_array_equal(inside & ~discrete, BATCH.image > 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transfusion": None}, "neither given"),
        ({"chameleon": CODES}, "both given"),
        ({"text_alpha": 1.5}, "text_alpha=1.5"),
        ({"form": "stairs"}, "ramp, block"),
        ({"weight": "x"}, "elbo, none"),
        ({"schedule": "sine"}, "linear, cosine"),
        ({"clean_mask": "none"}, "causal, both"),
        ({"clean_mask": "both"}, "clean_mask='both' is for patches in blocks"),
        ({"transfusion": replace(PATCHES, picture_mask="causal")}, "picture_mask='causal'"),
        ({"transfusion": replace(PATCHES, unet=8)}, "unet=8"),
        ({"transfusion": replace(PATCHES, kinds={"a": {"height": 4, "width": 8}})}, "kinds has a"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    good = family.Config(PATCHES, None, 0.5, 0.5, "ramp", "elbo", "linear")
    with pytest.raises(UserError, match=words):
        replace(good, **changes)
