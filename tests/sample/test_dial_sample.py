"""Sampling with the dial: its ends against plain loops, its cache against whole passes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dials import CODE_PARAMS, CODED, CODES, PARAMS, PATCHES, codes, patches
from random_batch import VOCABULARY
from repeats import repeats
from small import decoder_config
from small import make as made

from mmjax import dial, diffusion
from mmjax.batch import IMAGE, TEXT, Batch
from mmjax.error import UserError
from mmjax.models.decoder import UNTIE
from mmjax.models.denoise import over, paced
from mmjax.sample import flow
from mmjax.sample.dial import Options, blank, make, plan, revealed

LENGTHS = (3, 5)
# How patches are denoised, beside steps and guidance.
SOLVING = {"solver": "euler", "shift": 1.0, "start": 0.0, "stop": 1.0, "least": 1.0}


def prompts(v=VOCABULARY, picture=True):
    """Two rows `BOS words (BOI)` of different lengths."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((2, 6), np.int32)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = rng.integers(9, 30, length)
        row[0] = v.bos
        if picture:
            row[length - 1] = v.boi
    held = (np.arange(6)[None] < np.array(LENGTHS)[:, None]).astype(np.int32)
    place, nothing = np.arange(6, dtype=np.int32)[None] * held, np.zeros_like(tokens)
    pixels = np.zeros((2, 1, 4, 4, 3), np.uint8)
    return Batch(tokens, nothing, held, place, nothing, np.zeros((2, 6), np.float32), pixels)


def coded_prompts(picture=True):
    return prompts(CODED, picture)._replace(pixels=np.zeros((2, 1, 0, 0, 3), np.uint8))


def options(**changes):
    base = dict(kind="text", size=5, steps=1, temperature=0.0, guidance=1.0, shared=False)
    values = base | {k: v for k, v in changes.items() if k not in SOLVING}
    solver, *how = (changes.get(k, value) for k, value in SOLVING.items())
    return Options(
        **values, solver=flow.Solver(solver, values["steps"], how[0], values["guidance"], *how[1:])
    )


KEYS = jax.random.split(jax.random.key(0), 2)


def sample(model, params, prompt, o, keys=KEYS):
    made, cost = jax.jit(partial(make, model.parts, options=o))(params, prompt, keys)
    return np.asarray(made), int(cost)


def greedy(model, params, prompt, n, allowed):
    """Token after token, the whole row again each time."""
    size = max(LENGTHS) + n
    mask = jnp.tril(jnp.ones((1, size, size), bool))

    @jax.jit
    def logits_of(tokens):
        x = model.parts.base.embed(params, tokens[None])
        out, _ = model.parts.base.run(params, x, mask, jnp.arange(size)[None])
        return out[0] @ params["head"]["w"]

    found = []
    for row, length in enumerate(LENGTHS):
        tokens = prompt.tokens[row, :length].tolist()
        for _ in range(n):
            padded = np.array(tokens + [0] * (size - len(tokens)), np.int32)
            logits = np.array(logits_of(padded)[len(tokens) - 1])
            logits[~allowed] = -np.inf
            tokens.append(int(logits.argmax()))
        found.append(tokens[length:])
    return np.array(found)


@pytest.mark.parametrize("form", dial.FORMS)
def test_alpha_one_is_greedy_decoding(form):
    allowed = np.ones(VOCABULARY.size, bool)
    allowed[[0, 1, 3, 4, 5, 6]] = False
    model = patches(1.0, 0.0, form)
    want = greedy(model, PARAMS, prompts(picture=False), 5, allowed)
    got, cost = sample(model, PARAMS, prompts(picture=False), options())
    np.testing.assert_array_equal(got, want)
    assert cost == 5
    allowed = np.arange(CODED.size) >= CODED.codes
    n = CODES.tokens
    got, cost = sample(
        codes(0.5, 1.0, form), CODE_PARAMS, coded_prompts(), options(kind="codes", size=n)
    )
    model = codes(1.0, 1.0)
    np.testing.assert_array_equal(got, greedy(model, CODE_PARAMS, coded_prompts(), n, allowed))
    assert cost == n
    other, cost = sample(
        codes(1.0, 0.0), CODE_PARAMS, coded_prompts(), options(kind="codes", size=n)
    )
    assert cost == n and (other != got).any()


