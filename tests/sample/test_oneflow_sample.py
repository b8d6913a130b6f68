"""OneFlow's sampler: with a network that knows the document, and with random weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_batch import VOCABULARY
from small import oneflow_config, oneflow_model, story

from mmjax import losses
from mmjax.batch import Batch
from mmjax.sample import oneflow as sampler
from mmjax.sample.oneflow import Canvas, Inserted, Options, Plan, Seen

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


def plan(drawn=(False,), pictures=(0,), room=(32,), words=99) -> Plan:
    sizes = (np.array(x, np.int32) for x in (pictures, room, [words] * len(drawn)))
    return Plan(np.array(drawn), *sizes)


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


@partial(jax.jit, static_argnames="options")
def begun(rows, asked, key, options=OPTIONS):
    return sampler.begin(MODEL.parts, PARAMS, rows, asked, key, options)


@partial(jax.jit, static_argnums=(0, 4))
def filled(net, rows, asked, key, options=OPTIONS):
    return sampler.fill(MODEL.parts, net, begun(rows, asked, key, options), key, options)


def text(canvas: Canvas, r=0):
    """A row's tokens, its patches as 0."""
    return tuple(np.asarray(canvas.tokens)[r, : int(canvas.length[r])].tolist())


def test_a_network_that_knows_the_document_writes_and_draws_it():
    """From nothing, always inserting: words, the picture in its place, and its pixels."""
    nothing, asked = prompt((V.bos,)), plan(pictures=(1,))
    for seed in range(3):
        canvas = filled(oracle(DOCUMENT, PICTURE, rate=1e6), nothing, asked, keys(1, seed))
        assert text(canvas) == DOCUMENT
        patches = np.asarray(canvas.image)[0, : len(DOCUMENT)] == 1
        np.testing.assert_array_equal(patches, np.array(DOCUMENT) == 0)
        np.testing.assert_allclose(canvas.x[0, 0], PICTURE, atol=1e-4)
        assert not np.asarray(canvas.given)[0, 1:].any() and canvas.left[0] == 0
    assert (
        text(filled(oracle(DOCUMENT[:5], PICTURE, rate=1e6), nothing, asked, keys(1))) != DOCUMENT
    )


def test_text_grows_with_its_time():
    """With the true rates, half of the words stand at half of the time; with double, more."""
    words = (V.bos, *range(7, 31))
    rows = prompt(*[(V.bos,)] * 64)
    asked = plan((False,) * 64, (0,) * 64, (32,) * 64)
    counts = []
    for scale in (1.0, 2.0):
        o = Options(100, 32, 2, 1.0, 1.0, True)
        canvas = begun(rows, asked, keys(64), o)
        step = jax.jit(partial(sampler.step, MODEL.parts, oracle(words, PICTURE, scale), o=o))
        for _ in range(50):
            canvas = step(canvas, keys(64))
        counts.append(float(np.mean(np.asarray(canvas.length) - 1)))
    assert abs(counts[0] - 12) < 1.0, counts
    assert counts[1] > 15


def test_prompts_stay_and_text_comes_around_pictures_and_behind_words():
    seen = prompt((V.bos, V.boi, 0, 0, 0, 0, V.eoi), (V.bos, 7, 8, 9, 10, 11, 12))
    asked = plan((False,) * 2, (0, 0), (32, 32))
    canvas = filled(oracle(DOCUMENT, PICTURE, rate=1e6), seen, asked, keys(2))
    assert text(canvas) == DOCUMENT  # words on both sides of the picture that was given
    assert np.asarray(canvas.given)[0, :16].tolist() == [j in (0, *range(5, 11)) for j in range(16)]
    # Of words that are missing between given ones, none is inserted; what comes behind is.
    assert text(canvas, 1) == (V.bos, *range(7, 16))
    gap = prompt((V.bos, 8, 12))
    assert text(filled(oracle(DOCUMENT, PICTURE, rate=1e6), gap, plan(), keys(1))) == (
        V.bos, 8, 12, 13, 14, 15,
    )  # fmt: skip


