"""Quantisers against their definitions, written out plainly."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.codecs import quantise as q
from mmjax.codecs.quantise import QuantiserConfig
from mmjax.error import UserError
from mmjax.losses import add
from mmjax.mesh import make_mesh

VQ = QuantiserConfig("vq", 7, 3, 1, (), 0.25, 0.9, False, 0.5, "straight", 0.0, False)
FSQ = replace(VQ, kind="fsq", codes=8192, width=5, levels=(8, 8, 8, 4, 4))
LFQ = replace(VQ, kind="lfq", codes=32, width=5, entropy=0.1)
RVQ = replace(VQ, kind="rvq", depth=2)
RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 2, 2, 3)).astype(np.float32)
ONES = np.ones(4, np.float32)
KEYS = jax.random.split(jax.random.key(0), 4)


def book(c=VQ, spread=1.0):
    shape = (c.depth, c.codes, c.width)
    codes = jnp.asarray(spread * RNG.normal(size=shape).astype(np.float32))
    return {"codes": codes, "counts": jnp.ones(shape[:2]), "sums": codes}


def run(c, b, z=Z, weight=ONES, keys=KEYS):
    return q.quantise(c, b, jnp.asarray(z), jnp.asarray(weight), keys)


def nearest_by_loop(z, table):
    return np.array([((v - table) ** 2).sum(-1).argmin() for v in z])


def test_vq_takes_the_nearest_code():
    b = book()
    found = run(VQ, b)
    want = nearest_by_loop(Z.reshape(-1, 3), np.asarray(b["codes"][0]))
    np.testing.assert_array_equal(found.codes.ravel(), want)
    np.testing.assert_allclose(found.values.reshape(-1, 3), b["codes"][0][want], atol=1e-6)
    np.testing.assert_allclose(q.lookup(VQ, b, found.codes), found.values, atol=1e-6)
    assert (q.lookup(VQ, b, (found.codes + 1) % 7) != found.values).any()


def test_unit_codes_compare_directions():
    c, b = replace(VQ, unit=True), book()
    found = run(c, b)
    far = run(c, b, 50.0 * Z)
    np.testing.assert_array_equal(found.codes, far.codes)
    np.testing.assert_allclose(np.linalg.norm(found.values, axis=-1), 1.0, atol=1e-5)
    assert (run(VQ, b).codes != run(VQ, b, 50.0 * Z).codes).any()  # lengths count elsewhere


def test_the_straight_through_gradient_is_the_identity():
    b, g = book(), jnp.asarray(RNG.normal(size=Z.shape).astype(np.float32))
    grad = jax.grad(lambda z: (run(VQ, b, z).values * g).sum())(jnp.asarray(Z))
    np.testing.assert_allclose(grad, g, atol=1e-6)


def test_the_rotated_gradient_turns_and_scales():
    """Row by row: d(values . g)/dz = (|q|/|z|) R' g, with R the rotation that carries z to q."""
    c, b = replace(VQ, gradient="rotation"), book()
    g = RNG.normal(size=Z.shape).astype(np.float32)
    found = run(c, b)
    np.testing.assert_allclose(found.values, run(VQ, b).values, atol=1e-5)
    grad = jax.grad(lambda z: (run(c, b, z).values * g).sum())(jnp.asarray(Z))
    for z, e, gi, got in zip(*(np.asarray(x).reshape(-1, 3) for x in (Z, found.values, g, grad)),
                             strict=True):  # fmt: skip
        a, d = z / np.linalg.norm(z), e / np.linalg.norm(e)
        w = (a + d) / np.linalg.norm(a + d)
        turn = np.eye(3) - 2 * np.outer(w, w) + 2 * np.outer(d, a)
        np.testing.assert_allclose(turn @ a, d, atol=1e-5)
        np.testing.assert_allclose(turn.T @ turn, np.eye(3), atol=1e-5)
        want = np.linalg.norm(e) / np.linalg.norm(z) * turn.T @ gi
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
        assert np.abs(got - gi).max() > 1e-3


