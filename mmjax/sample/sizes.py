"""The few sizes of compiled programs, and numbers that are their arguments.

A program is compiled for the shapes of what it is given, which takes seconds to minutes; so rows,
lengths and rooms are padded to a few sizes, and how things are chosen (temperatures, scales,
numbers of steps) is not compiled in. Padding changes no result: rows are independent of each other,
and what is not in use is seen by nobody.

    rows      1, 4, 8, 16, 32, 64, 128, 256
    lengths   32, 64, 128, 256, then two sizes a doubling (384, 512, 768, 1024 ...), at most the
              row's length in training
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType

import jax
import numpy as np

from mmjax import values
from mmjax.batch import Batch
from mmjax.error import UserError

ROWS = (1, 4, 8, 16, 32, 64, 128, 256)
MULTIPLE = 16  # of lengths
POSITIONS = 8192  # of whole rows that are read at a time, a data shard; 16 x 16 pixels are one
LOGITS = 1 << 28  # numbers in the logits of one step, where a step has them of whole rows


def length_of(n: int, most: int | None = None) -> int:
    """The least length of the few that holds n positions; `most`: which no length needs to pass."""
    size = power_of(n, 32)
    if size > 256 and n <= 3 * size // 4:
        size = 3 * size // 4
    return size if most is None else max(min(size, multiple(most)), multiple(n))


def multiple(n: int) -> int:
    """The least multiple of MULTIPLE from n on."""
    return -(-n // MULTIPLE) * MULTIPLE


def power_of(n: int, least: int = 1) -> int:
    """The least power of two from n on, and at least `least`."""
    return max(1 << max(int(n) - 1, 0).bit_length(), least)


def rows_of(n: int, split: int = 1) -> int:
    """The least number of rows of the few that holds n; they divide over `split` data shards."""
    size = next((rows for rows in ROWS if rows >= n), n)
    return -(-size // split) * split


def at_once(cost: float, most: float, split: int = 1) -> int:
    """How many rows of so much `cost` each go at once, of the few numbers there are; at least 1.

    most: what the rows of a data shard may cost.
    """
    fitting = [rows for rows in ROWS if -(-rows // split) * cost <= most]
    return fitting[-1] if fitting else split


def positions(rows: Batch) -> int:
    """What reading a row costs: its positions, and those of its pictures in a tower."""
    slots, h, w = rows.pixels.shape[1:4]
    return rows.tokens.shape[1] + slots * h * w // 256


def padded(tree, size: int):
    """A tree of host arrays, the last row of each repeated up to so many."""

    def one(x):
        return np.asarray(x)[np.minimum(np.arange(size), len(x) - 1)]

    return jax.tree.map(one, tree)


@jax.jit
def _folded(seeds, places):
    """Data of keys, each of a seed and a place; [n] uint32 both -> [n, 2]."""

    def one(seed, place):
        return jax.random.key_data(jax.random.fold_in(jax.random.key(seed), place))

    return jax.vmap(one)(seeds, places)


def row_keys(seeds: Sequence[int], places: Sequence[int]) -> np.ndarray:
    """[n, 2] uint32: data of each row's key, which depends on its seed and place alone."""
    if not len(seeds):
        return np.zeros((0, 2), np.uint32)
    size = power_of(len(seeds), 4)
    both = padded((np.array(seeds, np.uint32), np.array(places, np.uint32)), size)
    return np.asarray(_folded(*both))[: len(seeds)]


def keys_of(seed: int | Sequence[int], count: int) -> np.ndarray:
    """[count, 2] data of keys: of each row's own seed, or of one seed and the row's place.

    Raises:
        UserError: for a number of seeds that is not `count`, or one outside 0 ... 2**32 - 1.
    """
    one = isinstance(seed, str | bytes) or np.ndim(seed) == 0  # type: ignore[arg-type]
    seeds = [values.whole("seed", s) for s in ([seed] if one else list(seed))]  # type: ignore
    if not one and len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts: give one, or one a prompt")
    if wrong := [s for s in seeds if not 0 <= s < 2**32]:
        raise UserError(f"seed={wrong[0]} must lie between 0 and {2**32 - 1}")
    return row_keys(seeds * count if one else seeds, range(count) if one else [0] * count)


wrap = jax.jit(jax.random.wrap_key_data)
folded_in = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


def keys_at(keys, index: np.ndarray):
    """Some rows' keys [m]; `keys` [n] are keys, or their data as `row_keys` gives it."""
    return wrap(keys[index]) if isinstance(keys, np.ndarray) else keys[index]


def arguments(
    numbers: Sequence[str],
    kept: Sequence[str] = (),
    change: Mapping[str, Callable] = MappingProxyType({}),
):
    """Decorator of frozen dataclasses: jitted functions take one as an argument.

    Args:
        numbers: its fields that are no part of the program; all others are compiled in.
        kept: names of cached properties that follow from numbers and are compiled in too, such as
            whether there is any guidance.
        change: field -> what is made of it, where it is of a class that no program takes.
    """

    def register(cls):
        static = [f.name for f in fields(cls) if f.name not in numbers]

        def flatten(x):
            leaves = [change.get(n, lambda value: value)(getattr(x, n)) for n in numbers]
            return leaves, tuple(getattr(x, n) for n in (*static, *kept))

        def unflatten(held, leaves):
            x = object.__new__(cls)  # what it checks are no numbers now
            x.__dict__.update(zip((*static, *kept, *numbers), (*held, *leaves), strict=True))
            return x

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
        return cls

    return register
