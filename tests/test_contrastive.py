"""The contrastive losses over 8 devices, against the formulas written out on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.contrastive import OBJECTIVES, unit
from mmjax.mesh import Rules, make_mesh

COUNT, WIDTH = 24, 16
MESHES = {1: (1, 1, 1), 8: (8, 1, 1), "8 in two axes": (4, 2, 1), "4 of 8": (2, 2, 2)}


def pairs(seed: int = 0):
    """Vectors, some of them no pairs."""
    keys = jax.random.split(jax.random.key(seed), 2)
    images, texts = (unit(jax.random.normal(k, (COUNT, WIDTH))) for k in keys)
    return images, texts, jnp.arange(COUNT) % 5 != 3


def softmax_plain(images, texts, valid, scale, bias):
    keep = np.flatnonzero(np.asarray(valid))
    logits = scale * images[keep] @ texts[keep].T
    own = jnp.arange(len(keep))
    rows = -jax.nn.log_softmax(logits, axis=1)[own, own].mean()
    columns = -jax.nn.log_softmax(logits, axis=0)[own, own].mean()
    return 0.5 * (rows + columns)


def sigmoid_plain(images, texts, valid, scale, bias):
    keep = np.flatnonzero(np.asarray(valid))
    logits = scale * images[keep] @ texts[keep].T + bias
    sign = 2.0 * jnp.eye(len(keep)) - 1.0
    return -jax.nn.log_sigmoid(sign * logits).sum(1).mean()


PLAIN = {"softmax": softmax_plain, "sigmoid": sigmoid_plain}


def ours(name: str, mesh: tuple[int, int, int]):
    """Value and gradients of everything, jitted on a mesh."""
    rules = Rules(make_mesh(*mesh, jax.devices()[: int(np.prod(mesh))]))

    def loss(images, texts, scale, bias, valid):
        term = OBJECTIVES[name](rules, images, texts, valid, scale, bias)["contrastive"]
        return term.sum / term.count

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_any_mesh_gives_the_plain_formula_and_its_gradients(name, mesh):
    images, texts, valid = pairs()
    at = images, texts, jnp.float32(7.0), jnp.float32(-3.0)

    def plain(images, texts, scale, bias):
        return PLAIN[name](images, texts, valid, scale, bias)

    want = jax.value_and_grad(plain, argnums=(0, 1, 2, 3))(*at)
    found = ours(name, MESHES[mesh])(*at, valid)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-6)
    assert np.abs(np.asarray(found[1][0])[~np.asarray(valid)]).max() == 0  # no pair, no gradient
    assert np.abs(found[1][0]).max() > 1e-3
    shuffled = ours(name, MESHES[mesh])(images, jnp.roll(texts, 1, axis=0), *at[2:], valid)
    assert abs(float(shuffled[0] - want[0])) > 1e-3


def test_pairs_that_are_told_apart_cost_nothing_and_are_found():
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    same, valid = jnp.eye(8), jnp.ones(8, bool)
    for name, objective in OBJECTIVES.items():
        close = objective(rules, same, same, valid, jnp.float32(40.0), jnp.float32(-20.0))
        assert float(close["contrastive"].sum) < 1e-5
        far = objective(
            rules, same, jnp.roll(same, 1, 0), valid, jnp.float32(40.0), jnp.float32(-20.0)
        )
        assert float(far["contrastive"].sum) > 8 * 20, name
    found = OBJECTIVES["softmax"](rules, same, same, valid, jnp.float32(1.0), jnp.float32(0.0))
    assert float(found["found"].sum) == float(found["found"].count) == 8
    far = OBJECTIVES["softmax"](
        rules, same, jnp.roll(same, 1, 0), valid, jnp.float32(1.0), jnp.float32(0.0)
    )
    assert float(far["found"].sum) == 0


def test_nothing_is_ever_as_large_as_all_pairs():
    """On 8 devices no array of the compiled program is B x B."""
    batch = 512
    rules = Rules(make_mesh(8, 1, 1, jax.devices()))
    at = [jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32)] * 2
    for name, objective in OBJECTIVES.items():

        def loss(images, texts, objective=objective):
            valid, one = jnp.ones(batch, bool), jnp.float32(1.0)
            return objective(rules, images, texts, valid, one, one)["contrastive"].sum

        rows = rules.sharding("batch")
        step = jax.jit(jax.grad(loss), in_shardings=(rows, rows), out_shardings=rows)
        program = step.lower(*at).compile().as_text()
        assert f"f32[{batch},{batch}]" not in program, name
        assert (f"f32[{batch // 8},{batch}]" in program) == (name == "softmax")