def losses(c, b, z=Z, weight=ONES):
    return {k: t.sum / t.count for k, t in run(c, b, z, weight).terms.items()}


def test_losses_are_those_of_the_paper():
    c, b = replace(VQ, decay=0.0), book()
    gap = ((run(c, b).values - Z) ** 2).mean()
    found = losses(c, b)
    np.testing.assert_allclose(found["codebook"], gap, rtol=1e-5)
    np.testing.assert_allclose(found["commit"], 0.25 * gap, rtol=1e-5)
    assert set(losses(VQ, b)) == {"commit"} == set(q.term_names(VQ))


def test_legacy_beta_weighs_the_other_term():
    b = book()

    def by_codes(c):
        def total(codes):
            return sum(losses(c, b | {"codes": codes}).values())

        return jax.grad(total)(b["codes"])

    right = by_codes(replace(VQ, decay=0.0))
    legacy = by_codes(replace(VQ, decay=0.0, legacy_beta=True))
    np.testing.assert_allclose(legacy, 0.25 * right, rtol=1e-5)
    assert np.abs(np.asarray(right)).max() > 1e-3


def test_pictures_that_are_padding_count_nowhere():
    b, weight = book(), np.array([1, 1, 1, 0], np.float32)
    changed = Z.copy()
    changed[3] = 100.0
    a, other = run(VQ, b, Z, weight), run(VQ, b, changed, weight)
    np.testing.assert_allclose(a.stats["counts"].sum, other.stats["counts"].sum)
    np.testing.assert_allclose(a.stats["sums"].sum, other.stats["sums"].sum, atol=1e-5)
    np.testing.assert_allclose(losses(VQ, b, Z, weight)["commit"],
                               losses(VQ, b, changed, weight)["commit"])  # fmt: skip
    assert float(a.stats["counts"].sum.sum()) == 12
    assert float(run(VQ, b).stats["counts"].sum.sum()) == 16


def test_without_memory_the_update_is_a_step_of_k_means():
    c, b = replace(VQ, decay=1e-9, restart=0.0), book()
    found = run(c, b)
    new = q.update(c, b, b, found.stats)
    ids = np.asarray(found.codes).ravel()
    flat = Z.reshape(-1, 3)
    for k in set(ids.tolist()):
        np.testing.assert_allclose(new["codes"][0, k], flat[ids == k].mean(0), atol=1e-3)
    assert np.abs(new["codes"] - b["codes"])[0, list(set(ids.tolist()))].max() > 0.1


def test_the_moving_average_is_that_of_the_formula():
    c, b = replace(VQ, restart=0.0), book()
    found = run(c, b)
    ids, flat = np.asarray(found.codes).ravel(), Z.reshape(-1, 3)
    hot = np.eye(7)[ids]
    n = 0.9 * np.asarray(b["counts"][0]) + 0.1 * hot.sum(0)
    m = 0.9 * np.asarray(b["sums"][0]) + 0.1 * hot.T @ flat
    smooth = (n + 1e-5) / (n.sum() + 7e-5) * n.sum()
    new = q.update(c, b, b, found.stats)
    np.testing.assert_allclose(new["counts"][0], n, rtol=1e-5)
    np.testing.assert_allclose(new["codes"][0], m / smooth[:, None], rtol=1e-4)


def test_dead_codes_start_anew_at_vectors_of_the_batch():
    b = book(spread=0.1)
    b["codes"] = b["codes"].at[0, :5].add(100.0)  # nothing is ever near them
    b["counts"] = b["counts"].at[0, :5].set(0.0)
    found = run(VQ, b)
    new = q.update(VQ, b, b, found.stats)
    fresh, flat = np.asarray(new["codes"][0, :5]), Z.reshape(-1, 3)
    assert all(np.abs(flat - code).max(1).min() < 1e-5 for code in fresh)
    np.testing.assert_allclose(new["counts"][0, :5], VQ.restart)
    off = q.update(replace(VQ, restart=0.0), b, b, found.stats)
    assert np.abs(off["codes"][0, :5]).min() > 5
    alive = np.asarray(b["counts"][0]) > 0.5
    np.testing.assert_allclose(new["codes"][0][alive], off["codes"][0][alive], rtol=1e-5)


