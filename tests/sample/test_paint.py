"""The interleaved engine where pictures are denoised, against the model run whole."""

import itertools
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import VOCABULARY as V
from small import make, transfusion_config

from mmjax import diffusion
from mmjax.batch import IMAGE, TEXT, Batch
from mmjax.models import denoise as noisy_pass
from mmjax.models.decoder import UNTIE
from mmjax.sample.decode import prefill
from mmjax.sample.engine import Options, Plan, advance, begin
from mmjax.sample.flow import Solver, begun
from mmjax.sample.paint import fresh
from mmjax.sample_config import Choice

COLD = Choice(0.0, 0, 1.0, 0.0, 1.0)
EULER = Solver("euler", 4, 1.0, 1.0, 0.0, 1.0, 1.0)
COUNT = 40


def row(tokens, pictures=(), length=16, shared=True) -> Batch:
    """One document of token ids; each run of four -1 stands for a picture."""
    n = len(tokens)
    fields = {k: np.zeros((1, length), np.int32) for k in Batch._fields[:5]}
    slot = place = 0
    for i, t in enumerate(tokens):
        opens = t < 0 and tokens[i - 1] >= 0
        slot += opens
        place += 0 if i == 0 or (shared and t < 0 and not opens) else 1
        fields["tokens"][0, i] = max(t, 0)
        fields["modality"][0, i] = IMAGE if t < 0 else TEXT
        fields["image"][0, i] = slot if t < 0 else 0
        fields["position"][0, i] = place
    fields["segment"][0, :n] = 1
    pixels = np.zeros((1, 2, 4, 4, 3), np.uint8)
    for i, picture in enumerate(pictures):
        pixels[0, i] = picture
    return Batch(**fields, weight=np.ones((1, length), np.float32), pixels=pixels)


def rows(*parts) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


PICTURE = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
HOLE = [-1] * 4
SEEN = [V.bos, V.boi, *HOLE, V.eoi]
KEYS = jax.random.split(jax.random.key(5), 3)


def plan(draws, pictures=0, limit=COUNT, solver=EULER) -> Plan:
    b = len(draws)
    left = np.where(draws, solver.steps + 2, 0)

    def each(value):
        return np.broadcast_to(np.int32(value), (b,))

    until = np.asarray(draws, np.int32)
    ends = np.full((b, 2), V.eos, np.int32)
    many = np.where(draws, 0, pictures).astype(np.int32)
    return Plan(
        left.astype(np.int32), each(V.eoi), many, until, each(limit), each(99), each(99), ends
    )


def options(solver=EULER, **changes) -> Options:
    base = Options(COUNT, 40, 2, COLD, COLD, solver, shared=True, guidance=solver.guidance)
    return replace(base, **changes)


@partial(jax.jit, static_argnames=("parts", "options"))
def run(parts, params, prompt, asked, keys, options):
    state = begin(parts, params, prompt, asked, options)
    return advance(parts, params, state, asked, keys, jnp.int32(options.count), options)


@partial(jax.jit, static_argnames="parts")
def whole(parts, params, batch, noisy, t):
    """Velocities [b, i, h, w, c] from one pass over everything."""
    return noisy_pass.denoise(parts, params, batch, noisy, t)[1].velocity


@partial(jax.jit, static_argnames="parts")
def outputs(parts, params, batch, noisy, t):
    """The decoder's outputs in such a pass."""
    return noisy_pass.denoise(parts, params, batch, noisy, t)[0]


MODEL, PARAMS = make(transfusion_config())
PROMPTS = ([V.bos, 7, 8, 9, V.boi], [V.bos, 20, V.boi])
DRAW = rows(*(row(p) for p in PROMPTS))
FORMS = {
    "plain": ({}, {}),
    "raster": ({}, {"shared": False}),
    "causal": ({"picture_mask": "causal"}, {}),
    "ddpm": ({"path": "cosine", "prediction": "noise", "target": "noise"}, {"kind": "ddim"}),
    "heun": ({}, {"kind": "heun"}),
    "guided": ({}, {"guidance": 2.5}),
    "interval": ({}, {"guidance": 2.5, "start": 0.4, "least": 0.5}),
    "towers": ({"decoder": {"towers": 2, "untie": UNTIE}}, {}),
    "unet": ({"unet": 8}, {"shift": 2.0}),
}


