"""Solvers of dx/dt = v(x, t) from noise at t = 0 to data at t = 1, and guidance."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from mmjax import diffusion
from mmjax.sample.sizes import arguments
from mmjax.sample_config import SampleConfig


@arguments(("steps", "shift", "guidance", "start", "stop", "least"))
@dataclass(frozen=True)
class Solver:
    """How pictures are denoised; its numbers may be arguments of a compiled program.

    Attributes:
        kind: "euler"; "heun", with two evaluations a step; "ddim" (Song et al. 2021), which on the
            flow path is Euler.
        steps: of the solver. shift: see `diffusion.shifted`; 1 spaces the times evenly.
        guidance: s in u + s (c - u). start, stop: times between which there is any guidance.
        least: the guided velocity is scaled down to the length of the conditional one, but to no
            less than this share of its own (BAGEL's renormalisation); 1 leaves it.
    """

    kind: str
    steps: int
    shift: float
    guidance: float
    start: float
    stop: float
    least: float

    def times(self):
        """[steps + 1] f32 from 0 to 1."""
        return self.time(jnp.arange(self.steps + 1))

    def time(self, n):
        """Times before steps n, int32 of any shape; n = steps is the end, 1."""
        return diffusion.shifted(n.astype(jnp.float32) / self.steps, self.shift)

    def guide(self, conditional, unconditional, t):
        """Guided velocity; [b, ...] both, t [b], or as many axes as they have."""
        c, u = conditional, unconditional
        v = guided(c, u, self.guidance)
        axes = tuple(range(1, c.ndim))

        def length(x):
            return jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))

        v = v * jnp.clip(length(c) / jnp.maximum(length(v), 1e-9), self.least, 1.0)
        inside = (t >= self.start) & (t <= self.stop)
        return jnp.where(inside if t.ndim == c.ndim else as_wide(inside, c), v, c)


def solver_of(c: SampleConfig) -> Solver:
    """The solver that a configuration asks for."""
    limits = c.guidance_start, c.guidance_stop, c.guidance_least
    return Solver(c.solver, c.steps, c.shift, c.guidance, *limits)


def as_wide(t, x):
    """Numbers [b], one a row, as they meet x [b, ...]."""
    return t.reshape(-1, *(1,) * (x.ndim - 1))


def step(kind: str, path: str, velocity: Callable, x, t, to, meet: Callable = as_wide):
    """One step of a solver from times t to times `to`, [b] each.

    Args:
        velocity: (x, t) -> dx/dt, shaped like x.
        x: [b, ...]. meet: (times, x) -> times as they meet x, where there is not one a row.
    """
    v = velocity(x, t)
    wide, far = meet(t, x), meet(to, x)
    if kind == "ddim":
        found = diffusion.estimate(path, "velocity", v, x, wide)
        return diffusion.mix(path, found.data, found.noise, far)
    there = x + (far - wide) * v
    if kind == "euler":
        return there
    # At the end a velocity is least well known (its divisor is bounded): there Heun is Euler.
    mean = 0.5 * (v + velocity(there, to))
    return jnp.where(far < 1.0, x + (far - wide) * mean, there)


def begun(prediction: str, t, to):
    """Times t of steps to times `to`, of a network that predicts noise never 0.

    At t = 0 there is nothing of the data in x_t = e, and what else follows from its noise is 0 / 0.
    So noise is taken for x_t in the middle of its first step, at most at 0.05: it differs from that
    by as much as a step is long, hence by nothing as steps grow many, and what a prediction is
    divided by is no smaller than the step, so that no error of a network is multiplied.
    """
    if prediction != "noise":
        return t
    return jnp.where((t > 0) | (to <= 0), t, jnp.clip(0.5 * to, diffusion.SHORT, diffusion.FLOOR))


def solve(kind: str, path: str, velocity: Callable, noise, times):
    """All steps, over `times` [s + 1] that all rows of `noise` [b, ...] share; x at the last."""

    def body(x, pair):
        t, to = (jnp.broadcast_to(p, x.shape[:1]) for p in pair)
        return step(kind, path, velocity, x, t, to), None

    return jax.lax.scan(body, noise, (times[:-1], times[1:]))[0]


def guided(conditional, unconditional, scale: float):
    """Classifier-free guidance u + s (c - u): s = 1 is the conditional, s = 0 the other."""
    return unconditional + scale * (conditional - unconditional)
