"""Devices to a mesh, logical axes to its axes, and host rows to devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from random_batch import random_batch

from mmjax.error import UserError
from mmjax.mesh import LOGICAL, Rules, make_mesh, put


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 1), (1, 8, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
        ((1, 2, 4), (1, 2, 4)),
    ],
)
def test_one_size_may_be_what_is_left(asked, got):
    assert dict(make_mesh(*asked).shape) == dict(zip(("data", "fsdp", "tensor"), got, strict=True))


@pytest.mark.parametrize(
    "asked", [(3, -1, 1), (2, 2, 1), (16, 1, 1), (-1, -1, 1), (0, -1, 1), (-2, -1, 1), (16, -1, 1)]
)
def test_sizes_that_do_not_fit_are_named(asked):
    with pytest.raises(UserError) as error:
        make_mesh(*asked)
    message = str(error.value)
    assert f"data={asked[0]}, fsdp={asked[1]}, tensor={asked[2]}" in message
    assert "8 device(s)" in message and "-1" in message and "\n" not in message


def test_a_mesh_on_some_devices():
    mesh = make_mesh(1, -1, 1, jax.devices()[:3])
    assert mesh.shape["fsdp"] == 3 and list(mesh.devices.flat) == jax.devices()[:3]
    with pytest.raises(UserError, match=r"3 device"):
        make_mesh(1, 8, 1, jax.devices()[:3])


RULES = Rules(make_mesh(2, 2, 2))


def test_specs_follow_the_rules():
    assert RULES.spec("batch", "length", None) == P(("data", "fsdp"), None, None)
    assert RULES.spec("embed", "mlp") == P("fsdp", "tensor")
    other = Rules(RULES.mesh, embed=None, mlp=("fsdp", "tensor"))
    assert other.spec("embed", "mlp") == P(None, ("fsdp", "tensor"))
    assert other.sharding("mlp").mesh == RULES.mesh


@pytest.mark.parametrize("name", ["embd", "mesh", "Batch"])
def test_a_misspelt_axis_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=name):
        RULES.spec("batch", name)


@pytest.mark.parametrize("names", [("heads", "mlp"), ("batch", "embed"), ("vocab", None, "vocab")])
def test_a_mesh_axis_used_twice_is_a_value_error(names):
    with pytest.raises(ValueError, match="twice"):
        RULES.spec(*names)
    RULES.spec(names[0])  # each alone is fine
    RULES.spec(names[-1])


def test_split_counts_parts():
    rules = Rules(make_mesh(2, 4, 1))
    assert {name: rules.split(name) for name in LOGICAL} == {
        "batch": 8, "length": 1, "embed": 4, "heads": 1, "mlp": 1, "vocab": 1, "layers": 1,
    }  # fmt: skip
    with pytest.raises(AttributeError):
        rules.split("rows")


def test_constrain_lays_an_activation_out():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    got = jax.jit(lambda x: RULES.constrain(2 * x, "batch", "mlp"))(x)
    assert got.sharding.is_equivalent_to(RULES.sharding("batch", "mlp"), 2)
    assert not got.sharding.is_equivalent_to(RULES.sharding("batch", None), 2)
    np.testing.assert_array_equal(got, 2 * x)


def test_put_splits_rows_over_data_and_fsdp_and_repeats_them_over_tensor():
    host = random_batch(0, rows=8)
    batch = put(host, RULES)
    for field, array in zip(*map(jax.tree.leaves, (host, batch)), strict=True):
        np.testing.assert_array_equal(array, field)
        assert array.dtype == field.dtype
        for shard in array.addressable_shards:
            d, f, _ = np.argwhere(RULES.mesh.devices == shard.device)[0]
            first = 2 * (2 * d + f)
            assert shard.index[0] == slice(first, first + 2)
            np.testing.assert_array_equal(shard.data, field[first : first + 2])


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"divi|shard"):
        put(random_batch(0, rows=6), RULES)