def output_of(model, params, prompt, n, active, time, x):
    """One pass over prompt and picture without a cache -> prediction [h, w, c]; row 0 alone."""
    base, length = model.parts.base, LENGTHS[0]
    t = jnp.asarray(time, jnp.float32)[None, None]
    table, kept = base.patch_in(params, x[None, None], t)
    words = base.embed(params, jnp.asarray(prompt.tokens[:1, :length]))
    mask = np.tril(np.ones((length + n,) * 2, bool))
    both = active[:, None] & active[None]
    if model.parts.config.clean_mask == "both":
        block = np.arange(n) * 2 // n  # at alpha = 0.5
        both |= block[:, None] == block[None]
    together = jnp.pad(both, ((length, 0), (length, 0)))
    hidden, _ = base.run(
        params, jnp.concatenate([words, table[:, 0]], 1), (jnp.asarray(mask) | together)[None],
        jnp.arange(length + n)[None], tower=jnp.array([TEXT] * length + [IMAGE] * n)[None],
    )  # fmt: skip
    return base.patch_out(params, hidden[:, None, length:], kept)[0, 0]


def whole(model, params, prompt, n, active, time, x):
    """The same, of clean data on the flow path -> velocity [h, w, c]."""
    clean = output_of(model, params, prompt, n, active, time, x)
    t = over(model.parts.config.base, jnp.asarray(time, jnp.float32)[None, None])[0, 0]
    return (clean - x) / jnp.maximum(1.0 - t, 0.05)


@pytest.mark.parametrize("form", dial.FORMS)
@pytest.mark.parametrize(
    ("alpha", "solver"),
    [
        (0.0, "euler"),
        (0.3, "heun"),
        (1.0, "heun"),
        *repeats((0.0, "heun"), (0.3, "euler"), (0.7, "euler")),
    ],
)
def test_patches_are_those_of_whole_passes(alpha, form, solver):
    """Steps by hand, nothing cached; at alpha = 0 the plain solver's, all patches together."""
    model = patches(1.0, alpha, form)
    o = options(kind="patches", size=4, steps=3, solver=solver, shift=2.0)
    got, cost = sample(model, PARAMS, prompts(), o)
    chart = plan(form, alpha, 4, 3, False)
    times = np.asarray(diffusion.shifted(jnp.asarray(chart.time, jnp.float32), 2.0))
    if alpha > 0:  # at alpha = 0 the steps are as at the plain solver
        even = times
        c = model.parts.config.base
        times = np.asarray(paced(c, jnp.asarray(times), np.zeros(times.shape, bool)))
        assert np.abs(times - even).max() > 0.01
    x = jax.random.normal(KEYS[0], (4, 4, 3))
    base = model.parts.config.base
    step = jax.jit(partial(whole, model, PARAMS, prompts(), 4))
    noise = x
    for k, active in enumerate(chart.active):
        ahead = np.where(active, times[k + 1] - times[k], 0)
        size, left = (
            over(base, jnp.asarray(t, jnp.float32)[None, None])[0, 0]
            for t in (ahead, 1 - times[k + 1])
        )
        v = step(active, times[k], x)
        if solver == "heun":
            again = step(active, times[k + 1], x + size * v)
            v = jnp.where(left > 0, 0.5 * (v + again), v)
        x = x + size * v
    np.testing.assert_allclose(got[0], x, rtol=1e-3, atol=1e-3)
    assert cost == chart.active.sum() and (chart.time[-1] == 1).all()
    if alpha == 0.0:
        assert cost == 4 * 3

        def velocity(x, t):
            return step(np.ones(4, bool), jnp.broadcast_to(t[0], (4,)), x[0])[None]

        want = flow.solve(solver, "flow", velocity, noise[None], o.solver.times())[0]
        np.testing.assert_allclose(got[0], want, rtol=1e-3, atol=1e-3)
    else:
        together, _ = sample(patches(1.0, 0.0, form), PARAMS, prompts(), o)
        assert (form == "block" and alpha == 0.3) or np.abs(together[0] - got[0]).max() > 1e-2


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_clean_blocks_that_see_themselves_are_those_of_whole_passes(solver):
    """What is kept of a block is what it is once it is clean, and sees itself both ways."""
    model = patches(1.0, 0.5, "block", clean_mask="both")
    o = options(kind="patches", size=4, steps=3, solver=solver)
    got, _ = sample(model, PARAMS, prompts(), o)
    chart, base = plan("block", 0.5, 4, 3, False), model.parts.config.base
    assert len(chart.active) == 6 and (chart.active.sum(1) == 2).all()
    times = np.asarray(paced(base, jnp.asarray(chart.time, jnp.float32), np.zeros((7, 4), bool)))
    x = jax.random.normal(KEYS[0], (4, 4, 3))
    step = jax.jit(partial(whole, model, PARAMS, prompts(), 4))
    for k, active in enumerate(chart.active):
        size = over(base, jnp.asarray(np.where(active, times[k + 1] - times[k], 0))[None, None])
        v = step(active, times[k], x)
        if solver == "heun" and times[k + 1][active].max() < 1:
            v = 0.5 * (v + step(active, times[k + 1], x + size[0, 0] * v))
        x = x + size[0, 0] * v
    np.testing.assert_allclose(got[0], x, rtol=1e-3, atol=1e-3)
    causal, _ = sample(patches(1.0, 0.5, "block"), PARAMS, prompts(), o)
    first = np.asarray(over(base, jnp.array([1.0, 1, 0, 0])[None, None])[0, 0]) > 0
    np.testing.assert_allclose(np.where(first, causal[0], 0), np.where(first, got[0], 0), atol=1e-5)
    assert np.abs(causal[0] - got[0]).max() > 1e-3


