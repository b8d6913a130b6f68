"""Schedules against their formulas, and which rule moves which weight."""

import dataclasses

import families
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from small import decoder_config
from tiny import tiny

from mmjax import optim
from mmjax.batch import Vocabulary
from mmjax.error import UserError
from mmjax.layers.tower import dense_name
from mmjax.mesh import Rules, make_mesh
from mmjax.models import MODELS
from mmjax.models.decoder import Decoder

EXPERIMENT = tiny()
CONFIG = EXPERIMENT.optim


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant", "exponential"])
def test_schedule(decay):
    c = dataclasses.replace(CONFIG, peak=1.0, warmup=10, floor=0.1, decay=decay)
    rate = optim.schedule(c, 110)
    got = np.array([float(rate(s)) for s in (0, 5, 10, 60, 110)])
    late = {
        "cosine": [0.1 + 0.9 * 0.5, 0.1],
        "linear": [0.55, 0.1],
        "constant": [1.0, 1.0],
        "exponential": [0.1**0.5, 0.1],
    }[decay]
    np.testing.assert_allclose(got, [1 / 11, 1 / 11 + 0.5 * 10 / 11, 1.0, *late], rtol=1e-5)


@pytest.mark.parametrize(("field", "value"), [("decay", "cosin"), ("kind", "muonn")])
def test_unknown_names_are_refused(field, value):
    with pytest.raises(UserError, match=f"optim.{field}='{value}' is unknown; have: "):
        optim.optimizer(dataclasses.replace(CONFIG, **{field: value}), 10)


def test_exponential_decay_needs_a_floor():
    with pytest.raises(UserError, match=r"with optim\.floor above 0"):
        optim.schedule(dataclasses.replace(CONFIG, decay="exponential", floor=0.0), 10)


def test_scales_of_every_head_are_no_matrix():
    """As an imported Chameleon has them, [layers, heads, k]."""
    tree = {"decoder": {"blocks": {"attention": {
        "q": np.zeros((2, 8, 4, 3)), "q_norm_scale": np.zeros((2, 4, 3)),
        "q_norm_bias": np.zeros((2, 4, 3)), "q_bias": np.zeros((2, 12)),
    }}}}  # fmt: skip
    for found in (optim.decays(tree), optim.matrices(tree)):
        told = found["decoder"]["blocks"]["attention"]
        assert {name for name, one in told.items() if one} == {"q"}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_parts_may_have_a_rate_of_their_own(kind):
    start = params()
    grads = jax.tree.map(lambda x: jnp.full_like(x, 0.01), start)

    def updates(**more):
        tx = optim.optimizer(dataclasses.replace(CONFIG, kind=kind), 10, **more)
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(grads, tx.init(start), start)[0]

    plain, slow = updates(), updates(rates={"decoder/blocks/mlp": 0.1, "head": 0.0})
    np.testing.assert_allclose(
        slow["decoder"]["blocks"]["mlp"]["up"],
        0.1 * plain["decoder"]["blocks"]["mlp"]["up"],
        rtol=1e-5,
    )
    assert np.abs(plain["head"]["w"]).max() > 0 == np.abs(slow["head"]["w"]).max()
    np.testing.assert_array_equal(slow["embed"]["table"], plain["embed"]["table"])
    q = "q"
    same = slow["decoder"]["blocks"]["attention"][q], plain["decoder"]["blocks"]["attention"][q]
    np.testing.assert_array_equal(*same)


def params():
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    model = MODELS["transfusion"].build(EXPERIMENT.model, Vocabulary(64), rules)
    return jax.jit(model.init)(jax.random.key(0))


def test_matrices_name_input_and_output_axes():
    found = optim.matrices(jax.eval_shape(params))
    block = found["decoder"]["blocks"]
    assert block["attention"]["q"] == ((1,), (2, 3))
    assert block["attention"]["o"] == ((1, 2), (3,))
    assert block["mlp"]["down"] == ((1,), (2,))
    assert block["attention"]["q_norm_scale"] is None and block["mlp_norm"] is None
    assert found["embed"]["table"] is None and found["head"]["w"] is None


def untied_params():
    """A decoder whose second layer has an MLP of its own for pictures."""
    c = decoder_config(towers=2, untie=("ffn",), untied_layers=(1,))
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    x = jnp.zeros((1, 1, 32)), jnp.ones((1, 1, 1), bool), jnp.zeros((1, 1), jnp.int32)
    module = Decoder(rules, "float32", c)
    return nn.unbox(jax.jit(module.init)(jax.random.key(0), *x)["params"])


def test_weights_of_towers_are_matrices_like_those_of_a_dense_decoder():
    shapes = jax.eval_shape(untied_params)
    found, decays = optim.matrices(shapes), optim.decays(shapes)
    assert found["blocks_1"]["mlp"]["up_1"] == ((1,), (2,)) == found["blocks_0"]["mlp"]["up"]
    assert found["blocks_1"]["attention"]["o"] == ((1, 2), (3,))
    assert decays["blocks_1"]["mlp"]["down_1"] and not decays["blocks_1"]["mlp_norm"]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_tower_without_tokens_does_not_decay(kind):
    p = untied_params()
    c = dataclasses.replace(CONFIG, kind=kind, weight_decay=0.5, warmup=0, decay="constant")
    tx = optim.optimizer(c, 10)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), p)
    idle = jax.tree.map(jnp.copy, grads)
    idle["blocks_1"]["mlp"]["up_1"] *= 0.0
    idle["blocks_1"]["attention"]["q"] *= 0.0  # shared, so it decays whatever its gradient
    with jax.numpy_dtype_promotion("standard"):
        update = jax.jit(lambda g: tx.update(g, tx.init(p), p)[0])
        busy, spared = update(grads), update(idle)
    assert float(jnp.abs(spared["blocks_1"]["mlp"]["up_1"]).max()) == 0
    assert float(jnp.abs(busy["blocks_1"]["mlp"]["up_1"]).min()) > 0
    q = p["blocks_1"]["attention"]["q"]
    np.testing.assert_allclose(spared["blocks_1"]["attention"]["q"], -c.peak * 0.5 * q, rtol=1e-5)
    # The tower that had tokens moves and decays as ever.
    for name in ("down_1", "up"):
        one, other = (u["blocks_1"]["mlp"][name] for u in (spared, busy))
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-6)


