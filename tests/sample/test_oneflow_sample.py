"""OneFlow's sampler: with a network that knows the document, and with random weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from random_batch import VOCABULARY
from small import oneflow_config, oneflow_model

from mmjax.batch import Batch
from mmjax.sample import oneflow as sampler
from mmjax.sample.oneflow import Canvas, Options, Plan, Seen

V, P = VOCABULARY, 4
MODEL, PARAMS = oneflow_model(oneflow_config())
OPTIONS = Options(12, 32, 2, 1.0, 1.0, True)


def prompt(*rows, pixels=None) -> Batch:
    """Rows of tokens as prompts; the patches of a picture are written as 0."""
    length = max(len(r) for r in rows)
    tokens = np.array([[*r, *[V.pad] * (length - len(r))] for r in rows], np.int32)
    held = np.array([[1] * len(r) + [0] * (length - len(r)) for r in rows], np.int32)
    image = (tokens == 0) * held
    place = np.tile(np.arange(length, dtype=np.int32), (len(rows), 1)) * held
    pixels = np.zeros((len(rows), 1, 4, 4, 3), np.uint8) if pixels is None else pixels
    weight = (held * (place > 0)).astype(np.float32)
    return Batch(tokens, image, held, place, image, weight, pixels)


def plan(drawn=(False,), pictures=(0,), room=(32,)) -> Plan:
    return Plan(np.array(drawn), np.array(pictures, np.int32), np.array(room, np.int32))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def oracle(document, picture, scale=1.0, rate=None):
    """A network that knows X_1 (distinct words) and says for each gap what of it is missing.

    Args:
        document: [n] tokens without EOS. picture: [h, w, c], of every picture.
        scale: times the true rate. rate: instead of it.
    """
    words = jnp.array([t for t in document if t not in (0, V.eoi)], jnp.int32)
    number = {int(t): i for i, t in enumerate(words)}
    index = jnp.array([number.get(t, -1) for t in range(V.size)])

    def net(batch: Batch, x, t) -> Seen:
        # An EOI stands for its BOI.
        tokens = jnp.where(batch.tokens == V.eoi, V.boi, batch.tokens)
        mine = jnp.where((batch.segment > 0) & (batch.modality == 0), index[tokens], -1)
        after = jnp.pad(batch.tokens[:, 1:], ((0, 0), (0, 1)))
        ahead = jnp.pad(batch.segment[:, 1:], ((0, 0), (0, 1)))
        until = jnp.where(ahead > 0, index[after], len(words))
        order = jnp.arange(len(words))[None, None]
        bag = (order > mine[:, :, None]) & (order < until[:, :, None])
        k = bag.sum(-1).astype(jnp.float32)
        q = jnp.full((*k.shape, V.size), -1e9)
        q = q.at[:, :, words].set(jnp.where(bag, 0.0, -1e9))
        log_rate = jnp.log(jnp.maximum(k * scale, 1e-9) if rate is None else jnp.full_like(k, rate))
        goal = jnp.broadcast_to(picture, x.shape)
        level = jnp.minimum(t, 0.999)[:, :, None, None, None]
        velocity = (goal - x) / (1.0 - level)
        return Seen(jnp.where(k > 0, -50.0, 50.0), log_rate, q, velocity)

    return net


DOCUMENT = (V.bos, 7, 8, 9, 10, V.boi, 0, 0, 0, 0, V.eoi, 11, 12, 13, 14, 15)
PICTURE = jax.random.normal(jax.random.key(5), (4, 4, 3))


@partial(jax.jit, static_argnums=(0, 4))
def filled(net, rows, asked, key, options=OPTIONS):
    canvas = sampler.begin(MODEL.parts, PARAMS, rows, asked, key, options)
    return sampler.fill(MODEL.parts, net, canvas, key, options)


def text(canvas: Canvas, r=0):
    """A row's tokens, its patches as 0."""
    return tuple(np.asarray(canvas.tokens)[r, : int(canvas.length[r])].tolist())


def test_a_network_that_knows_the_document_writes_and_draws_it():
    """From nothing, always inserting: words, the picture in its place, and its pixels."""
    for seed in range(3):
        canvas = filled(
            oracle(DOCUMENT, PICTURE, rate=1e6),
            prompt((V.bos,)),
            plan(pictures=(1,)),
            keys(1, seed),
        )
        assert text(canvas) == DOCUMENT
        np.testing.assert_array_equal(
            np.asarray(canvas.image)[0, :16] == 1, np.array(DOCUMENT) == 0
        )
        np.testing.assert_allclose(canvas.x[0, 0], PICTURE, atol=1e-4)
        assert not np.asarray(canvas.given)[0, 1:].any() and canvas.left[0] == 0
    wrong = filled(
        oracle(DOCUMENT[:9], PICTURE, rate=1e6), prompt((V.bos,)), plan(pictures=(1,)), keys(1)
    )
    assert text(wrong) != DOCUMENT


def test_text_grows_with_its_time():
    """With the true rates, half of the words stand at half of the time; with double, more."""
    words = (V.bos, *range(7, 31))
    rows = prompt(*[(V.bos,)] * 64)
    asked = plan((False,) * 64, (0,) * 64, (32,) * 64)
    counts = []
    for scale in (1.0, 2.0):
        o = Options(100, 32, 2, 1.0, 1.0, True)
        canvas = sampler.begin(MODEL.parts, PARAMS, rows, asked, keys(64), o)
        step = jax.jit(partial(sampler.step, MODEL.parts, oracle(words, PICTURE, scale), o=o))
        for _ in range(50):
            canvas = step(canvas, keys(64))
        counts.append(float(np.mean(np.asarray(canvas.length) - 1)))
    assert abs(counts[0] - 12) < 1.0, counts
    assert counts[1] > 15