@pytest.mark.parametrize(("alpha", "form"), [(0.0, "ramp"), (0.3, "ramp"), (0.5, "block")])
def test_noise_is_predicted_and_ddim_steps_are_those_of_whole_passes(alpha, form):
    """x' = a' (x - s e) / a + s' e patch by patch, on the cosine path; Euler goes elsewhere."""
    model = patches(1.0, alpha, form, path="cosine", prediction="noise", target="noise")
    o = options(kind="patches", size=4, steps=3, solver="ddim")
    got, _ = sample(model, PARAMS, prompts(), o)
    chart, c = plan(form, alpha, 4, 3, False), model.parts.config.base
    times = jnp.asarray(chart.time, jnp.float32)
    if alpha > 0:
        times = paced(c, times, np.zeros(times.shape, bool))
    step = jax.jit(partial(output_of, model, PARAMS, prompts(), 4))
    x = jax.random.normal(KEYS[0], (4, 4, 3))
    for k, active in enumerate(chart.active):
        begins = flow.begun("noise", times[k], times[k + 1])
        now, to, go = (over(c, t[None, None])[0, 0] for t in (begins, times[k + 1], 1.0 * active))
        a, s = np.sin(np.pi / 2 * now), np.cos(np.pi / 2 * now)
        data = (x - s * step(active, begins, x)) / np.maximum(a, 1e-4)
        noise = (x - a * data) / np.maximum(s, 1e-6)  # of patches that are done, which do not go
        ahead = np.sin(np.pi / 2 * to) * data + np.cos(np.pi / 2 * to) * noise
        x = np.where(go > 0, ahead, x)
    np.testing.assert_allclose(got[0], x, rtol=2e-3, atol=2e-3)
    euler, _ = sample(model, PARAMS, prompts(), replace(o, solver=replace(o.solver, kind="euler")))
    assert np.abs(euler[0] - got[0]).max() > 0.1


def test_patches_take_the_weights_of_their_own_tower():
    """At alpha = 1 and one step each, so a patch goes by one velocity, then is read once more."""
    apart = decoder_config(towers=2, untie=UNTIE)
    model = patches(1.0, 1.0, decoder=apart)
    params = made(replace(PATCHES, decoder=apart))[1] | {"mask": PARAMS["mask"]}
    got, _ = sample(model, params, prompts(), options(kind="patches", size=4, steps=1))
    x = jax.random.normal(KEYS[0], (4, 4, 3))
    step = jax.jit(partial(whole, model, params, prompts(), 4))
    for k in range(4):
        active = np.arange(4) == k
        ahead = over(PATCHES, jnp.asarray(active, jnp.float32)[None, None])[0, 0]
        x = x + ahead * step(active, (np.arange(4) < k).astype(np.float32), x)
    np.testing.assert_allclose(got[0], x, rtol=1e-3, atol=1e-3)


