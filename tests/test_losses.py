"""The fused token loss against plain code, its memory, and sums with counts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.losses import Term, add, chunk_count, flow_loss, means, token_loss, total

B, L, D, V, Z = 3, 12, 8, 40, 0.3
RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(B, L, D)).astype(np.float32)
HEAD = RNG.normal(size=(D, V)).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, L)).astype(np.int32)
WEIGHT = (RNG.random((B, L)) * (RNG.random((B, L)) < 0.7)).astype(np.float32)


def naive(hidden, head, targets, weight, z_weight):
    logits = jnp.einsum("bld,dv->blv", hidden, head)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(weight * (nll + z_weight * log_z**2))


@jax.jit
def naive_gradients(hidden, head, weight, z_weight):
    value = partial(naive, targets=TARGETS, weight=weight, z_weight=z_weight)
    return jax.value_and_grad(value, argnums=(0, 1))(hidden, head)


def fused(hidden, head, chunks, weight=WEIGHT, z_weight=Z):
    def objective(h, w):
        return token_loss(h, w, TARGETS, weight, z_weight, chunks)

    return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(hidden, head)


@pytest.mark.parametrize("chunks", [1, 3, 12])
def test_token_loss_and_its_gradients_are_those_of_plain_code(chunks):
    (value, _), grads = fused(HIDDEN, HEAD, chunks)
    want, want_grads = naive_gradients(HIDDEN, HEAD, WEIGHT, Z)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    for got, right in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, right, atol=1e-4)
    assert (np.asarray(grads[0])[WEIGHT == 0] == 0).all()
    other, other_grads = naive_gradients(HIDDEN, HEAD, np.ones_like(WEIGHT), Z)
    assert abs(float(value - other)) > 1
    assert np.abs(np.asarray(grads[1]) - np.asarray(other_grads[1])).max() > 0.1


@pytest.mark.parametrize("chunks", [1, 4])
def test_value_without_a_gradient_is_the_same(chunks):
    """Evaluation takes the function's first form, training the one that forms gradients."""
    value, sums = token_loss(HIDDEN, HEAD, TARGETS, WEIGHT, Z, chunks)
    (again, sums_again), _ = fused(HIDDEN, HEAD, chunks)
    np.testing.assert_allclose(value, again, rtol=1e-6)
    np.testing.assert_allclose(sums, sums_again, rtol=1e-6)


def test_sums_are_those_of_numpy():
    logits = HIDDEN.astype(float) @ HEAD
    log_z = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]
    value, sums = token_loss(HIDDEN, HEAD, TARGETS, WEIGHT, Z, 3)
    want = {
        "nll": log_z - chosen,
        "z": log_z**2,
        "logit": (logits**2).mean(-1),
        "hit": logits.argmax(-1) == TARGETS,
    }
    for name, each in want.items():
        np.testing.assert_allclose(getattr(sums, name), (WEIGHT * each).sum(), rtol=1e-5)
    np.testing.assert_allclose(value, sums.nll + Z * sums.z, rtol=1e-6)
    best = token_loss(HIDDEN, HEAD, logits.argmax(-1).astype(np.int32), WEIGHT, Z, 3)[1]
    np.testing.assert_allclose(best.hit, WEIGHT.sum(), rtol=1e-6)
    assert 0 <= float(sums.hit) < 0.5 * float(best.hit)


def test_gradient_of_the_z_term_is_two_c_log_z_softmax():
    """With the identity as head, the gradient of hidden is that of the logits."""
    logits = RNG.normal(size=(B, L, V)).astype(np.float32)
    eye = np.eye(V, dtype=np.float32)
    ones = np.ones_like(WEIGHT)
    both, alone = (fused(logits, eye, 4, ones, z)[1][0] for z in (Z, 0.0))
    log_z = np.log(np.exp(logits.astype(float)).sum(-1, keepdims=True))
    want = 2 * Z * log_z * np.exp(logits - log_z)
    np.testing.assert_allclose(np.asarray(both) - np.asarray(alone), want, atol=1e-5)
    assert np.abs(want).max() > 0.1


