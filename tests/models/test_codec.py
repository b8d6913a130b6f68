"""Training a codec: it learns, its codebook follows its averages, its players do not mix."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import changed, tiny_codec_config

from mmjax import config, losses, optim, run
from mmjax.batch import IMAGE, Batch, Vocabulary
from mmjax.codecs import quantise
from mmjax.codecs.discriminator import generator_loss
from mmjax.error import UserError
from mmjax.mesh import Rules, make_mesh
from mmjax.models import codec
from mmjax.step import gradients, init_state, train_step

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
V = Vocabulary(16)


def pictures(seed=0, rows=4, slots=3, size=8) -> Batch:
    """Rows of `slots` pictures of one position each: a bright disc on a dark ground."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(2, 6, (rows, slots, 2, 1, 1))
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"))
    disc = ((grid - at) ** 2).sum(2) < rng.uniform(3, 9, (rows, slots, 1, 1))
    colour = rng.integers(120, 256, (rows, slots, 1, 1, 3))
    pixels = np.where(disc[..., None], colour, 20).astype(np.uint8)
    one = np.ones((rows, slots), np.int32)
    index = np.broadcast_to(np.arange(slots, dtype=np.int32), one.shape)
    return Batch(0 * one, IMAGE * one, one, index, index + 1, one.astype(np.float32), pixels)


def built(**changes):
    """The family on a tiny configuration with some fields changed."""
    c = changed(tiny_codec_config(), {f"model.{k}": v for k, v in changes.items()})
    return codec.build(config.resolve(c, run.families()).model, V, RULES)


def quantiser(**changes) -> dict:
    return {f"codec.quantiser.{k}": v for k, v in changes.items()}


def trained(model, steps, batch=None, rate=1e-2, accumulate=1):
    """States before and after, and the metrics of each step."""
    batch = pictures() if batch is None else batch
    c = config.resolve(tiny_codec_config(), run.families()).optim
    tx = optim.optimizer(replace(c, peak=rate, warmup=0, decay="constant"), steps)
    state = jax.jit(partial(init_state, model, tx, 0.0))(jax.random.key(0))
    step = jax.jit(partial(train_step, model, tx, lambda step: rate, 0.0, accumulate, 0))
    first, rows = state, []
    for _ in range(steps):
        state, metrics = step(state, batch)
        rows.append(jax.tree.map(float, {k: v for k, v in metrics.items() if jnp.ndim(v) == 0}))
    return first, state, rows


KINDS = {
    "vq": quantiser(),
    "vq by gradient": quantiser(decay=0.0),
    "fsq": quantiser(kind="fsq", codes=60, width=3, levels=(5, 4, 3)),
    "kl": quantiser(kind="kl", codes=0, commit=1e-4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_learns_its_pictures(kind):
    _, _, rows = trained(built(**KINDS[kind]), 60)
    start, end = rows[0], rows[-1]
    assert end["reconstruction"] < 0.5 * start["reconstruction"]
    assert end["psnr"] > start["psnr"] + 3 and end["ssim"] > start["ssim"] + 0.1
    assert ("codes_used" in end) is (kind != "kl")


def test_the_codebook_follows_its_averages_and_not_the_optimizer():
    model, batch = built(), pictures()
    first, after, _ = trained(model, 1, batch)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 4)
    terms = jax.jit(model.loss)(first.params, batch, keys)
    c = model.parts.config.codec.quantiser
    old, new = first.params["codec"]["book"], after.params["codec"]["book"]
    want = quantise.update(c, old, old, terms)
    for name in ("codes", "counts", "sums"):
        np.testing.assert_allclose(new[name], want[name], atol=1e-5)
    assert (np.asarray(new["codes"]) != old["codes"]).any()
    by_gradient = trained(built(**quantiser(decay=0.0, restart=0.0)), 1, batch)[1].params["codec"][
        "book"
    ]
    assert abs(np.asarray(by_gradient["codes"]) - np.asarray(new["codes"])).max() > 1e-3


def test_codes_have_a_gradient_only_where_they_are_no_average():
    def gradient(**changes):
        model, batch = built(**quantiser(**changes)), pictures()
        params = initial(model)
        book = params["codec"]["book"]

        def total(codes):
            own = params["codec"] | {"book": book | {"codes": codes}}
            return losses.total(model.loss(params | {"codec": own}, batch, KEYS), model.weights)

        return jax.jit(jax.grad(total))(book["codes"])

    assert size(gradient(decay=0.0)) > 1e-4
    assert size(gradient()) == 0


def test_empty_slots_change_nothing():
    model, batch = built(**quantiser(restart=0.0)), pictures()
    image = np.array(batch.image)
    image[:, 2] = 0  # the last picture of every row is none
    held = batch._replace(
        image=image,
        pixels=np.where((np.arange(3) < 2)[:, None, None, None], batch.pixels, 0).astype(np.uint8),
    )
    other = held._replace(pixels=batch.pixels[:, :, ::-1].copy())
    other.pixels[:, :2] = held.pixels[:, :2]
    a, b, c = (jax.jit(model.loss)(initial(model), x, KEYS) for x in (held, other, batch))
    for name, term in a.items():
        np.testing.assert_allclose(b[name].sum, term.sum, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b[name].count, term.count)
    assert float(c["reconstruction"].count) == 12 and float(a["reconstruction"].count) == 8


KEYS = jax.random.split(jax.random.key(1), 4)


def initial(model):
    return jax.jit(model.init)(jax.random.key(0))


def test_microbatches_give_the_same_gradient_and_codebook():
    model, batch = built(**quantiser(restart=0.0)), pictures()
    params = initial(model)
    found = [jax.jit(partial(gradients, model, accumulate=n))(params, batch, KEYS) for n in (1, 2)]
    (one, terms), (two, halves) = found
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), one, two)
    books = [model.after(params, params, t)["codec"]["book"] for t in (terms, halves)]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *books)
    half = jax.tree.map(lambda x: x[:2], batch)
    alone = jax.jit(partial(gradients, model, accumulate=1))(params, half, KEYS[:2])[0]
    gap = jax.tree.map(lambda x, y: float(abs(x - y).max()), one, alone)
    assert max(jax.tree.leaves(gap)) > 1e-4


