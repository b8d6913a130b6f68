"""Paths, conversions between predictions, and times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import diffusion
from mmjax.error import UserError
from mmjax.sample import flow

CLEAN, NOISE = jax.random.normal(jax.random.key(0), (2, 64, 8))
TIMES = jnp.linspace(0.1, 0.9, 64)[:, None]


@pytest.mark.parametrize("path", diffusion.PATHS)
def test_a_path_leads_from_noise_to_data_and_its_velocity_is_the_derivative(path):
    ends = [diffusion.mix(path, CLEAN, NOISE, jnp.full((64, 1), t)) for t in (0.0, 1.0)]
    np.testing.assert_allclose(ends[0], NOISE, atol=1e-6)
    np.testing.assert_allclose(ends[1], CLEAN, atol=1e-6)
    _, slope = jax.jvp(
        lambda t: diffusion.mix(path, CLEAN, NOISE, t), (TIMES,), (jnp.ones_like(TIMES),)
    )
    velocity = diffusion.truth(path, CLEAN, NOISE, TIMES).velocity
    np.testing.assert_allclose(velocity, slope, atol=1e-5)
    other = {"flow": "cosine", "cosine": "flow"}[path]
    assert (
        np.abs(np.asarray(diffusion.truth(other, CLEAN, NOISE, TIMES).velocity - slope)).max() > 1
    )


@pytest.mark.parametrize("path", diffusion.PATHS)
@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_each_prediction_gives_the_two_others(path, kind):
    true = diffusion.truth(path, CLEAN, NOISE, TIMES)
    noisy = diffusion.mix(path, CLEAN, NOISE, TIMES)
    found = diffusion.estimate(path, kind, getattr(true, kind), noisy, TIMES)
    for name in diffusion.KINDS:
        np.testing.assert_allclose(getattr(found, name), getattr(true, name), atol=2e-4)
    wrong = diffusion.estimate(path, kind, getattr(true, kind) + 0.1, noisy, TIMES)
    others = [name for name in diffusion.KINDS if name != kind]
    assert all(np.abs(getattr(wrong, n) - getattr(true, n)).max() > 1e-3 for n in others)


@pytest.mark.parametrize("path", diffusion.PATHS)
@pytest.mark.parametrize("kind", diffusion.KINDS)
def test_a_perfect_network_has_no_loss_at_any_time(path, kind):
    """Where divisors are bounded the aim is bounded with them; the truth is not."""
    t = jnp.linspace(0.0, 1.0, 64)[:, None]
    noisy = diffusion.mix(path, CLEAN, NOISE, t)
    true = diffusion.truth(path, CLEAN, NOISE, t)
    found = diffusion.estimate(path, kind, getattr(true, kind), noisy, t)
    aim = diffusion.aim(path, kind, CLEAN, NOISE, noisy, t)
    for name in diffusion.KINDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(aim, name))
        apart = np.abs(np.asarray(getattr(aim, name) - getattr(true, name))).max(1)
        middle = (t[:, 0] > 0.06) & (t[:, 0] < 0.94)
        assert apart[middle].max() < 1e-3
        assert (apart.max() > 0.1) == (name != kind and kind != "velocity")


@pytest.mark.parametrize("path", diffusion.PATHS)
@pytest.mark.parametrize("solver", ["euler", "heun", "ddim"])
def test_a_perfect_network_of_data_is_drawn_to_the_end(path, solver):
    """Its own data, from any noise; with the divisor of training some of the noise would stay."""
    times = jnp.linspace(0.0, 1.0, 51)
    for floor, done in ((diffusion.SHORT, True), (diffusion.FLOOR, False)):

        def velocity(x, t, floor=floor):
            return diffusion.estimate(path, "data", CLEAN, x, t[:, None], floor).velocity

        x = flow.solve(solver, path, velocity, NOISE, times)
        off = np.sqrt(np.mean((np.asarray(x) - CLEAN) ** 2))
        assert (off < 1e-3) == done, (floor, off)


def test_cosine_is_ddpm_with_noise_and_salimans_v():
    """sqrt(alpha_bar_u) = cos(u pi / 2); v = a e - s x_1 is -2 / pi times the velocity."""
    a, s, *_ = diffusion.coefficients("cosine", TIMES)
    np.testing.assert_allclose(a, jnp.cos((1 - TIMES) * jnp.pi / 2), atol=1e-6)
    np.testing.assert_allclose(a**2 + s**2, 1.0, atol=1e-6)
    v = a * NOISE - s * CLEAN
    velocity = diffusion.truth("cosine", CLEAN, NOISE, TIMES).velocity
    np.testing.assert_allclose(v, -2 / jnp.pi * velocity, atol=1e-5)


def test_half_way_signal_and_noise_are_equal_on_both_paths():
    for path in diffusion.PATHS:
        half = diffusion.coefficients(path, jnp.array(0.5))
        np.testing.assert_allclose(half.a / half.s, 1.0, rtol=1e-6)
        early = diffusion.coefficients(path, jnp.array(0.4))
        assert early.a < early.s


@pytest.mark.parametrize("path", diffusion.PATHS)
def test_conversions_stay_finite_at_both_ends(path):
    for t in (0.0, 1.0):
        for kind in diffusion.KINDS:
            found = diffusion.estimate(path, kind, CLEAN, NOISE, jnp.full((64, 1), t))
            assert all(np.isfinite(x).all() and np.abs(x).max() < 400 for x in found)


def test_shift_moves_times_towards_noise_and_keeps_the_ends():
    t = jnp.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(diffusion.shifted(t, 1.0), t, atol=1e-7)
    moved = np.asarray(diffusion.shifted(t, 3.0))
    assert (moved[1:-1] < t[1:-1]).all() and (np.diff(moved) > 0).all()
    np.testing.assert_allclose(moved[[0, -1]], [0, 1], atol=1e-7)
    np.testing.assert_allclose(moved[5], 0.25, rtol=1e-6)  # u = 1/2 becomes 3/4


def test_names_are_checked():
    with pytest.raises(UserError, match=r"model.path='line' is unknown; have: flow, cosine"):
        diffusion.check_names("line", "data", "data")
    with pytest.raises(UserError, match=r"model.target='x'"):
        diffusion.check_names("flow", "data", "x")