def test_candidates_of_two_parts_are_again_vectors_of_one():
    b = book()
    parts = [run(VQ, b, z, keys=jax.random.split(jax.random.key(i), 2), weight=ONES[:2])
             for i, z in enumerate((Z[:2], Z[2:]))]  # fmt: skip
    whole = add(parts[0].stats, parts[1].stats)
    fresh = np.asarray(whole["candidates"].sum / whole["candidates"].count)[0]
    gaps = [np.abs(Z.reshape(-1, 3) - code).max(1).min() for code in fresh]
    assert sorted(gaps)[len(gaps) // 2] < 1e-3  # a near tie of two may blend, rarely
    mean = np.asarray(parts[0].stats["candidates"].sum / parts[0].stats["candidates"].count)[0]
    assert np.abs(fresh - mean).max() > 1e-3


def test_the_update_is_the_same_on_one_device_and_on_eight():
    b, z = book(), np.tile(Z, (2, 1, 1, 1))
    z = z + 0.1 * RNG.normal(size=z.shape).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 8)

    c = replace(VQ, restart=1.2)

    def step(z, weight, keys):
        return q.update(c, b, b, run(c, b, z, weight, keys).stats)

    alone = jax.jit(step)(z, np.ones(8, np.float32), keys)
    mesh = make_mesh(8, 1, 1)
    split = NamedSharding(mesh, P("data"))
    spread = jax.jit(step, out_shardings=NamedSharding(mesh, P()))(
        *(jax.device_put(x, split) for x in (z, np.ones(8, np.float32), keys))
    )
    for name in alone:
        np.testing.assert_allclose(alone[name], spread[name], rtol=1e-5, atol=1e-6)
        shards = [np.asarray(s.data) for s in spread[name].addressable_shards]
        assert all(np.array_equal(shards[0], s) for s in shards)
    assert (alone["counts"] == np.float32(c.restart)).any()  # some code did start anew


def test_residual_codes_add_up_and_each_level_helps():
    b = book(RVQ)
    found = run(RVQ, b)
    assert found.codes.shape == (4, 2, 2, 2)
    np.testing.assert_allclose(q.lookup(RVQ, b, found.codes), found.values, atol=1e-6)
    first = nearest_by_loop(Z.reshape(-1, 3), np.asarray(b["codes"][0]))
    rest = Z.reshape(-1, 3) - np.asarray(b["codes"][0])[first]
    second = nearest_by_loop(rest, np.asarray(b["codes"][1]))
    np.testing.assert_array_equal(found.codes.reshape(-1, 2), np.stack([first, second], 1))


