"""Paths from noise to data, what a network may predict on them, and the conversions between.

    x_t = a(t) x_1 + s(t) e,   t = 0 noise, t = 1 data,   velocity = dx_t / dt = a' x_1 + s' e

flow: a = t, s = 1 - t, so the velocity is x_1 - e (Lipman et al. 2023, arXiv 2210.02747).
cosine: a = sin(pi t / 2), s = cos(pi t / 2), the schedule of DDPM's noise prediction in continuous
time, sqrt(alpha_bar) = cos(u pi / 2) at u = 1 - t (Transfusion, section 3.3; Nichol and Dhariwal
2021 add an offset that matters in the last hundredth only). What Salimans and Ho (arXiv 2202.00512)
call v, a e - s x_1, is -2 / pi times the velocity of that path.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.error import UserError

PATHS = ("flow", "cosine")
KINDS = ("velocity", "data", "noise")
# Smallest divisor of a conversion in training: where nearly all is data, it says next to nothing of
# the noise, and the reverse (Li and He 2025, arXiv 2511.13720, bound 1 - t by the same number).
FLOOR = 0.05
# The same while drawing, where a bounded divisor is a bias that more steps do not remove: a step to
# t' <= 1 moves at most all the way to the data, whatever the divisor, and how noise is predicted
# near t = 0 see `sample.flow.begun`.
SHORT = 1e-4


def check_names(path: str, prediction: str, target: str, at: str = "model") -> None:
    """Checks the names a configuration gives, which lies at `at`.

    Raises:
        UserError: for an unknown one.
    """
    for field, value, known in (
        ("path", path, PATHS),
        ("prediction", prediction, KINDS),
        ("target", target, KINDS),
    ):
        if value not in known:
            raise UserError(f"{at}.{field}={value!r} is unknown; have: {', '.join(known)}")


class Coefficients(NamedTuple):
    """Of a path at times t; shaped like t. da and ds are derivatives by t."""

    a: jax.Array
    s: jax.Array
    da: jax.Array
    ds: jax.Array


def coefficients(path: str, t) -> Coefficients:
    """A path's coefficients at times t in [0, 1]."""
    if path == "flow":
        one = jnp.ones_like(t)
        return Coefficients(t, 1.0 - t, one, -one)
    w = jnp.pi / 2
    a, s = jnp.sin(w * t), jnp.cos(w * t)
    return Coefficients(a, s, w * s, -w * a)


def mix(path: str, clean, noise, t):
    """x_t; clean and noise [...], t broadcasts against them."""
    c = coefficients(path, t)
    return c.a * clean + c.s * noise


class Estimate(NamedTuple):
    """One prediction in its three forms; [...] each."""

    velocity: jax.Array
    data: jax.Array
    noise: jax.Array


def truth(path: str, clean, noise, t) -> Estimate:
    """What a perfect network would predict."""
    c = coefficients(path, t)
    velocity = c.da * clean + c.ds * noise
    return Estimate(velocity, clean, jnp.broadcast_to(noise, velocity.shape))


def aim(path: str, prediction: str, clean, noise, noisy, t) -> Estimate:
    """What `estimate` makes of a perfect network's output: the truth, but for bounded divisors."""
    output = truth(path, clean, noise, t)._asdict()[prediction]
    return estimate(path, prediction, output, noisy, t)


def estimate(path: str, prediction: str, output, noisy, t, floor: float = FLOOR) -> Estimate:
    """A network's output as velocity, data and noise, which follow from one another given x_t.

    Args:
        prediction: what the output is, of KINDS.
        output, noisy: [...]. t: broadcasts against them.
        floor: least divisor; FLOOR in training, SHORT while drawing.
    """
    a, s, da, ds = coefficients(path, t)
    det = a * ds - s * da  # -1 on the flow path, -pi / 2 on the cosine path
    if prediction == "velocity":
        data = (ds * noisy - s * output) / det
        return Estimate(output, data, (a * output - da * noisy) / det)
    if prediction == "data":
        s = jnp.maximum(s, floor)
        return Estimate((ds * noisy - det * output) / s, output, (noisy - a * output) / s)
    a = jnp.maximum(a, floor)
    return Estimate((da * noisy + det * output) / a, (noisy - s * output) / a, output)


def shifted(t, shift: float):
    """Times moved towards noise by a factor, u -> shift u / (1 + (shift - 1) u) with u = 1 - t.

    Esser et al. 2024 (arXiv 2403.03206, equation 23): larger pictures need it. 1 leaves them.
    """
    u = 1.0 - t
    return 1.0 - shift * u / (1.0 + (shift - 1.0) * u)
