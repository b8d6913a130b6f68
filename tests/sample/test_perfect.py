"""Sampling with a perfect network converges to the data, whatever path, prediction and solver.

Data are N(1, 0.5^2), number by number. What a perfect network says of them is known in closed form,
and so is where each noise must end: at 1 + 0.5 times itself.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from random_batch import VOCABULARY
from small import oneflow_config, transfusion_config

from mmjax import diffusion
from mmjax.layers.attention import KV
from mmjax.models.denoise import Parts, over, wide
from mmjax.sample import dial, oneflow, paint
from mmjax.sample.flow import Solver

MEAN, DEVIATION = 1.0, 0.5
KEYS = jax.random.split(jax.random.key(0), 2)
SOLVERS = ("euler", "heun", "ddim")


def says(path: str, prediction: str, x, t):
    """What a perfect network predicts of x_t; t as it meets x."""
    a, s, da, ds = diffusion.coefficients(path, t)
    off = (x - a * MEAN) / (a**2 * DEVIATION**2 + s**2)
    data, noise = MEAN + a * DEVIATION**2 * off, s * off
    return {"data": data, "noise": noise, "velocity": da * data + ds * noise}[prediction]


def perfect(c, path: str) -> Parts:
    """A family's pieces, with a perfect network in the place of its decoder."""
    nothing = dict.fromkeys(Parts._fields)
    at = partial(over, c) if hasattr(c, "cells") else wide
    return Parts(**nothing | dict(
        config=c, vocabulary=VOCABULARY, decoder=c.decoder,
        patch_in=lambda params, x, t: (jnp.zeros((*x.shape[:2], c.tokens, 4)), (x, t)),
        patch_out=lambda params, hidden, kept: says(
            path, c.prediction, kept[0], at(kept[1])
        ),
        run=lambda params, x, mask, place, cache=None, columns=None, **more: (x, cache),
        embed=lambda params, tokens: jnp.zeros((*tokens.shape, 4)),
        mask=lambda batch: None,
        head=lambda params: jnp.zeros((4, VOCABULARY.size)),
        gaps=lambda params, hidden: (jnp.zeros(hidden.shape[:2]),) * 2,
    ))  # fmt: skip


def solver(kind: str, steps: int, shift: float = 1.0) -> Solver:
    return Solver(kind, steps, shift, guidance=1.0, start=0.0, stop=1.0, least=1.0)


def error(made, noise):
    return jnp.abs(made - (MEAN + DEVIATION * noise)).max()


def painted(c, how: Solver):
    """The error of a picture drawn by the interleaved engine's painter."""
    nothing = jnp.zeros((1, 2, 1, 8, 4))
    at = jnp.zeros((1, 2), jnp.int32)
    stand = paint.Stand(KV(nothing, nothing), at, at, jnp.ones((2, 8), bool))
    parts, number = perfect(c, c.path), jnp.zeros(2, jnp.int32)

    def turn(canvas, n):
        here = jnp.full(2, n)
        return paint.paint(parts, None, canvas, stand, here, number, KEYS, how, True)[0], None

    start = paint.empty(c, 2, 1)
    canvas = jax.lax.scan(turn, start, jnp.arange(how.steps + 1))[0]
    return error(canvas.made[:, 0], paint.fresh(KEYS, number, c.shape))


@pytest.mark.parametrize("path", diffusion.PATHS)
@pytest.mark.parametrize("kind", SOLVERS)
def test_pictures_converge_to_the_data(path, kind):
    """Four times the steps leave less than half of the error, at least; Heun's falls faster."""
    for prediction in diffusion.KINDS:
        c = transfusion_config(path=path, prediction=prediction)
        errors = jax.jit(lambda c=c: [painted(c, solver(kind, n)) for n in (20, 80)])()
        converges(*errors, prediction)


def converges(few, many, what="", most=0.05):
    assert many < 0.6 * few or many < 1e-4, (few, many, what)
    assert many < most, (few, many, what)


@pytest.mark.parametrize("path", diffusion.PATHS)
def test_they_do_with_shifted_times_too(path):
    c = transfusion_config(path=path, prediction="noise")
    for shift in (0.3, 3.0):
        how = [solver("ddim", n, shift) for n in (20, 80)]
        found = jax.jit(lambda how=how: [painted(c, one) for one in how])()
        converges(*found, shift, most=0.15)


def patched(c, alpha: float, steps: int):
    """The error of a picture drawn by the dial, patch by patch."""
    parts = SimpleNamespace(
        base=perfect(c, c.path), config=SimpleNamespace(base=c, image_alpha=alpha)
    )
    how = solver("ddim", steps)
    options = dial.Options("patches", c.tokens, steps, 0.0, 1.0, True, how)
    found = dial.plan("block", alpha, c.tokens, steps, discrete=False)
    chart = dial.chart_of(None, options, found)
    cache = KV(*jnp.zeros((2, 1, 2, 1, 8, 4)))

    def run(x, step, cache):
        return jnp.zeros((2, found.rows, 4)), step.start + jnp.arange(found.rows), cache

    made = dial.flow(parts, None, (cache, run), chart, KEYS, options)
    return error(made, jax.vmap(lambda key: jax.random.normal(key, c.shape))(KEYS))


@pytest.mark.parametrize(("path", "prediction"), [("flow", "data"), ("cosine", "noise")])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_so_do_the_patches_of_the_dial(path, prediction, alpha):
    """Each at its own time, whatever the law that its times are drawn by."""
    c = transfusion_config(path=path, prediction=prediction, time_mean=-0.5)
    converges(*jax.jit(lambda: [patched(c, alpha, n) for n in (20, 80)])(), most=0.2)


@pytest.mark.parametrize("prediction", ["velocity", "data"])
def test_so_do_pictures_of_oneflow(prediction):
    c = oneflow_config(prediction=prediction)
    parts, length = perfect(c, "flow"), 8

    def drawn(steps):
        options = oneflow.Options(steps, length, 1, 1.0, 1.0, False)
        noise = jax.random.normal(jax.random.key(3), (2, 1, *c.shape))
        none = jnp.zeros((2, length), jnp.int32)
        row = jnp.zeros(2, jnp.int32)
        canvas = oneflow.Canvas(
            tokens=none, image=none, given=none > 0, open=none > 0, length=row + length,
            clock=row + steps, x=noise, age=jnp.zeros((2, 1), jnp.int32), room=row + length,
            left=row, words=row, step=jnp.zeros((), jnp.int32),
        )  # fmt: skip
        net = oneflow.network(parts, None)
        return error(oneflow.fill(parts, net, canvas, KEYS, options).x, noise)

    converges(*jax.jit(lambda: [drawn(n) for n in (20, 80)])(), prediction)


def test_the_floor_of_training_leaves_a_bias_in_what_is_drawn(monkeypatch):
    """What was wrong: with the divisor of training, four times the steps change nothing."""
    monkeypatch.setattr(diffusion, "SHORT", diffusion.FLOOR)
    c = transfusion_config(path="cosine", prediction="noise")
    few, many = jax.jit(lambda: [painted(c, solver("ddim", n)) for n in (160, 640)])()
    assert many > 0.6 * few