def test_rows_that_draw_do_nothing_else():
    rows = prompt((V.bos, 7, 8, V.boi), (V.bos,))
    asked = plan((True, False), (0, 1), (9, 32))
    canvas = filled(oracle(DOCUMENT, PICTURE, rate=1e6), rows, asked, keys(2))
    assert text(canvas) == (V.bos, 7, 8, V.boi, 0, 0, 0, 0, V.eoi)
    np.testing.assert_allclose(canvas.x[0, 0], PICTURE, atol=1e-4)
    assert np.asarray(canvas.given)[0, :9].tolist() == [True] * 3 + [False] * 6
    assert text(canvas, 1) == DOCUMENT


def eager(seed: int):
    """A network of random weights that inserts wherever it may, pictures too."""
    params = jax.tree.map(jnp.copy, PARAMS)
    params["gaps"]["bias"] = jnp.array([-3.0 - seed, 3.0])
    params["head"]["w"] = params["head"]["w"].at[:, V.boi].mul(3.0)
    return sampler.network(MODEL.parts, params)


EAGER = eager(0)


@pytest.mark.parametrize("room", [5, 11, 12, 32])
def test_what_has_no_room_is_not_inserted(room):
    rows = prompt(*[(V.bos, 7)] * 8)
    asked = plan((False,) * 8, (2,) * 8, (room,) * 8)
    canvas = filled(EAGER, rows, asked, keys(8))
    length = np.asarray(canvas.length)
    assert (length <= room).all() and length.max() > room - 5
    for r in range(8):
        row, image = text(canvas, r), np.asarray(canvas.image)[r]
        assert not image[length[r] :].any() and set(row[1:]).isdisjoint({V.bos, V.eos})
        begun = [j for j, token in enumerate(row) if token == V.boi]
        assert len(begun) == 2 - canvas.left[r] == image.max()
        for j in begun:
            assert row[j + 1 : j + 6] == (0, 0, 0, 0, V.eoi) and np.ptp(image[j + 1 : j + 5]) == 0
        assert row.count(0) == 4 * len(begun) == (image > 0).sum()
    assert (np.asarray(canvas.left) < 2).any() == (room > 5)
    assert (np.asarray(canvas.age) == OPTIONS.steps).all()


@pytest.mark.parametrize("most", [0, 3])
def test_words_are_counted_apart_from_pictures(most):
    rows = prompt(*[(V.bos, 7)] * 8)
    free, few = (
        filled(EAGER, rows, plan((False,) * 8, (1,) * 8, (32,) * 8, words), keys(8))
        for words in (99, most)
    )

    def words(canvas, r):
        return sum(t not in (0, V.boi, V.eoi) for t in text(canvas, r)[2:])

    assert max(words(free, r) for r in range(8)) > 3
    assert max(words(few, r) for r in range(8)) == most
    assert (np.asarray(few.left) == 0).any()  # and there are pictures beside them


def test_rows_are_independent_and_seeds_reproduce():
    rows = prompt((V.bos, 7), (V.bos, V.boi, 0, 0, 0, 0, V.eoi))
    asked = plan((False,) * 2, (1, 1), (20, 26))
    both = filled(EAGER, rows, asked, keys(2))
    again = filled(EAGER, rows, asked, keys(2))
    jax.tree.map(np.testing.assert_array_equal, both, again)
    # The second row alone, on a larger canvas.
    alone = jax.tree.map(lambda x: x[1:], (rows, asked))
    wide = Options(12, 48, 2, 1.0, 1.0, True)
    one = filled(EAGER, *alone, keys(2)[1:], wide)
    assert text(one) == text(both, 1)
    np.testing.assert_allclose(one.x[0], both.x[1], atol=1e-3)
    other = filled(EAGER, *alone, keys(2, 1)[1:], wide)
    assert text(other) != text(one)