def test_the_gradient_is_scaled_by_what_comes_behind():
    def objective(h):
        return 5.0 * token_loss(h, HEAD, TARGETS, WEIGHT, Z, 3)[0]

    np.testing.assert_allclose(
        jax.grad(objective)(HIDDEN), 5.0 * fused(HIDDEN, HEAD, 3)[1][0], rtol=1e-5, atol=1e-6
    )


def test_gradients_keep_the_dtypes_of_what_they_belong_to():
    low = jnp.asarray(HIDDEN, jnp.bfloat16)
    head = jnp.asarray(HEAD, jnp.bfloat16)
    (value, _), grads = fused(low, head, 3)
    assert value.dtype == jnp.float32 and all(g.dtype == jnp.bfloat16 for g in grads)
    np.testing.assert_allclose(value, naive_gradients(HIDDEN, HEAD, WEIGHT, Z)[0], rtol=2e-2)


def test_all_logits_never_exist_at_one_time():
    b, length, d, v = 2, 256, 16, 8192
    shapes = [
        jax.ShapeDtypeStruct(s, t)
        for s, t in (
            ((b, length, d), jnp.float32),
            ((d, v), jnp.float32),
            ((b, length), jnp.int32),
            ((b, length), jnp.float32),
        )
    ]

    def bytes_of(loss):
        step = jax.jit(jax.grad(loss, argnums=(0, 1)))
        return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    def chunked(count):
        return bytes_of(lambda *x: token_loss(*x, Z, count)[0])

    plain = bytes_of(partial(naive, z_weight=Z))
    assert plain >= 4 * b * length * v
    assert chunked(16) <= plain / 4
    assert chunked(1) > plain / 4  # it is the cutting that saves


def test_chunk_count_is_the_smallest_that_divides_and_fits():
    for batch, length, tokens in [(16, 128, 512), (2, 48, 512), (3, 12, 10), (1, 7, 3), (64, 8, 4)]:
        got = chunk_count(batch, length, tokens)
        fits = [n for n in range(1, length + 1) if length % n == 0 and batch * length <= tokens * n]
        assert got == (fits[0] if fits else length)
    assert chunk_count(16, 128, 512) == 4 and chunk_count(64, 8, 4) == 8


def test_flow_loss_averages_over_pictures_and_leaves_empty_slots_out():
    v, target = RNG.normal(size=(2, 2, 3, 4, 4, 5)).astype(np.float32)
    weight = np.array([[1, 1, 0], [0.5, 0, 0]], np.float32)
    got = flow_loss(v, target, weight)
    error = (v.astype(float) - target) ** 2
    np.testing.assert_allclose(got.sum, (weight * error.mean((2, 3, 4))).sum(), rtol=1e-5)
    assert float(got.count) == 2.5
    share = RNG.random((2, 3, 4, 4, 1)).astype(np.float32)
    part = flow_loss(v, target, weight, share)
    np.testing.assert_allclose(
        part.sum, (weight * (share * error).mean((2, 3, 4))).sum(), rtol=1e-5
    )
    assert float(part.count) == 2.5
    v[0, 2] = 1e6
    assert float(flow_loss(v, target, weight).sum) == float(got.sum)
    v[0, 1] += 1
    assert float(flow_loss(v, target, weight).sum) != float(got.sum)


def terms(**values):
    return {k: Term(*map(jnp.float32, v)) for k, v in values.items()}


def test_sums_and_counts_of_parts_average_like_the_whole():
    a, b = terms(text=(6, 3), image=(0, 0)), terms(text=(1, 1), image=(8, 2))
    mean = means(add(a, b))
    assert (float(mean["text"]), float(mean["image"])) == (7 / 4, 4)
    assert float(mean["text"]) != (6 / 3 + 1 / 1) / 2
    assert float(means(a)["image"]) == 0  # nothing was counted


def test_total_weighs_means_and_leaves_the_rest_to_the_log():
    t = terms(text=(6, 3), image=(8, 2), shown=(100, 1))
    assert float(total(t, {"text": 1.0, "image": 5.0})) == 2 + 5 * 4
    assert float(total(t, {"text": 1.0})) == 2
    with pytest.raises(KeyError):
        total(t, {"texts": 1.0})
