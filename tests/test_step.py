"""The one train step: accumulation, meshes, sharding, donation, one trace."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import VOCABULARY, random_batch
from small import transfusion_config

from mmjax import optim
from mmjax.config import OptimConfig
from mmjax.mesh import Rules, make_mesh, put
from mmjax.models import transfusion
from mmjax.step import abstract_state, gradients, init_state, train_step

MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]
OPTIM = OptimConfig("adamw", 1e-2, 2, "cosine", 0.1, 0.9, 0.95, 1e-8, 0.1, 1.0, 0.9)
SHAPE = {"kv_heads": 4, "mlp": 64}
BATCHES = [random_batch(s, rows=8) for s in range(5)]


def build(mesh, config=None):
    count = int(np.prod(mesh))
    rules = Rules(make_mesh(*mesh, jax.devices()[:count]))
    config = config or transfusion_config(SHAPE)
    return transfusion.build(config, VOCABULARY, rules), rules


def start(model, rules, tx):
    abstract = abstract_state(model, tx, OPTIM.ema, rules)
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    init = jax.jit(partial(init_state, model, tx, OPTIM.ema), out_shardings=layout)
    return init(jax.random.key(0)), layout


def compiled(model, rules, layout, tx, accumulate=1):
    rate = optim.schedule(OPTIM, 5)
    step = partial(train_step, model, tx, rate, OPTIM.ema, accumulate, 0)
    return jax.jit(
        step, in_shardings=(layout, rules.sharding("batch")), out_shardings=(layout, None),
        donate_argnums=0,
    )  # fmt: skip


def five_steps(mesh, accumulate=1):
    model, rules = build(mesh)
    tx = optim.optimizer(OPTIM, 5)
    state, layout = start(model, rules, tx)
    first = jax.device_get(state.params)
    step = compiled(model, rules, layout, tx, accumulate)
    losses = []
    for batch in BATCHES:
        state, metrics = step(state, put(batch, rules))
        losses.append(float(metrics["loss"]))
    return losses, first, state


@pytest.fixture(scope="module")
def reference():
    return five_steps((1, 1, 1))


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_five_steps_are_equal_on_every_mesh(mesh, reference):
    losses, first, state = five_steps(mesh)
    np.testing.assert_allclose(losses, reference[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, first, reference[1])  # bit for bit
    assert len(set(losses)) == 5 and losses[-1] != losses[0]
    sharded = state.params["decoder"]["blocks"]["mlp"]["up"]
    parts = mesh[1] * mesh[2]
    for tree in (state.params, state.ema, state.opt[1][0].mu):
        leaf = tree["decoder"]["blocks"]["mlp"]["up"]
        held = {s.data.nbytes for s in leaf.addressable_shards}
        assert held == {sharded.nbytes // parts}


def test_bytes_on_a_device_fall_with_fsdp():
    model, rules = build((1, 8, 1))
    state, _ = start(model, rules, optim.optimizer(OPTIM, 5))
    device = jax.devices()[0]
    total = sum(x.nbytes for x in jax.tree.leaves(state))
    held = sum(
        s.data.nbytes
        for x in jax.tree.leaves(state)
        for s in x.addressable_shards
        if s.device == device
    )
    assert held < 0.2 * total


def test_another_seed_gives_other_losses(reference):
    model, rules = build((1, 1, 1))
    tx = optim.optimizer(OPTIM, 5)
    state, _ = start(model, rules, tx)
    rate = optim.schedule(OPTIM, 5)
    step = jax.jit(partial(train_step, model, tx, rate, OPTIM.ema, 1, 1))
    _, metrics = step(state, BATCHES[0])
    assert float(metrics["loss"]) != reference[0][0]


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_gradients_are_those_of_the_big_batch(accumulate):
    model, _rules = build((1, 1, 1))
    params = jax.jit(model.init)(jax.random.key(0))
    batch = BATCHES[0]
    # Uneven counts: averaging the microbatches' means would give something else.
    weight = batch.weight * (np.arange(8)[:, None] % 3)
    batch = batch._replace(weight=weight.astype(np.float32))
    keys = jax.random.split(jax.random.key(3), 8)
    whole, terms = jax.jit(partial(gradients, model, accumulate=1))(params, batch, keys)
    parts, summed = jax.jit(partial(gradients, model, accumulate=accumulate))(params, batch, keys)
    chex.assert_trees_all_close(parts, whole, atol=2e-5)
    chex.assert_trees_all_close(summed, terms, rtol=1e-4)
    naive = [
        gradients(model, params, jax.tree.map(lambda x, i=i: x[i::2], batch), keys[i::2], 1)[0]
        for i in range(2)
    ]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *naive)
    gap = jnp.abs(mean["head"]["w"] - whole["head"]["w"]).max()
    assert gap > 1e-4


def test_one_trace_and_a_donated_state():
    model, rules = build((1, 1, 1))
    tx = optim.optimizer(OPTIM, 5)
    state, layout = start(model, rules, tx)
    rate = optim.schedule(OPTIM, 5)
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def traced(state, batch):
        return train_step(model, tx, rate, OPTIM.ema, 1, 0, state, batch)

    step = jax.jit(traced, out_shardings=(layout, None), donate_argnums=0)
    before = state
    for batch in BATCHES[:3]:
        state, _ = step(state, put(batch, rules))
    assert all(x.is_deleted() for x in jax.tree.leaves(before))
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))
    assert int(state.step) == 3


def test_the_average_follows_the_weights():
    model, rules = build((1, 1, 1))
    tx = optim.optimizer(OPTIM, 5)
    state, layout = start(model, rules, tx)
    old = jax.device_get(state)
    state, _ = compiled(model, rules, layout, tx)(state, put(BATCHES[0], rules))
    decay = min(OPTIM.ema, 1 / 10)
    want = jax.tree.map(
        lambda a, p: decay * a + (1 - decay) * p, old.ema, jax.device_get(state.params)
    )
    chex.assert_trees_all_close(jax.device_get(state.ema), want, atol=1e-6)
    assert (
        np.abs(np.asarray(state.ema["head"]["w"]) - np.asarray(state.params["head"]["w"])).max() > 0
    )


def test_only_matrices_decay():
    model, _ = build((1, 1, 1))
    marks = optim.decays(jax.eval_shape(model.init, jax.random.key(0)))
    block = marks["decoder"]["blocks"]
    assert block["mlp"]["up"] and block["attention"]["q"] and marks["head"]["w"]
    assert not block["mlp_norm"] and not block["attention"]["q_norm_scale"]
    assert not marks["decoder"]["final_norm"]