@jax.jit
def code_logits(tokens, hidden, active):
    """One pass over the first prompt and n codes without a cache -> the codes' logits [n, v]."""
    n, length = len(hidden), LENGTHS[0]
    base = codes(0.5, 0.5).parts.base
    x = base.embed(CODE_PARAMS, tokens[None])
    x = jnp.where(hidden[None, :, None], CODE_PARAMS["mask"][None, None], x)
    prompt = base.embed(CODE_PARAMS, jnp.asarray(coded_prompts().tokens[:1, :length]))
    now = jnp.pad(active, (length, 1))
    r, j = jnp.arange(length + n)[:, None], jnp.arange(length + n)[None]
    mask = (j <= r) | (now[r] & now[j]) | (now[r + 1] & now[j] & (j != r + 1))
    x = jnp.concatenate([prompt, x], 1)
    out, _ = base.run(CODE_PARAMS, x, mask[None], jnp.arange(length + n)[None])
    return out[0, length - 1 : -1] @ CODE_PARAMS["head"]["w"]


@pytest.mark.parametrize(("alpha", "form"), [(0.0, "ramp"), (0.7, "ramp"), (0.5, "block")])
def test_codes_are_those_of_whole_passes(alpha, form):
    """The likeliest code where the sampler's own draws reveal one; nothing cached."""
    n, steps = CODES.tokens, 2
    o = options(kind="codes", size=n, steps=steps)
    got, _ = sample(codes(1.0, alpha, form), CODE_PARAMS, coded_prompts(), o)
    chart = plan(form, alpha, n, steps, True)
    tokens, hidden = np.zeros(n, np.int32), np.ones(n, bool)
    for k, active in enumerate(chart.active):
        logits = np.array(code_logits(tokens, hidden, active))
        logits[:, : CODED.codes] = -np.inf
        chance = (chart.time[k + 1] - chart.time[k]) / np.maximum(1 - chart.time[k], 1e-9)
        key = jax.random.split(jax.random.fold_in(KEYS[0], k))[1]
        now = hidden & active & (np.asarray(jax.random.uniform(key, (n,))) < chance)
        tokens, hidden = np.where(now, logits.argmax(-1), tokens).astype(np.int32), hidden & ~now
    assert not hidden.any()
    np.testing.assert_array_equal(got[0], tokens)


@pytest.mark.parametrize("kind", ["text", "codes", "patches"])
@pytest.mark.parametrize("alpha", [0.6, *repeats(0.0)])
def test_rows_are_independent(kind, alpha):
    model, params, prompt = codes(alpha, alpha), CODE_PARAMS, coded_prompts(kind == "codes")
    n = CODES.tokens
    if kind == "patches":
        model, params, prompt, n = patches(1.0, alpha), PARAMS, prompts(), 4
    o = options(kind=kind, size=n, steps=3, temperature=1.0, guidance=2.0)
    both, _ = sample(model, params, prompt, o)
    last, _ = sample(model, params, jax.tree.map(lambda x: x[1:], prompt), o, KEYS[1:])
    np.testing.assert_allclose(both[1:], last, rtol=1e-4, atol=1e-4)
    other, _ = sample(model, params, prompt, o, KEYS[::-1])
    assert (other != both).any()
    if kind == "codes":
        assert both.min() >= CODED.codes and both.max() < CODED.size


def test_guidance_goes_from_the_blank_prompt_to_the_full_one():
    model, o = patches(1.0, 0.4), options(kind="patches", size=4, steps=2)
    plain, _ = sample(model, PARAMS, prompts(), o)
    nothing, _ = sample(
        model, PARAMS, prompts(), options(kind="patches", size=4, steps=2, guidance=0.0)
    )
    empty = blank(model.parts, prompts(), "patches")
    want, _ = sample(model, PARAMS, empty, o)
    np.testing.assert_allclose(nothing, want, rtol=1e-3, atol=1e-3)
    assert np.abs(nothing - plain).max() > 1e-2
    assert np.asarray(empty.segment).sum(1).tolist() == [2, 2]