@pytest.mark.parametrize("form", FORMS)
def test_drawing_equals_the_solver_on_the_whole_model(form):
    changes, how = FORMS[form]
    shared = how.get("shared", True)
    solver = replace(EULER, **{k: v for k, v in how.items() if k != "shared"})
    model, params = make(transfusion_config(**changes))
    c = model.parts.config
    asked = plan([True, True], solver=solver)
    state = run(model.parts, params, DRAW, asked, KEYS[:2], options(solver, shared=shared))
    times = np.asarray(solver.times())
    start = fresh(KEYS[:2], jnp.zeros(2, jnp.int32), c.shape)
    for r, tokens in enumerate(PROMPTS):
        batches = [
            row([*t, *HOLE], shared=shared) for t in (tokens, [V.bos, V.boi])
        ]  # the prompt's, and that without a prompt

        def velocity(x, t, batches=batches):
            noisy = jnp.stack([x, jnp.zeros_like(x)])[None]
            at = jnp.full((1, 2), t, jnp.float32)
            both = [whole(model.parts, params, b, noisy, at)[0, 0] for b in batches]
            if solver.guidance == 1.0:
                return both[0]
            return solver.guide(both[0][None], both[1][None], jnp.full((1,), t))[0]

        x = start[r]
        for t, to in itertools.pairwise(times):
            t = float(begun(c.prediction, t, to))
            v = velocity(x, t)
            if solver.kind == "heun" and to < 1:
                v = 0.5 * (v + velocity(x + (to - t) * v, to))
            if solver.kind == "ddim":
                found = diffusion.estimate(c.path, "velocity", v, x, jnp.float32(t))
                x = diffusion.mix(c.path, found.data, found.noise, jnp.float32(to))
            else:
                x = x + (to - t) * v
        np.testing.assert_allclose(state.canvas.made[r, 0], x, atol=2e-4 * np.abs(x).max())
        assert float(jnp.abs(x - start[r]).max()) > 0.1
    assert state.done.all() and int(state.step) == solver.steps + 2


def written(state, r) -> list[int]:
    return [t for t in np.asarray(state.tokens)[r].tolist() if t != V.pad]


def eager(params):
    """The same weights, but BOI likelier than any word at the prompts' ends: pictures do begin."""
    prompts = rows(row(SEEN, [PICTURE]), row([V.bos, 11]))
    outputs = prefill(MODEL.parts, params, prompts, 1).last.mean(0)
    head = params["head"]["w"]
    return params | {"head": {"w": head.at[:, V.boi].set(outputs)}}


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_words_pictures_and_words_again_equal_recomputation(guidance):
    """Rows in different states; behind a picture the model reads it as it is, at t = 1."""
    params = eager(PARAMS)
    prompts = rows(row([V.bos, 7, V.boi]), row(SEEN, [PICTURE]), row([V.bos, 11]))
    solver = replace(EULER, guidance=guidance)
    state = run(
        MODEL.parts, params, prompts, plan([True, False, False], pictures=2), KEYS, options(solver)
    )
    given = [([V.bos, 7, V.boi], ()), (SEEN, (PICTURE,)), ([V.bos, 11], ())]
    words_behind = 0
    for r in (1, 2):
        tokens, pictures = list(given[r][0]), list(given[r][1])
        signals = list(np.asarray(MODEL.parts.signal(params, row(tokens, pictures)))[0])
        signals = signals[: len(pictures)]
        made = list(np.asarray(state.canvas.made)[r])
        for token in written(state, r)[:-1]:  # the last was not read
            if token == V.eoi:  # by rule
                tokens += HOLE
                signals.append(made.pop(0))
            elif len(signals) > len(pictures):
                words_behind += 1
            tokens.append(token)
        batch = row(tokens, length=64)
        x = np.zeros((1, 3, 4, 4, 3), np.float32)
        x[0, : len(signals)] = signals
        batch = batch._replace(pixels=np.zeros((1, 3, 4, 4, 3), np.uint8))
        hidden = outputs(MODEL.parts, params, batch, x, jnp.ones((1, 3)))
        np.testing.assert_allclose(state.hidden[0, r], hidden[0, len(tokens) - 1], atol=2e-5)
    assert words_behind > 2, "no words behind a drawn picture were compared"
    assert written(state, 0) == [V.eoi]


def test_a_row_does_not_depend_on_its_neighbours():
    params = eager(PARAMS)
    prompts = [row([V.bos, 7, V.boi]), row(SEEN, [PICTURE]), row([V.bos, 11])]
    asked = plan([True, False, False], pictures=2)
    state = run(MODEL.parts, params, rows(*prompts), asked, KEYS, options())
    turned = np.array([2, 0, 1])
    other = run(
        MODEL.parts, params, rows(*(prompts[i] for i in turned)),
        jax.tree.map(lambda x: x[turned], asked), KEYS[turned], options(),
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(state.tokens)[turned], other.tokens)
    np.testing.assert_allclose(np.asarray(state.canvas.made)[turned], other.canvas.made, atol=1e-5)
    reseeded = run(MODEL.parts, params, rows(*prompts), asked, KEYS[::-1], options())
    assert np.abs(np.asarray(reseeded.canvas.made - state.canvas.made))[0].max() > 0.1


def test_a_picture_is_not_begun_without_room_in_the_row():
    params = eager(PARAMS)
    asked = plan([False], pictures=2)
    for columns, begins in ((8, True), (7, False)):
        narrow = asked._replace(columns=np.full(1, columns, np.int32))
        state = run(MODEL.parts, params, row([V.bos, 11]), narrow, KEYS[:1], options())
        assert (V.boi in written(state, 0)) == begins
        assert int(state.column[0, 0]) <= columns