GAN = {"adversarial": 0.8, "adversarial_start": 2, "critic_depth": 1, "critic_width": 8}


@pytest.fixture(scope="module")
def gan():
    """A model with a discriminator, its parameters after the start, and the losses' gradients."""
    model, batch = built(**GAN), pictures()
    params = initial(model) | {"clock": jnp.float32(5.0)}

    def by_term(params):
        terms = model.loss(params, batch, KEYS)
        return {
            k: terms[k].sum / terms[k].count for k in ("reconstruction", "adversarial", "critic")
        }

    return model, batch, params, jax.jit(jax.jacrev(by_term, allow_int=True))(params)


def size(tree) -> float:
    return max(float(abs(x).max()) for x in jax.tree.leaves(tree))


def test_each_player_moves_only_itself(gan):
    grads = gan[3]
    assert size(grads["reconstruction"]["codec"]) > 1e-4
    assert size(grads["reconstruction"]["critic"]) == 0
    assert size(grads["adversarial"]["codec"]) > 1e-4
    assert size(grads["adversarial"]["critic"]) == 0
    assert size(grads["critic"]["critic"]) > 1e-4
    assert size(grads["critic"]["codec"]) == 0


def test_both_wait_for_their_start():
    model, batch = built(**GAN), pictures()
    _, state, rows = trained(model, 4, batch)
    assert float(state.params["clock"]) == 4
    assert [row["critic"] > 0 for row in rows] == [False, False, True, True]
    assert [row["adversarial"] != 0 for row in rows] == [False, False, True, True]


def test_the_balance_is_that_of_both_gradients_at_the_last_kernel(gan):
    """Through the whole network, without the shortcut."""
    model, batch, params, _ = gan
    parts, c = model.parts, model.parts.config
    x = jnp.asarray(batch.pixels.reshape(-1, 8, 8, 3), jnp.float32) / 127.5 - 1.0

    def made(w):
        own = params["codec"] | {"last": params["codec"]["last"] | {"w": w}}
        z = parts.codec.encode(own, x)
        found = parts.codec.bottleneck(
            own, z, jnp.ones(12), jax.random.split(jax.random.key(0), 12)
        )
        return parts.codec.last(own, parts.codec.features(own, found.values))

    def nll(w):
        y = made(w)
        return c.absolute * abs(x - y).mean() + c.squared * ((x - y) ** 2).mean()

    def say(w):
        return generator_loss(parts.critic(params["critic"], made(w))).mean()

    w = params["codec"]["last"]["w"]
    norms = [float(jnp.linalg.norm(jax.jit(jax.grad(f))(w).ravel())) for f in (nll, say)]
    found = jax.jit(model.loss)(params, batch, KEYS)
    balance = losses.means({"critic_balance": found["critic_balance"]})["critic_balance"]
    np.testing.assert_allclose(balance, norms[0] / (norms[1] + 1e-4), rtol=1e-3)
    told = float(say(w))
    mean = found["adversarial"].sum / found["adversarial"].count
    np.testing.assert_allclose(mean, float(balance) * 0.8 * told, rtol=1e-3)


def test_a_discriminator_larger_than_the_picture_is_refused():
    with pytest.raises(UserError, match=r"model\.critic_depth=3 needs pictures of"):
        built(**GAN | {"critic_depth": 3})


def test_a_network_that_there_is_not_is_refused():
    with pytest.raises(UserError, match=r"model\.features='vgg' is unknown; have: efficientnet"):
        built(features="vgg")


def test_averages_begin_at_the_first_codes():
    """Codes that nothing chose in the first step lie where they lay."""
    model = built(**quantiser(restart=0.0, codes=64, width=4))
    first, after, _ = trained(model, 1)
    old, new = (np.asarray(s.params["codec"]["book"]["codes"]) for s in (first, after))
    moved = np.abs(new - old).max(-1) > 1e-3
    assert 0 < moved.sum() < 60
