"""Parameters parted into what is trained and what is held, and a step that holds them."""

from functools import partial

import jax
import numpy as np
import pytest
from random_batch import VOCABULARY, random_batch
from tiny import tiny

from mmjax import optim
from mmjax.mesh import Rules, make_mesh
from mmjax.models import MODELS
from mmjax.models.family import merge, split
from mmjax.step import init_state, train_step

PARAMS = {
    "a": {"b": {"x": 1, "y": 2}, "bc": {"x": 3}},
    "b": {"x": 4},
    "d": 5,
}


@pytest.mark.parametrize(
    ("frozen", "held"),
    [
        (("a/b",), {"a": {"b": {"x": 1, "y": 2}}}),
        (("a/b/x", "d"), {"a": {"b": {"x": 1}}, "d": 5}),
        (("a",), {"a": PARAMS["a"]}),
        (("b",), {"b": {"x": 4}}),
        (("z",), {}),
    ],
)
def test_split_takes_whole_names_along_the_path(frozen, held):
    trained, found = split(PARAMS, frozen)
    assert found == held
    leaves = jax.tree.leaves
    assert sorted(leaves(trained) + leaves(found)) == [1, 2, 3, 4, 5]
    assert merge(trained, found) == PARAMS
    assert (trained == PARAMS) is (not held)


def test_nothing_frozen_is_nothing_changed():
    trained, held = split(PARAMS, ())
    assert trained is PARAMS and held == {}
    assert merge(trained, held) is PARAMS


@pytest.fixture(scope="module")
def stepped():
    """A state before and after three steps with part of the decoder held."""
    e = tiny()
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    c = e.model
    model = MODELS["transfusion"].build(c, VOCABULARY, rules)
    model = model._replace(frozen=("decoder/blocks/mlp", "embed"))
    tx = optim.optimizer(e.optim, 10)
    state = jax.jit(partial(init_state, model, tx, 0.9))(jax.random.key(0))
    step = jax.jit(partial(train_step, model, tx, lambda step: 1e-3, 0.9, 1, 0))
    size = c.image
    batch = random_batch(1, length=64, slots=2, patches=c.tokens, size=size)
    new = state
    for _ in range(3):
        new, metrics = step(new, batch)
    return model, state, new, metrics


def flat(tree) -> dict:
    return {jax.tree_util.keystr(k): np.asarray(x) for k, x in jax.tree.leaves_with_path(tree)}


def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(stepped):
    model, old, new, metrics = stepped
    for held, moves in zip(split(old.params, model.frozen), (True, False), strict=True):
        names = flat(held)
        after = flat(new.params)
        changed = {k for k, x in names.items() if not np.array_equal(x, after[k])}
        assert changed == (set(names) if moves else set()), changed
    assert np.isfinite(metrics["loss"])


def test_what_is_frozen_has_no_moments_and_no_average(stepped):
    model, _, new, _ = stepped
    trained, held = split(new.params, model.frozen)
    assert jax.tree.structure(new.ema) == jax.tree.structure(trained)
    names = " ".join(jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(new.opt))
    assert "attention" in names
    assert "mlp']" not in names and "embed" not in names
    assert flat(held)
