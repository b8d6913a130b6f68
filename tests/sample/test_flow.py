"""Solvers against flows whose end is known, and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import diffusion
from mmjax.sample.flow import Solver, guided, solve, step

NOISE = jax.random.normal(jax.random.key(0), (2, 3))


def times(count: int):
    return jnp.linspace(0.0, 1.0, count + 1)


def toward(x1, path):
    """The exact velocity where all data are one point x1."""

    def velocity(x, t):
        t = t[:, None]
        a, s, *_ = diffusion.coefficients(path, t)
        noise = (x - a * x1) / jnp.maximum(s, 1e-6)
        return diffusion.truth(path, jnp.broadcast_to(x1, x.shape), noise, t).velocity

    return velocity


@pytest.mark.parametrize("kind", ["euler", "heun", "ddim"])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_one_point_is_reached_exactly_on_the_flow_path(kind, count):
    x1 = jnp.arange(6.0).reshape(2, 3)
    got = solve(kind, "flow", toward(x1, "flow"), NOISE, times(count))
    np.testing.assert_allclose(got, x1, atol=1e-4)
    wrong = solve(kind, "flow", lambda x, t: x1 - x, NOISE, times(10))
    assert np.abs(np.asarray(wrong - x1)).max() > 0.1


def test_ddim_is_exact_for_one_point_where_euler_is_not():
    x1 = jnp.arange(6.0).reshape(2, 3)
    found = {
        kind: solve(kind, "cosine", toward(x1, "cosine"), NOISE, times(4))
        for kind in ("ddim", "euler")
    }
    np.testing.assert_allclose(found["ddim"], x1, atol=1e-4)
    assert np.abs(np.asarray(found["euler"] - x1)).max() > 0.05


def gaussian(m, s, path):
    """The exact velocity that carries N(0, 1) to N(m, s^2)."""

    def velocity(x, t):
        a, sigma, *_ = diffusion.coefficients(path, t)
        best = m + a * s**2 / (a**2 * s**2 + sigma**2) * (x - a * m)
        noise = (x - a * best) / jnp.maximum(sigma, 1e-6)
        return diffusion.truth(path, best, noise, t).velocity

    return velocity


@pytest.mark.parametrize("path", diffusion.PATHS)
@pytest.mark.parametrize("kind", ["euler", "heun", "ddim"])
def test_gaussian_flow_gives_gaussian_samples(path, kind):
    x = jax.random.normal(jax.random.key(0), (20000,))
    x = np.asarray(solve(kind, path, gaussian(2.0, 0.5, path), x, times(200)))
    assert abs(x.mean() - 2.0) < 0.02 and abs(x.std() - 0.5) < 0.02


def test_ddim_is_euler_on_the_flow_path_and_not_on_the_cosine_path():
    x, t, to = jnp.ones((1, 2)), jnp.array([0.3]), jnp.array([0.5])
    for path, alike in (("flow", True), ("cosine", False)):
        a, b = (step(k, path, lambda x, t: 2.0 - x, x, t, to) for k in ("ddim", "euler"))
        assert bool(np.allclose(a, b, atol=1e-6)) is alike


def test_heun_is_of_second_order():
    """Halving the step divides its error by about four, Euler's by two."""
    x = jnp.array([0.7])
    exact = solve("heun", "cosine", gaussian(2.0, 0.5, "cosine"), x, jnp.linspace(0.0, 0.8, 4001))

    def error(kind, count):
        end = jnp.linspace(0.0, 0.8, count + 1)
        return float(
            jnp.abs(solve(kind, "cosine", gaussian(2.0, 0.5, "cosine"), x, end) - exact)[0]
        )

    assert error("heun", 20) / error("heun", 40) > 3.3
    assert 1.6 < error("euler", 20) / error("euler", 40) < 2.4


def test_rows_go_at_their_own_times():
    x = jnp.ones((2, 1))
    got = step(
        "euler", "flow", lambda x, t: t[:, None], x, jnp.array([0.2, 0.4]), jnp.array([0.3, 0.9])
    )
    np.testing.assert_allclose(got[:, 0], [1 + 0.1 * 0.2, 1 + 0.5 * 0.4], rtol=1e-6)


def test_guided_limits():
    c, u = jnp.ones(3), jnp.zeros(3)
    assert (guided(c, u, 1.0) == c).all() and (guided(c, u, 0.0) == u).all()
    assert (guided(c, u, 2.0) == 2).all()


def solver(**changes):
    base = dict(kind="euler", steps=4, shift=1.0, guidance=3.0, start=0.0, stop=1.0, least=1.0)
    return Solver(**base | changes)


def test_guidance_has_an_interval_and_can_keep_its_length():
    c, u = jax.random.normal(jax.random.key(1), (2, 2, 4, 4, 3))
    t = jnp.array([0.3, 0.8])
    plain = solver().guide(c, u, t)
    np.testing.assert_allclose(plain, guided(c, u, 3.0), atol=1e-6)
    late = solver(start=0.5).guide(c, u, t)
    np.testing.assert_array_equal(late[0], c[0])
    np.testing.assert_array_equal(late[1], plain[1])
    early = solver(stop=0.5).guide(c, u, t)
    np.testing.assert_array_equal(early[1], c[1])

    def length(x):
        return np.sqrt((np.asarray(x) ** 2).sum((1, 2, 3)))

    kept = solver(least=0.0).guide(c, u, t)
    assert (length(plain) > 1.5 * length(c)).all()
    np.testing.assert_allclose(length(kept), length(c), rtol=1e-5)
    half = solver(least=0.9).guide(c, u, t)
    np.testing.assert_allclose(length(half), 0.9 * length(plain), rtol=1e-5)


def test_times_are_even_or_shifted():
    np.testing.assert_allclose(solver().times(), [0, 0.25, 0.5, 0.75, 1], atol=1e-6)
    assert (np.asarray(solver(shift=3.0).times())[1:-1] < [0.25, 0.5, 0.75]).all()