def test_the_length_that_guidance_keeps_is_of_the_patches_that_go():
    """The first patch goes by one velocity; those that have not begun are not measured with it."""
    model = patches(1.0, 1.0)
    noise = jax.random.normal(KEYS[0], (4, 4, 3))
    first = over(PATCHES, jnp.asarray(np.arange(4) == 0, jnp.float32)[None, None])[0, 0]

    def far(**changes):
        o = options(kind="patches", size=4, steps=1, **changes)
        moved = sample(model, PARAMS, prompts(), o)[0][0] - noise
        return float(jnp.sqrt(jnp.sum((moved * first) ** 2)))

    kept = far(guidance=4.0, least=0.0)
    assert kept == pytest.approx(far(), rel=1e-3) != pytest.approx(far(guidance=4.0), rel=0.1)


@pytest.mark.parametrize("alpha", [0.7, *repeats(0.0)])
def test_guidance_has_an_interval_and_a_length_of_its_own(alpha):
    """None before any time is none at all; the interval is of each patch's own time."""
    model, strong = patches(1.0, alpha), {"kind": "patches", "size": 4, "steps": 3, "guidance": 4.0}

    def drawn(**changes):
        return sample(model, PARAMS, prompts(), options(**strong | changes))[0]

    plain, whole = drawn(guidance=1.0), drawn()
    np.testing.assert_allclose(drawn(start=1.0), plain, rtol=1e-4, atol=1e-4)
    others = [whole, drawn(start=0.4), drawn(stop=0.2), drawn(least=0.0)]
    for n, one in enumerate(others):
        assert all(np.abs(one - other).max() > 1e-2 for other in [plain, *others[:n]])


@pytest.mark.parametrize("form", dial.FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 4, 16, 37])
def test_a_plan_brings_every_token_from_start_to_end(form, alpha, n):
    for steps in (1, 4):
        for discrete in (False, True):
            chart = plan(form, alpha, n, steps, discrete)
            ahead = np.diff(chart.time, axis=0)
            assert (chart.time[0] == 0).all() and (chart.time[-1] == 1).all()
            # No token moves while it is not active, and none is active that does not move.
            assert (ahead[~chart.active] == 0).all() and (ahead[chart.active] > 0).all()
            count = len(chart.active)
            width = 1 / n if alpha == 1 else None
            assert width is None or count == (1 if discrete else steps) * n
            rows = chart.start[:, None] + np.arange(chart.rows)
            for k in range(count):
                needed = set(np.flatnonzero(chart.active[k]))
                needed |= set(np.flatnonzero(chart.active[k - 1])) if k else set()
                if discrete:
                    needed |= {min(needed) - 1}
                assert needed <= set(rows[k].tolist())
            if alpha == 1.0:
                assert chart.evaluations == count and chart.rows <= 3
            if alpha == 0.0:
                assert count == (min(steps, n) if discrete else steps)
                assert chart.evaluations == n * count


def test_masked_tokens_are_revealed_at_the_rate_of_their_schedule():
    """A token of alpha = 0 is revealed at a uniform time, or by the cosine's rate: late."""
    chart = plan("ramp", 0.0, 12, 10, True)
    border = np.arange(11)[:, None] / 10 * np.ones(12)
    for schedule, masked in (("linear", 1 - border), ("cosine", np.cos(np.pi * border / 2))):
        chance = np.asarray(revealed(schedule, chart), np.float64)
        assert (chance[-1] == 1).all()
        left = np.cumprod(np.concatenate([np.ones((1, 12)), 1 - chance]), axis=0)
        np.testing.assert_allclose(left, masked, atol=1e-6)
    model = codes(0.0, 0.0)
    o = options(size=6, steps=6, temperature=1.0)
    made, _ = sample(model, CODE_PARAMS, coded_prompts(False), o)
    assert made.min() >= CODED.eos and made.max() < CODED.codes and made.shape == (2, 6)


@pytest.mark.parametrize("changes", [{"kind": "sound"}, {"size": 0}, {"steps": 0}])
def test_what_cannot_be_made_is_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        options(**changes)