def test_all_ids_of_fsq_come_back():
    ids = jnp.arange(8192, dtype=jnp.int32)[:, None]
    values = q.lookup(FSQ, {}, ids)
    # What a vector is rounded to is what its id stands for: invert the bound by hand.
    level = np.array(FSQ.levels, np.float32)
    half, offset = (level - 1) * 1.001 / 2, np.where(level % 2 == 0, 0.5, 0.0)
    bounded = np.asarray(values) * (level // 2)
    z = np.arctanh((bounded + offset) / half) - np.arctanh(offset / half)
    found = run(FSQ, {}, z.astype(np.float32)[:, None, None], np.ones(8192, np.float32),
                jax.random.split(jax.random.key(0), 8192))  # fmt: skip
    np.testing.assert_array_equal(found.codes.ravel(), ids.ravel())
    np.testing.assert_allclose(found.values.reshape(-1, 5), values, atol=1e-5)
    assert len(np.unique(np.asarray(values), axis=0)) == 8192


def test_fsq_reaches_its_outermost_levels_and_no_further():
    z = np.array([[[[-50.0] * 5]], [[[50.0] * 5]]], np.float32)
    found = run(FSQ, {}, z, ONES[:2], KEYS[:2])
    assert found.codes.ravel().tolist() == [0, 8191]


def test_lfq_is_the_sign_and_its_entropy_that_of_the_joint_distribution():
    z = 0.01 * RNG.normal(size=(4, 2, 2, 5)).astype(np.float32)
    found = run(LFQ, {}, z)
    np.testing.assert_array_equal(found.values, np.where(z > 0, 1.0, -1.0))
    np.testing.assert_array_equal(q.lookup(LFQ, {}, found.codes), found.values)
    codes = np.asarray(q.lookup(LFQ, {}, jnp.arange(32, dtype=jnp.int32)[:, None]))
    logits = 2 * 100 * z.reshape(-1, 5) @ codes.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    each = -(p * np.log(p + 1e-30)).sum(1).mean()
    mean = p.mean(0)
    want = 0.1 * (each + (mean * np.log(mean + 1e-10)).sum())
    term = found.terms["entropy"]
    np.testing.assert_allclose(term.sum / term.count, want, rtol=1e-3)


def test_kl_is_that_of_two_gaussians():
    c = replace(VQ, kind="kl", codes=0, width=3, commit=2.0)
    z = RNG.normal(size=(4, 2, 2, 6)).astype(np.float32)
    found = run(c, {}, z)
    mean, spread = z[..., :3], z[..., 3:]
    want = 0.5 * (mean**2 + np.exp(spread) - 1 - spread).sum((1, 2, 3)).mean()
    term = found.terms["kl"]
    np.testing.assert_allclose(term.sum / term.count, 2.0 * want, rtol=1e-5)
    sharp = run(c, {}, np.concatenate([mean, np.full_like(mean, -25.0)], -1))
    np.testing.assert_allclose(sharp.values, mean, atol=1e-4)
    assert np.abs(found.values - mean).max() > 0.1


def test_perplexity_counts_codes_in_equal_use():
    assert float(q.perplexity(jnp.array([5.0, 5.0, 0.0]))) == pytest.approx(2.0, rel=1e-4)
    assert float(q.perplexity(jnp.array([1.0, 0.0, 0.0]))) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (dict(kind="vqq"), "unknown"),
        (dict(gradient="gumbel"), "unknown"),
        (dict(depth=2), "depth"),
        (dict(kind="fsq"), "levels"),
        (dict(kind="fsq", levels=(2, 8), codes=16, width=2), "at least 3"),
        (dict(kind="lfq", codes=9), "codes=8"),
        (dict(kind="rvq", depth=2, unit=True), "unit"),
        (dict(decay=1.0), "decay"),
        (dict(codes=0), "codes=0.* must be at least 1"),
        (dict(kind="rvq", depth=0), "depth=0 must be at least 1"),
        (dict(kind="kl", codes=0, width=0), "width=0"),
        (dict(kind="lfq", width=40, codes=2**40), "width=40 of an lfq must be at most 24"),
        (dict(commit=-1.0), "commit=-1.0"),
        (dict(legacy_beta=True), "legacy_beta"),
        (dict(kind="kl", codes=0, decay=0.0, legacy_beta=True), "legacy_beta"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, word):
    with pytest.raises(UserError, match=word):
        replace(VQ, **change)


def test_the_entropy_of_lfq_is_taken_over_all_columns():
    """Pictures of a power of two places a row, more of them than are looked at: 64 x 8 x 8."""
    z = RNG.normal(size=(64, 8, 8, 5)).astype(np.float32)
    ones = jnp.ones(64)

    def entropy(z):
        term = q.quantise(LFQ, {}, z, ones, jax.random.split(KEYS[0], 64))[2]["entropy"]
        return term.sum / term.count

    constant = z.copy()
    constant[:, :, 0] = 1.0  # one column of eight tells nothing: the others still use all codes
    found = [float(entropy(jnp.asarray(x))) for x in (z, constant, np.ones_like(z))]
    assert found[1] < 0.5 * found[0] < 0 and abs(found[2]) < 0.01
