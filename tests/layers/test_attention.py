"""Attention against a loop in f64, the cache, and cached decoding against doing it all again."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import decoder_config

from mmjax.layers.attention import KV, attend, write
from mmjax.mesh import Rules, make_mesh
from mmjax.models.decoder import Decoder, empty_cache


def case(seed=0, b=2, length=5, m=7, h=4, g=2, width=6):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(b, length, h, width)).astype(np.float32)
    k, v = (rng.normal(size=(b, m, g, width)).astype(np.float32) for _ in range(2))
    mask = rng.random((b, length, m)) < 0.5
    mask[:, :, 0] = True
    return q, k, v, mask


def by_loop(q, k, v, mask):
    b, length, h, width = q.shape
    out = np.zeros(q.shape)
    for r in range(b):
        for i in range(length):
            for head in range(h):
                group = head // (h // k.shape[2])
                seen = np.flatnonzero(mask[r % len(mask), i])
                scores = [q[r, i, head].astype(float) @ k[r, j, group] / width**0.5 for j in seen]
                weights = np.exp(np.array(scores) - max(scores))
                out[r, i, head] = weights / weights.sum() @ v[r, seen, group].astype(float)
    return out


@pytest.mark.parametrize(("h", "g"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_attend_is_the_loop(seed, h, g):
    q, k, v, mask = case(seed, h=h, g=g)
    got = np.asarray(attend(q, k, v, mask))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, by_loop(q, k, v, mask), atol=1e-6)
    assert np.abs(got - by_loop(q, k, v, np.ones_like(mask))).max() > 0.1


def test_large_scores_do_not_overflow():
    q, k, v, mask = case()
    got = np.asarray(attend(300 * q, k, v, mask))
    np.testing.assert_allclose(got, by_loop(300 * q, k, v, mask), atol=1e-4)


def test_grouped_heads_are_repeated_heads():
    q, k, v, mask = case(h=6, g=2)
    whole = [np.repeat(x, 3, axis=2) for x in (k, v)]
    np.testing.assert_array_equal(attend(q, k, v, mask), attend(q, *whole, mask))
    tiled = [np.tile(x, (1, 1, 3, 1)) for x in (k, v)]
    assert (
        np.abs(np.asarray(attend(q, k, v, mask)) - np.asarray(attend(q, *tiled, mask))).max() > 0.1
    )


def test_one_mask_for_all_rows():
    q, k, v, mask = case()
    np.testing.assert_allclose(
        attend(q, k, v, mask[:1]), attend(q, k, v, np.stack([mask[0]] * 2)), atol=1e-6
    )


def test_a_row_that_may_look_nowhere_is_finite_and_so_is_its_gradient():
    q, k, v, mask = case()
    mask[0, 2] = False
    got = np.asarray(attend(q, k, v, mask))
    mean = np.repeat(v[0].mean(0), 2, axis=0)
    np.testing.assert_allclose(got[0, 2], mean, atol=1e-6)
    kept = mask.any(-1)
    np.testing.assert_allclose(
        got[kept], by_loop(q, k, v, mask | ~kept[..., None])[kept], atol=1e-6
    )
    grads = jax.grad(lambda *x: attend(*x, mask).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(np.isfinite(g).all() for g in grads)
    assert np.abs(grads[0]).max() > 0


def test_the_softmax_is_taken_in_f32():
    q, k, v, mask = case(m=64)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    got = attend(*low, mask)
    assert got.dtype == jnp.bfloat16
    want = by_loop(*(np.asarray(x, np.float32) for x in low), mask)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=2e-2)


def test_write_puts_every_row_at_its_own_columns_and_drops_the_rest():
    rng = np.random.default_rng(0)
    cache = KV(*rng.normal(size=(2, 3, 3, 4, 2)).astype(np.float32))
    new = KV(*rng.normal(size=(2, 3, 3, 2, 2)).astype(np.float32))
    columns = np.array([[0, 1], [3, 4], [9, 2]])
    want = [x.copy() for x in cache]
    for r in range(3):
        for i in range(2):
            if columns[r, i] < 4:
                for part in (0, 1):
                    want[part][r, :, columns[r, i]] = new[part][r, :, i]
    got = jax.jit(write)(cache, new, columns)
    np.testing.assert_array_equal(got, want)
    assert (np.asarray(got.keys) != cache.keys).any(axis=(1, 2, 3)).all()
    beyond = jax.jit(write)(cache, new, np.full((3, 2), 4))
    np.testing.assert_array_equal(beyond, cache)


LENGTHS, STEPS, ROOM = np.array([3, 5, 2]), 4, 10


@pytest.fixture(scope="module")
def decoder():
    """Two query heads a key-value head; the function, inputs, and outputs of a run over all."""
    c = decoder_config()
    module = Decoder(Rules(make_mesh(1, 1, 1, jax.devices()[:1])), "float32", c)
    x = np.random.default_rng(0).normal(size=(3, 9, 32)).astype(np.float32)
    position = np.broadcast_to(np.arange(9), (3, 9))
    causal = np.tril(np.ones((9, 9), bool))[None]
    params = jax.jit(module.init)(jax.random.key(0), x, causal, position)
    apply = jax.jit(lambda *a: module.apply(params, *a))
    return c, apply, x, np.asarray(apply(x, causal, position)[0])


def decode(c, apply, x, shift=0):
    """Prompts of LENGTHS, then STEPS tokens one by one; `shift` misplaces what is written."""
    longest = LENGTHS.max()
    index = np.arange(longest)[None]
    held = index < LENGTHS[:, None]
    place = np.broadcast_to(index, held.shape)
    columns = np.where(held, place, ROOM)
    mask = np.tril(np.ones((longest, ROOM), bool))[None]
    out, cache = apply(x[:, :longest], mask, place, empty_cache(c, 3, ROOM), columns)
    prompt, steps = np.asarray(out), []
    for step in range(STEPS):
        column = (LENGTHS + step)[:, None]
        token = np.take_along_axis(x, column[:, :, None], axis=1)
        mask = (np.arange(ROOM)[None] <= column)[:, None]
        out, cache = apply(token, mask, column, cache, column + shift)
        steps.append(np.asarray(out)[:, 0])
    return prompt, held, np.stack(steps, axis=1)


def test_cached_decoding_equals_doing_it_all_again(decoder):
    c, apply, x, whole = decoder
    prompt, held, steps = decode(c, apply, x)
    np.testing.assert_allclose(prompt[held], whole[:, : held.shape[1]][held], atol=1e-5)
    columns = (LENGTHS[:, None] + np.arange(STEPS))[:, :, None]
    want = np.take_along_axis(whole, columns, axis=1)
    np.testing.assert_allclose(steps, want, atol=1e-5)
    misplaced = decode(c, apply, x, shift=1)[2]
    assert np.abs(misplaced - want).max() > 1e-2


def test_a_row_whose_column_lies_beyond_the_cache_sits_the_step_out(decoder):
    c, apply, x, _ = decoder
    cache = empty_cache(c, 3, ROOM)
    columns = np.array([[0], [ROOM], [0]])
    _, cache = apply(x[:, :1], np.ones((1, 1, ROOM), bool), np.zeros((3, 1), int), cache, columns)
    written = np.abs(np.asarray(cache.keys)).max(axis=(0, 2, 3, 4)) > 0
    np.testing.assert_array_equal(written, [True, False, True])


@pytest.mark.parametrize("unroll", [1, 2])
def test_a_loop_over_tokens_writes_the_cache_in_place(decoder, unroll):
    """No copy of all layers' keys or values in the compiled loop, which would double it."""
    c = replace(decoder[0], unroll=unroll)
    module = Decoder(Rules(make_mesh(1, 1, 1, jax.devices()[:1])), "float32", c)
    cache = empty_cache(c, 3, ROOM)
    column, x = jnp.zeros((3, 1), int), jnp.zeros((3, 1, 32))
    params = jax.eval_shape(module.init, jax.random.key(0), x, jnp.ones((1, 1, 1), bool), column)

    def loop(params, cache, x):
        def step(i, carry):
            cache, x = carry
            mask = (jnp.arange(ROOM) <= i)[None, None]
            x, cache = module.apply(params, x, mask, column + i, cache, column + i)
            return cache, x

        return jax.lax.fori_loop(0, ROOM, step, (cache, x))

    compiled = jax.jit(loop, donate_argnums=1).lower(params, cache, x).compile().as_text()
    whole = re.escape(f"f32[{','.join(map(str, cache.keys.shape))}]")
    assert re.search(rf"= {whole}\S* (fusion|scatter)\(", compiled)
    assert not re.search(rf"= {whole}\S* (copy|concatenate)\(", compiled)
