"""Every change of an array shows in its checksum, and no change of mesh does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from mmjax import checksum
from mmjax.checksum import checksum_of, checksums


def mesh(*shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def test_checksums_are_those_of_the_files_already_written():
    """A new formula would call every existing checkpoint damaged."""
    tree = {
        "f": jnp.arange(6, dtype=jnp.float32).reshape(2, 3),
        "h": jnp.ones(3, jnp.bfloat16),
        "s": jnp.int32(-1),
        "none": jnp.zeros((0, 2)),
    }
    assert checksums(tree) == {
        "f": "dff8f7120193f9b3",
        "h": "cc58d806a52b0bc1",
        "s": "81f16f3982f01567",
        "none": "0000000000000000",
    }


def reference(x: np.ndarray) -> str:
    """The definition once more, element by element, in Python integers."""

    def mix(v: int) -> int:
        v = (v ^ (v >> 16)) * 0x85EBCA6B % 2**32
        v = (v ^ (v >> 13)) * 0xC2B2AE35 % 2**32
        return v ^ (v >> 16)

    words = x.reshape(-1).view(f"uint{8 * x.dtype.itemsize}").tolist()
    salts = (0, 0x9E3779B9)
    sums = (sum(mix(w ^ mix((i + s) % 2**32)) for i, w in enumerate(words)) for s in salts)
    return "".join(f"{v % 2**32:08x}" for v in sums)


def test_checksum_is_the_same_on_every_mesh():
    x = np.random.default_rng(0).normal(scale=50, size=(16, 8, 3))
    tree = {d: x.astype(jnp.dtype(d)) for d in ("float32", "bfloat16", "int32", "uint32", "int8")}
    tree["bool"] = x > 0
    expected_sums = {name: reference(leaf) for name, leaf in tree.items()}
    places = [
        *(NamedSharding(mesh(2, 4), s) for s in (P(), P("fsdp", "data"), P(("data", "fsdp")))),
        *(NamedSharding(mesh(4, 2), s) for s in (P(None, "fsdp"), P("fsdp", "data"))),
        SingleDeviceSharding(jax.devices()[5]),
    ]
    for place in places:
        assert checksums(jax.device_put(tree, place)) == expected_sums
        turned = jax.device_put({d: leaf[::-1] for d, leaf in tree.items()}, place)
        assert not checksums(turned).items() & expected_sums.items()


def test_large_arrays_of_a_cpu_are_summed_by_pieces(monkeypatch):
    tree = {"large": jnp.arange(100.0), "small": jnp.ones(3), "bool": jnp.arange(90) > 7}
    whole = checksums(tree)
    monkeypatch.setattr(checksum, "PIECE", 40)
    monkeypatch.setattr(checksum, "_checksums_on", lambda mesh: pytest.fail("all are large"))
    assert checksums({name: tree[name] for name in ("large", "bool")}) == {
        name: whole[name] for name in ("large", "bool")
    }
    monkeypatch.undo()
    monkeypatch.setattr(checksum, "PIECE", 40)
    assert list(checksums(tree).items()) == list(whole.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint32", "int8"])
def test_every_single_bit_shows_in_both_halves(dtype):
    x = np.random.default_rng(1).normal(scale=50, size=(3, 5)).astype(jnp.dtype(dtype))
    x[0, :3] = 0, 1, -1 if dtype != "uint32" else 2**32 - 1
    good = checksums({"x": jnp.asarray(x)})["x"]
    width = 8 * x.dtype.itemsize
    for element in range(x.size):
        for bit in range(width):
            raw = x.copy().reshape(-1).view(f"uint{width}")
            raw[element] ^= raw.dtype.type(1 << bit)
            bad = checksums({"x": jnp.asarray(raw.view(x.dtype).reshape(x.shape))})["x"]
            assert bad[:8] != good[:8] and bad[8:] != good[8:], (element, bit)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_arrays_on_the_host_are_summed_in_pieces(dtype, monkeypatch):
    monkeypatch.setattr(checksum, "PIECE", 7)
    for shape in ((), (7,), (3, 5, 2), (0, 4)):
        x = np.random.default_rng(2).normal(scale=50, size=shape).astype(dtype)
        assert checksum_of(x) == checksums({"x": jnp.asarray(x)})["x"]


def test_a_flipped_boolean_and_a_flipped_scalar():
    mask = np.zeros(9, np.bool_)
    pairs = [(mask, mask | (np.arange(9) == 4)), (np.True_, np.False_), (np.int32(1), np.int32(0))]
    for pair in pairs:
        one, two, again = (checksums({"x": jnp.asarray(x)}) for x in (*pair, pair[0]))
        assert one != two and one == again


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=64, max_size=64),
    st.sampled_from(["negative", "any"]),
    st.data(),
)
@settings(max_examples=100, deadline=None)
def test_two_unequal_elements_cannot_change_places(values, kind, data):
    x = np.array(values, np.float32)
    i, j = data.draw(st.lists(st.integers(0, 63), min_size=2, max_size=2, unique=True))
    if kind == "negative":
        x[j] = -x[i]
    y = x.copy()
    y[[i, j]] = x[[j, i]]
    same = x.tobytes() == y.tobytes()
    one, two = (checksums({"x": jnp.asarray(v)}) for v in (x, y))
    assert (one == two) == same


def test_weighted_bits_would_not_do():
    """Why elements are mixed: the plain sum of bits times odd weights is blind to this swap."""
    x = np.array([1.5, 2.0, -1.5], np.float32)
    weights = np.array([1, 0xDEADBEEF, 0x12345677], np.uint32)
    plain = [int(np.sum(v.view(np.uint32) * weights, dtype=np.uint32)) for v in (x, x[::-1].copy())]
    assert plain[0] == plain[1]
    assert checksums({"x": jnp.asarray(x)}) != checksums({"x": jnp.asarray(x[::-1])})
