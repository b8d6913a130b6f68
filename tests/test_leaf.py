"""Arrays go into checkpoints and out of them in parts, and damage is seen either way."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import checkpoint, leaf
from mmjax.checksum import checksums
from mmjax.error import UserError

ARRAYS = {
    "params/stack": np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32),
    "params/table": np.arange(12, dtype=np.float32).reshape(4, 3),
    "params/scale": np.full((3,), -1.5, np.float32),
    "params/clock": np.array(7, np.int32),
    "params/empty": np.zeros((0, 3, 2), np.float32),
    "params/hollow": np.zeros((3, 0, 2), np.float32),
}
LIKE = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in ARRAYS.items()}
FULL = [name for name, x in ARRAYS.items() if x.size]


def there(shapes: dict) -> dict:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for n, x in shapes.items()}


@pytest.fixture(params=["written", "saved"])
def held(request, tmp_path) -> Path:
    """A directory with one checkpoint: of what came in in parts, or of a training state."""
    if request.param == "written":
        checkpoint.write(tmp_path, 3, LIKE, lambda name, i: ARRAYS[name][i], {"of": "theirs"})
    else:
        with checkpoint.open_checkpoints(tmp_path) as c:
            checkpoint.save(c, 3, {n: jnp.asarray(x) for n, x in ARRAYS.items()}, {"of": "theirs"})
    return tmp_path


def test_what_goes_in_comes_out(held):
    """By parts as whole, to the bit."""
    back = checkpoint.restore(held, there(LIKE))
    assert back.meta == {"of": "theirs"}
    assert checksums(back.state) == checksums({n: jnp.asarray(x) for n, x in ARRAYS.items()})
    for name, found in checkpoint.leaves(held, 3, {n: LIKE[n] for n in FULL}).items():
        np.testing.assert_array_equal(np.asarray(found), ARRAYS[name])
        assert np.asarray(found).dtype == ARRAYS[name].dtype
        if ARRAYS[name].ndim:
            np.testing.assert_array_equal([*found], ARRAYS[name])
    chunk = leaf.opened(held / "3", "params/stack").chunk_layout.read_chunk.shape
    assert chunk == (1, 6, 7)  # so that a layer is read without the others


def test_only_a_part_is_asked_for_at_a_time(tmp_path):
    asked = []

    def read(name: str, index) -> np.ndarray:
        asked.append((name, index))
        return ARRAYS[name][index]

    checkpoint.write(tmp_path, 0, {"params/stack": LIKE["params/stack"]}, read, {})
    layers = [slice(n, n + 1) for n in range(5)]
    assert asked == [("params/stack", i) for i in (layers[0], *layers)]


@pytest.mark.parametrize("name", ["params/stack", "params/table"])
def test_changed_numbers_are_seen_at_the_end(held, name):
    files = [*(held / "3" / "state").rglob("d/*")]
    (kept,) = checkpoint.leaves(held, 3, {name: LIKE[name]}).values()
    assert len([*kept]) == len(ARRAYS[name])
    array = leaf.opened(held / "3", name)
    array[1].write(np.asarray(array[1].read().result()) + 1).result()
    assert {*files} < {*(held / "3" / "state").rglob("d/*")}
    for read in (np.asarray, list):
        with pytest.raises(UserError, match=rf"3 is damaged, leaf {name}: checksum differs; make"):
            read(kept)


def test_lost_files_are_damage(held):
    (kept,) = checkpoint.leaves(held, 3, {"params/stack": LIKE["params/stack"]}).values()
    for file in (held / "3" / "state").rglob("d/*"):
        file.unlink()
    for read in (np.asarray, list):
        with pytest.raises(UserError, match=r"3 is damaged, leaf params/stack: .*; make it again"):
            read(kept)


def test_another_model_is_told_before_anything_is_read(held):
    other = {"params/table": jax.ShapeDtypeStruct((4, 4), np.float32)}
    with pytest.raises(UserError, match=r"params/table is float32\[4, 3\] there, float32\[4, 4\]"):
        checkpoint.leaves(held, 3, other)
    with pytest.raises(UserError, match="leaf params/none is absent there"):
        checkpoint.leaves(held, 3, {"params/none": LIKE["params/table"]})


@pytest.mark.parametrize("part", ["...", "slice(0, 1)", "slice(2, 3)"])
def test_a_full_disk_is_an_error_of_the_system(tmp_path, part):
    """Whichever part meets it; a limit on a file's size fails as a full disk does."""
    shape = (400, 100) if part == "..." else (4, 100, 100)
    program = f"""
import resource
import jax, numpy as np
from mmjax import checkpoint
x = np.random.default_rng(0).normal(size={shape}).astype(np.float32)
def read(_, index):
    if index == {part}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, resource.RLIM_INFINITY))
    return x[index]
like = {{"x": jax.ShapeDtypeStruct(x.shape, x.dtype)}}
try:
    checkpoint.write({str(tmp_path)!r}, 0, like, read, {{}})
except OSError as e:
    print(e.strerror)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr


def test_small_leaves_are_begun_together_and_a_stack_counts_by_its_layer():
    shapes = {"a": (3,), "none": (0, 4), "b": (2, 3), "stack": (9, 2, 2), "large": (5, 5), "c": ()}
    like = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert list(leaf.together(like, 52)) == [["a", "b", "stack"], ["large"], ["c"]]
    assert list(leaf.together(like, 51)) == [["a", "b"], ["stack"], ["large"], ["c"]]
    assert not list(leaf.together({"none": like["none"]}, 52))