def test_guidance_is_away_from_the_row_without_its_prompt():
    rows = prompt((V.bos, 7, 8, V.boi), (V.bos, V.boi, 0, 0, 0, 0, V.eoi))
    asked = plan((True, False), (0, 0), (9, 20))
    heard: list[Batch] = []

    def net(batch: Batch, x, t) -> Seen:
        heard.append(batch)
        base = batch.tokens.astype(jnp.float32) + 0.5 * batch.weight.sum(1, keepdims=True)
        log_q = jnp.broadcast_to(base[:, :, None], (*base.shape, V.size))
        return Seen(base, base, log_q, x + batch.weight.sum())

    o = Options(12, 32, 2, 3.0, 2.0, True)
    canvas = begun(rows, asked, keys(2), o)
    seen = sampler.ask(net, canvas, V, o)
    c, u = (np.asarray(b.tokens) for b in heard)
    assert c[0, :9].tolist() == [V.bos, 7, 8, V.boi, 0, 0, 0, 0, V.eoi]
    assert u[0, :7].tolist() == [V.bos, V.boi, 0, 0, 0, 0, V.eoi]
    assert u[1, :2].tolist() == [V.bos, V.pad]
    # The picture's EOI is gone there: its gap is that of BOS.
    lc, lu = V.eoi + 0.5 * 7, V.bos + 0.5 * 1
    np.testing.assert_allclose(seen.log_rate[1, 6], 2 * lc - lu)
    np.testing.assert_allclose(seen.log_q[1, 6, 0], 2 * lc - lu)
    np.testing.assert_allclose(seen.empty[1, 6], lc)
    sizes = [int(b.segment.sum()) for b in heard]
    want = canvas.x[0, 0] + 3 * sizes[0] - 2 * sizes[1]
    np.testing.assert_allclose(seen.velocity[0, 0], want, rtol=1e-6)
    plain = Options(12, 32, 2, 1.0, 1.0, True)
    np.testing.assert_allclose(sampler.ask(net, canvas, V, plain).log_rate[1, 6], lc)


def test_the_leftmost_variant_writes_word_by_word():
    """With suffixes deleted each word is asked once: lengths are geometric, as of an AR model."""
    model, params = oneflow_model(oneflow_config(deletion="suffix", target="leftmost"))
    o = Options(4, 32, 1, 1.0, 1.0, True)

    def net(batch: Batch, x, t) -> Seen:
        half = jnp.full(batch.tokens.shape, jnp.log(0.3 / 0.7))
        after = jnp.where(batch.tokens == V.bos, 7, batch.tokens + 1)
        return Seen(half, half, 50.0 * jax.nn.one_hot(after, V.size), x)

    rows, count = prompt(*[(V.bos,)] * 400), 400
    asked = plan((False,) * count, (0,) * count, (20,) * count)

    @jax.jit
    def run(key):
        canvas = sampler.begin(model.parts, params, rows, asked, key, o)
        return sampler.fill(model.parts, net, canvas, key, o)

    canvas = run(keys(count))
    new = np.asarray(canvas.length) - 1
    for n in range(4):
        assert abs((new == n).mean() - 0.3 * 0.7**n) < 3.5 * (0.25 / count) ** 0.5
    for r in range(20):
        assert text(canvas, r) == (V.bos, *range(7, 7 + new[r]))
    assert not np.asarray(canvas.open)[new < 19].any()


def test_insertion_moves_what_stands_to_the_right():
    rows = prompt((V.bos, 7, 8, 9))
    canvas = begun(rows, plan(pictures=(1,)), keys(1))
    token, size, slot = (np.zeros((1, 32), np.int32) for _ in range(3))
    token[0, :3], size[0, :3], slot[0, 1] = [20, V.boi, 21], [1, 6, 1], 1
    noise = jnp.ones_like(canvas.x)
    moved = sampler.insert(canvas, Inserted(token, size, slot), noise, V, P)
    want = (V.bos, 20, 7, V.boi, 0, 0, 0, 0, V.eoi, 8, 21, 9)
    assert text(moved) == want
    assert np.asarray(moved.image)[0, :12].tolist() == [int(t == 0) for t in want]
    assert np.asarray(moved.open)[0, :13].tolist() == [
        j in (1, 8, 10, 11) for j in range(13)
    ]  # the new word, EOI, the new word, and the prompt's end
    assert (np.asarray(moved.x[0, 0]) == 1).all() and (np.asarray(moved.x[0, 1]) != 1).all()
    assert moved.age[0].tolist() == [0, OPTIONS.steps]
    batch = sampler.batch_of(moved, V, shared=True)
    assert batch.position[0, :13].tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 5, 6, 7, 8, 0]
    apart = sampler.batch_of(moved, V, shared=False)
    assert apart.position[0, :12].tolist() == list(range(12))


