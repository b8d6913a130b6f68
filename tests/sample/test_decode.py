"""Sampling against the model run whole: cache, rows, guidance, greedy text."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import VOCABULARY

from mmjax.batch import IMAGE, TEXT, Batch, mixed_mask
from mmjax.mesh import Rules, make_mesh
from mmjax.models import transfusion
from mmjax.models.decoder import DecoderConfig
from mmjax.sample import decode
from mmjax.sample.flow import euler, guided

SHAPE = DecoderConfig(32, 2, 4, 2, 48, True, "pre", 0.0, 1e4, False, 1, "float32")
MODEL = transfusion.build(
    transfusion.Config(SHAPE, 4, 2, 5.0, 1e-5, 0.0, 1.0, 0.5, "data", 0.6, 0.6),
    VOCABULARY,
    Rules(make_mesh(1, 1, 1, jax.devices()[:1])),
)
PARTS = MODEL.parts
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
PARAMS["patch_out"]["patch"] = 0.3 * jax.random.normal(
    jax.random.key(1), PARAMS["patch_out"]["patch"].shape
)
V = VOCABULARY
STATIC = ("count", "temperature", "shared", "steps", "guidance")
WRITE = jax.jit(partial(decode.write, PARTS, PARAMS), static_argnames=STATIC[:2])
DRAWN = jax.jit(partial(decode.draw, PARTS, PARAMS), static_argnames=STATIC[2:])


def row(tokens, image=(), length=16) -> Batch:
    """One document of token ids; -1 stands for a patch of the picture."""
    n = len(tokens)
    fields = {k: np.zeros((1, length), np.int32) for k in Batch._fields[:5]}
    for i, t in enumerate(tokens):
        fields["tokens"][0, i] = max(t, 0)
        fields["modality"][0, i] = IMAGE if t < 0 else TEXT
        fields["image"][0, i] = int(t < 0)
    fields["segment"][0, :n] = 1
    patch = np.array([t < 0 for t in tokens])
    fields["position"][0, :n] = np.cumsum(~(patch & np.roll(patch, 1))) - 1
    pixels = np.zeros((1, 1, 4, 4, 3), np.uint8)
    if len(image):
        pixels[0, 0] = image
    weight = np.ones((1, length), np.float32)
    return Batch(**fields, weight=weight, pixels=pixels)


def rows(*parts) -> Batch:
    return Batch(*(np.concatenate(x) for x in zip(*parts, strict=True)))


PICTURE = np.random.default_rng(0).integers(0, 256, (4, 4, 3)).astype(np.uint8)
CAPTION = [V.bos, V.boi, -1, -1, -1, -1, V.eoi]
PROMPTS = rows(row(CAPTION, PICTURE), row([V.bos, 7, 8]))
DRAW = rows(row([V.bos, 7, 8, 9, V.boi]), row([V.bos, 20, V.boi]))
KEYS = jax.random.split(jax.random.key(5), 2)


@jax.jit
def all_logits(batch):
    x = transfusion.clean_inputs(PARTS, PARAMS, batch)
    hidden, _ = PARTS.run(PARAMS, x, mixed_mask(batch), batch.position)
    return decode.logits_of(PARTS, PARAMS, hidden)


def whole_logits(tokens, image=()):
    """Logits behind the last token, from one forward pass over everything."""
    return np.array(all_logits(row(tokens, image, 32)))[0, len(tokens) - 1]


def test_prefill_equals_the_whole_forward_pass():
    filled = jax.jit(partial(decode.prefill, PARTS, room=4))(PARAMS, PROMPTS)
    got = np.asarray(decode.logits_of(PARTS, PARAMS, filled.last))
    np.testing.assert_allclose(got[0], whole_logits(CAPTION, PICTURE), atol=1e-5)
    np.testing.assert_allclose(got[1], whole_logits([V.bos, 7, 8]), atol=1e-5)
    assert np.abs(got[0] - whole_logits(CAPTION, 255 - PICTURE)).max() > 1e-3
    np.testing.assert_array_equal(filled.length, [7, 3])


def test_greedy_writing_equals_recomputation_token_by_token():
    """Rows of different length, each at its own columns of the cache."""
    got = np.asarray(WRITE(PROMPTS, KEYS, count=6, temperature=0.0))
    for r, (tokens, image) in enumerate(((CAPTION, PICTURE), ([V.bos, 7, 8], ()))):
        tokens = list(tokens)
        for step in range(6):
            logits = whole_logits(tokens, image)
            logits[[V.pad, V.bos, V.boi, V.eoi]] = -np.inf
            want = int(logits.argmax())
            assert got[r, step] == want
            if want == V.eos:
                assert (got[r, step + 1 :] == V.pad).all()
                break
            tokens.append(want)


def test_a_row_does_not_depend_on_its_neighbours():
    both = WRITE(PROMPTS, KEYS, count=6, temperature=1.0)
    alone = WRITE(jax.tree.map(lambda x: x[1:], PROMPTS), KEYS[1:], count=6, temperature=1.0)
    np.testing.assert_array_equal(both[1:], alone)
    other = WRITE(PROMPTS, KEYS[::-1], count=6, temperature=1.0)
    assert (np.asarray(other) != np.asarray(both)).any()


def whole_velocity(tokens, patches, t):
    """The velocity of the picture behind `tokens`, from one full forward pass."""
    return all_velocity(row([*tokens, -1, -1, -1, -1], length=16), patches, t, len(tokens))


@jax.jit
def all_velocity(batch, patches, t, n):
    x = transfusion.inputs(PARTS, PARAMS, batch, patches[None, None], jnp.full((1, 1), t))
    hidden, _ = PARTS.run(PARAMS, x, mixed_mask(batch), batch.position)
    found = jax.lax.dynamic_slice_in_dim(hidden, n, 4, axis=1)[:, None]
    return PARTS.velocity(PARAMS, found, patches[None, None], jnp.full((1, 1), t))[0, 0]


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_drawing_equals_the_solver_on_the_whole_model(guidance):
    got = DRAWN(DRAW, KEYS, shared=True, steps=4, guidance=guidance)
    for r, tokens in enumerate(([V.bos, 7, 8, 9, V.boi], [V.bos, 20, V.boi])):
        x = jax.random.normal(KEYS[r], (4, 12))
        for step in range(4):
            v = whole_velocity(tokens, x, step / 4)
            if guidance != 1.0:
                u = whole_velocity([V.bos, V.boi], x, step / 4)
                v = u + guidance * (v - u)
            x = x + v / 4
        want = np.asarray(transfusion.to_picture(PARTS.config, x), int)
        assert np.abs(np.asarray(got[r], int) - want).max() <= 1  # rounding to whole levels
        assert len(np.unique(want)) > 8


def test_guidance_and_prompt_change_the_picture():
    def draw(prompt, guidance):
        return np.asarray(DRAWN(prompt, KEYS, shared=True, steps=4, guidance=guidance)).astype(int)

    plain = draw(DRAW, 1.0)
    assert (draw(DRAW, 3.0) != plain).any()
    other = rows(row([V.bos, 30, V.boi]), row([V.bos, 20, V.boi]))
    changed = draw(other, 1.0)
    assert (changed[0] != plain[0]).any() and (changed[1] == plain[1]).all()


def test_log_likelihood_is_that_of_the_logits():
    tokens = [V.bos, 7, 8, 9, V.eos]
    logs = np.asarray(jax.jit(partial(decode.text_log_likelihood, PARTS))(PARAMS, row(tokens)))[0]
    for i in range(1, len(tokens)):
        want = jax.nn.log_softmax(whole_logits(tokens[:i]))[tokens[i]]
        np.testing.assert_allclose(logs[i], want, atol=1e-5)
    assert logs[0] == 0


def test_word_weight_leaves_out_sentinels_but_not_the_end():
    weight = np.asarray(decode.word_weight(row([V.bos, V.boi, -1, V.eoi, 9, V.eos]), V))[0]
    assert weight[:7].tolist() == [1.0 * w for w in (0, 0, 0, 0, 1, 1, 0)]


def test_euler_is_exact_where_the_flow_is_straight():
    """For one data point x1 the velocity (x1 - x) / (1 - t) leads to it in any number of steps."""
    x1 = jnp.arange(6.0).reshape(2, 3)
    noise = jax.random.normal(jax.random.key(0), x1.shape)
    for steps in (1, 3, 10):
        got = euler(lambda x, t: (x1 - x) / (1 - t), noise, steps)
        np.testing.assert_allclose(got, x1, atol=1e-5)
    wrong = euler(lambda x, t: x1 - x, noise, 10)
    assert np.abs(np.asarray(wrong - x1)).max() > 0.1


def test_gaussian_flow_gives_gaussian_samples():
    """Data N(2, 0.5^2): the exact velocity carries N(0, 1) to it."""
    m, s = 2.0, 0.5

    def velocity(x, t):
        variance = (t * s) ** 2 + (1 - t) ** 2
        return m + (t * s**2 - (1 - t)) / variance * (x - t * m)

    x = np.asarray(euler(velocity, jax.random.normal(jax.random.key(0), (20000,)), 200))
    assert abs(x.mean() - m) < 0.02 and abs(x.std() - s) < 0.02


def test_guided_limits():
    c, u = jnp.ones(3), jnp.zeros(3)
    assert (guided(c, u, 1.0) == c).all() and (guided(c, u, 0.0) == u).all()
    assert (guided(c, u, 2.0) == 2).all()