def test_muon_moves_matrices_orthogonally_and_the_rest_like_adam():
    p = params()
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), p)
    plain = dataclasses.replace(CONFIG, weight_decay=0.0, clip=1e9, warmup=0, decay="constant")

    def update(kind):
        tx = optim.optimizer(dataclasses.replace(plain, kind=kind), 10)
        with jax.numpy_dtype_promotion("standard"):  # as in the train step: optax's Muon needs it
            return jax.jit(tx.update)(grads, tx.init(p), p)[0]

    adam, muon = update("adamw"), update("muon")
    np.testing.assert_allclose(muon["embed"]["table"], adam["embed"]["table"], rtol=1e-5)

    def spread(updates):
        """Largest over smallest singular value of the first layer's MLP weight."""
        s = np.linalg.svd(np.asarray(updates["decoder"]["blocks"]["mlp"]["up"][0]))[1]
        return s[0] / s[-1]

    assert spread(muon) < 2.5 < spread(adam)
    rms = [
        float(jnp.sqrt(jnp.mean(u["decoder"]["blocks"]["mlp"]["up"] ** 2))) for u in (adam, muon)
    ]
    assert 0.1 < rms[1] / rms[0] < 0.4
    assert isinstance(optim.optimizer(plain, 10), optax.GradientTransformation)


def listed(params) -> tuple[set[str], set[str]]:
    """(paths of leaves that decay, of those that Muon moves)."""

    def paths(tree) -> set[str]:
        return {k for k, x in flatten_dict(tree, sep="/").items() if x}

    return paths(optim.decays(params)), paths(optim.matrices(params))


# In whatever family: names of leaves without tower numbers and what stands before, by their kind.
MATRICES = {
    "q", "k", "v", "o", "up", "down", "gate", "w", "patch", "time", "in", "out", "first", "second",
    "table", "place", "position", "latents",
}  # fmt: skip
BLOCKS = {"q", "k", "v", "o", "up", "down", "gate"}  # of them those of stacked blocks


@pytest.mark.parametrize("name", families.VARIANTS)
def test_what_decays_and_what_muon_moves(name):
    """By what a parameter is; towers of a mixture are as tower 0 is."""
    _, model = families.of(name)
    flat = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    decays, muon = listed(unflatten_dict(flat, sep="/"))
    for path in flat:
        own = dense_name(path).rpartition("/")[2]
        # `opens` is one column of logits: a vector under a matrix's name.
        matrix = own in MATRICES and not path.startswith(("opens", "perceptual"))
        if not path.startswith("perceptual"):  # frozen
            assert (path in decays) == matrix, path
        assert (path in muon) == ("blocks" in path and own in BLOCKS), path
    assert muon < decays or name == "codec"


def test_norms_of_every_head_and_tower_are_vectors():
    """As in an imported Chameleon with towers; the former rule took the name's end for its kind."""
    c = decoder_config(towers=2, untie=("qkv", "qk_norm", "ffn"), head_norms=True)
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    x = jnp.zeros((1, 1, 32)), jnp.ones((1, 1, 1), bool), jnp.zeros((1, 1), jnp.int32)
    init = Decoder(rules, "float32", c).init
    params = nn.unbox(jax.eval_shape(init, jax.random.key(0), *x)["params"])
    decays, muon = listed(params)
    assert params["blocks"]["attention"]["q_norm_scale_1"].shape == (2, 4, 8)
    assert {"blocks/attention/q_1", "blocks/mlp/gate_1"} < muon <= decays
    assert not [path for path in decays | muon if "norm" in path]


def test_beside_muon_stands_the_adamw_of_its_name():
    """Same eps, betas and decay, no Nesterov: what Muon does not move goes as under "adamw"."""
    p = params()
    c = dataclasses.replace(CONFIG, eps=1e-2, weight_decay=0.3, warmup=0, decay="constant", b1=0.8)

    def moved(kind):
        tx = optim.optimizer(dataclasses.replace(c, kind=kind), 10)

        @jax.jit
        def run(p):
            state = tx.init(p)
            for n in range(2):
                grads = jax.tree.map(
                    lambda x, n=n: jax.random.normal(jax.random.key(n), x.shape), p
                )
                updates, state = tx.update(grads, state, p)
                p = optax.apply_updates(p, updates)
            return p

        with jax.numpy_dtype_promotion("standard"):
            return flatten_dict(run(p), sep="/")

    _, muon = listed(p)
    plain, mixed = moved("adamw"), moved("muon")
    for path in plain:
        same = np.allclose(plain[path], mixed[path], rtol=1e-5, atol=1e-7)
        assert same == (path not in muon), path