def test_a_trained_model_gives_its_document_back():
    """300 steps on one document; before them nothing of it is there."""
    c = oneflow_config(mixed=1.0, prediction="data")
    model = oneflow_model(c)[0]
    fresh = jax.jit(model.init)(jax.random.key(0))
    batch, rate = story(32), optax.cosine_decay_schedule(1e-2, 300)
    # Clipped, for data prediction begins with pictures far off, which unsettles the text for long.
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def objective(params, key):
        return losses.total(model.loss(params, batch, jax.random.split(key, 32)), model.weights)

    def update(carry, key):
        params, opt = carry
        value, grads = jax.value_and_grad(objective)(params, key)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = tx.update(grads, opt, params)
        return (optax.apply_updates(params, updates), opt), value

    run = jax.jit(partial(jax.lax.scan, update))
    (params, _), values = run((fresh, tx.init(fresh)), keys(300))
    assert values[-20:].mean() < 0.5 * values[:20].mean()
    o = Options(20, 24, 1, 1.0, 1.0, False)
    write = jax.jit(partial(sampler.generate, model.parts, options=o))
    rows, asked = prompt(*[(V.bos,)] * 16), plan((False,) * 16, (1,) * 16, (24,) * 16)
    before, after = (write(p, rows, asked, keys(16)) for p in (fresh, params))
    document = tuple(batch.tokens[0, :-1].tolist())
    right = [r for r in range(16) if text(after, r) == document]
    assert len(right) >= 12 and document not in [text(before, r) for r in range(16)]
    true = batch.pixels[0, 0].astype(float)
    error = np.abs(np.asarray(model.parts.picture(params, after.x[:, 0]))[right] - true).mean()
    assert error < 25 < np.abs(true - true.mean()).mean()


@pytest.mark.parametrize(
    ("left", "room", "begun_at"), [(1, 32, [0]), (2, 32, [0, 1]), (2, 14, [0])]
)
def test_one_step_begins_no_more_pictures_than_asked_for_and_fit(left, room, begun_at):
    """Everywhere at once BOI is wanted; the leftmost get it, and a slot each."""
    canvas = begun(prompt((V.bos, 7, 8, 9)), plan(pictures=(left,), room=(room,)), keys(1))
    canvas = canvas._replace(open=jnp.arange(32)[None] < 4)
    sure = jnp.full((1, 32), 50.0)
    q = jnp.full((1, 32, V.size), -1e9).at[:, :, V.boi].set(0.0)
    seen = Seen(-sure, sure, q, canvas.x)
    new = sampler.choose(canvas, seen, V, OPTIONS, False, jnp.array([True]), P, keys(1))
    want = np.zeros(32, int)
    want[begun_at] = P + 2
    np.testing.assert_array_equal(new.size[0], want)
    assert new.slot[0, begun_at].tolist() == list(range(1, len(begun_at) + 1))
    assert new.slot.sum() == sum(range(len(begun_at) + 1))


def test_noise_is_that_of_a_rows_own_key():
    rows = prompt((V.bos, 7, V.boi), (V.bos, 7, V.boi))
    asked = plan((True, True), (0, 0), (8, 8))
    both = begun(rows, asked, keys(2))
    alone = begun(*jax.tree.map(lambda x: x[1:], (rows, asked)), keys(2)[1:])
    np.testing.assert_array_equal(both.x[1], alone.x[0])
    assert np.abs(np.asarray(both.x[0, 0] - both.x[1, 0])).max() > 0.1
    assert not np.asarray(both.x[:, 1]).any()  # a slot not asked for stays vacant
