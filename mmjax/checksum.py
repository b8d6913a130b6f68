"""Sums over arrays by which damage is seen: the same on every mesh, 64 bits a leaf."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PIECE = 2**22  # elements


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves by path: `State(params={"w": x})` and `{"params": {"w": x}}` both give `params/w`."""
    found: dict[str, Any] = {}
    for path, x in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if x.sharding is None or name in found:
            raise ValueError(f"leaf {name} has no sharding, or there are two of this path")
        found[name] = x
    return found


def spec(x: Any) -> str:
    """Dtype and shape as checkpoints record them: `float32[2, 3]`."""
    return f"{x.dtype}{list(x.shape)}"


def checksums(tree: Any) -> dict[str, str]:
    """64 bits of every leaf of `tree`, as 16 hexadecimal digits by path (`params/w`).

    Computed on the devices by one compiled function, as sums modulo 2^32, whose order does not
    matter: the same on every mesh and process. A change of one element always changes both halves;
    other damage, such as two unequal elements that change places, stays unseen once in 2^64.

    Args:
        tree: a pytree of jax arrays with elements of 1, 2 or 4 bytes, or typed PRNG keys.
    """
    leaves = named_leaves(tree)
    large = {name: checksum_of(np.asarray(x)) for name, x in leaves.items() if _is_large(x)}
    rest = {name: x for name, x in leaves.items() if name not in large}
    if not rest:
        return large
    mesh = next((x.sharding.mesh for x in rest.values() if hasattr(x.sharding, "mesh")), None)
    totals = jax.device_get(_checksums_on(mesh)(list(rest.values())))
    found = {name: digits(total) for name, total in zip(rest, totals, strict=True)}
    return {name: large.get(name) or found[name] for name in leaves}


def _is_large(x: jax.Array) -> bool:
    """Whether x lies in a CPU's memory and is summed by pieces: whole, XLA would hold it twice."""
    key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    devices: list[Any] = list(x.sharding.device_set)
    ours = x.is_fully_addressable and [one.platform for one in devices] == ["cpu"]
    return x.size > PIECE and ours and not key


def checksum_of(x: np.ndarray) -> str:
    """What `checksums` says of an array on the host, with a piece of it on a device at a time."""
    return digits(sums(x))


def sums(x: np.ndarray, first: int = 0) -> np.ndarray:
    """Both sums over a part of an array that starts at element `first`; parts add up, mod 2^32."""
    flat, total = x.reshape(-1), np.zeros(2, np.uint32)
    for start in range(0, flat.size, PIECE):
        place = np.uint32((first + start) % 2**32)
        total += np.asarray(_piece_checksum(flat[start : start + PIECE], place))
    return total


def digits(total: np.ndarray) -> str:
    """Both sums over a whole array, as checksums are written."""
    return f"{total[0]:08x}{total[1]:08x}"


@functools.cache
def _checksums_on(mesh: Mesh | None) -> Callable[[list], jax.Array]:
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda xs: jnp.stack([*map(_leaf_checksum, xs)]), out_shardings=everywhere)


def _leaf_checksum(x: jax.Array, first=0) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    # Row-major in the whole array, whatever the sharding, from `first` on.
    index = jnp.full(x.shape, first, jnp.uint32)
    for axis in range(x.ndim):
        stride = jnp.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
    # If one element changes, so does its word, because `_mix` is a bijection, and with it each sum.
    # Place enters under the same mixing: the obvious sum of bits times odd weights never sees x and
    # -x change places (bits that differ by 2^31, weights by an even number, and the product is 0).
    places = _mix(index), _mix(index + jnp.uint32(0x9E3779B9))
    return jnp.stack([jnp.sum(_mix(bits ^ place), dtype=jnp.uint32) for place in places])


_piece_checksum = jax.jit(_leaf_checksum)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which every bit depends on all (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
