"""Real orbax on real files: what is saved comes back, and nothing damaged is ever believed."""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from mmjax import checkpoint
from mmjax.checksum import named_leaves
from mmjax.error import UserError

SPECS = {"w": P("data", "fsdp"), "half": P("fsdp"), "mu": P(None, "data")}


class State(NamedTuple):
    step: Any
    params: Any
    opt: Any
    ema: Any


def mesh(*shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def sharding(on: jax.sharding.Mesh | None, name: str) -> jax.sharding.Sharding:
    if on is None:
        return SingleDeviceSharding(jax.devices()[3])
    return NamedSharding(on, SPECS.get(name, P()))


def make_state(on: jax.sharding.Mesh | None, seed: int = 0) -> State:
    """Random bits do not compress, so a byte in the middle of the data file is array data."""
    rng = np.random.default_rng(seed)

    def put(name: str, x: Any) -> jax.Array:
        return jax.device_put(x, sharding(on, name))

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    params = {
        "w": put("w", normal(64, 48)),
        "half": put("half", normal(16).astype(jnp.bfloat16)),
        "mask": put("mask", rng.integers(0, 2, 7).astype(np.bool_)),
        "empty": put("empty", np.zeros((0, 3), np.float32)),
    }
    opt = (put("count", np.uint32(seed)), {"mu": put("mu", normal(64, 48))})
    return State(put("step", np.int32(7 + seed)), params, opt, None)


def abstract(state: Any, on: jax.sharding.Mesh | None) -> Any:
    def leaf(path: Any, x: jax.Array) -> jax.ShapeDtypeStruct:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(on, name))

    return jax.tree_util.tree_map_with_path(leaf, state)


def like(state: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def bits(tree: Any) -> dict[str, bytes]:
    """Every leaf as name, dtype, shape and bytes: equal only if equal to the last bit."""
    flat = jax.tree.leaves_with_path(tree)
    return {
        f"{jax.tree_util.keystr(p)} {x.dtype}{x.shape}": np.asarray(x).tobytes() for p, x in flat
    }


def save_all(directory: Path, states: dict[int, Any], **kwargs: Any) -> None:
    with checkpoint.open_checkpoints(directory, **kwargs) as c:
        for step, state in states.items():
            checkpoint.save(c, step, state, {"at": step})


def data_file(step: Path) -> Path:
    return max(step.glob("state/ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def lines() -> tuple[list[str], Any]:
    got: list[str] = []
    return got, got.append


# ------------------------------------------------------------------------------ round trip


def test_round_trip_is_exact_to_the_bit(tmp_path):
    state, on = make_state(mesh(2, 4)), mesh(2, 4)
    meta = {"iterator": {"next": 2**40, "parents": [1, None, "é"]}, "lr": 0.1, "nan": float("inf")}
    with checkpoint.open_checkpoints(tmp_path) as c:
        checkpoint.save(c, 3, state, meta)
    warned, warn = lines()
    step, got, got_meta = checkpoint.restore(tmp_path, abstract(state, on), warn=warn)
    assert (step, got_meta, warned) == (3, meta, [])
    assert checkpoint.read_meta(tmp_path) == meta
    assert isinstance(got, State) and jax.tree.structure(got) == jax.tree.structure(state)
    assert bits(got) == bits(state)
    negated = got._replace(step=-got.step)
    assert bits(negated) != bits(state)


def test_typed_keys_and_a_bare_array(tmp_path):
    for i, tree in enumerate([{"key": jax.random.key(5)}, jnp.float32(2.5)]):
        save_all(tmp_path / str(i), {1: tree})
        got = checkpoint.restore(tmp_path / str(i), like(tree)).state
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), got, tree))
    assert not (jax.random.key(6) == jax.random.key(5)).all()


@pytest.mark.parametrize("shape", [(4, 2), (8, 1), None])
def test_any_mesh_reads_it(tmp_path, shape):
    state = make_state(mesh(2, 4))
    save_all(tmp_path, {1: state})
    target = abstract(state, shape and mesh(*shape))
    got = checkpoint.restore(tmp_path, target, warn=pytest.fail).state
    assert bits(got) == bits(state)
    placed = jax.tree.map(lambda x, t: x.sharding == t.sharding, got, target)
    assert jax.tree.all(placed)
    assert got.params["w"].sharding != state.params["w"].sharding


def test_state_may_be_donated_at_once(tmp_path):
    def normal(seed: int) -> jax.Array:
        x = np.random.default_rng(seed).normal(size=(512, 512)).astype(np.float32)
        return jax.device_put(x, NamedSharding(mesh(2, 4), P("fsdp")))

    spoil = jax.jit(lambda tree: jax.tree.map(lambda x: -2 * x, tree), donate_argnums=0)
    state = {str(i): normal(i) for i in range(6)}
    with checkpoint.open_checkpoints(tmp_path, keep_best=False) as c:
        for step in range(3):
            before = jax.tree.map(lambda x: np.array(x, copy=True), state)
            old = state["0"]
            checkpoint.save(c, step, state, {})
            state = jax.block_until_ready(spoil(state))
            assert old.is_deleted()
            checkpoint.wait(c)
            assert bits(checkpoint.restore(tmp_path, like(state)).state) == bits(before)
            assert bits(state) != bits(before)


def test_meta_is_taken_when_save_is_called(tmp_path):
    meta = {"list": [1], 10: "ten", 2: "two"}
    with checkpoint.open_checkpoints(tmp_path) as c:
        checkpoint.save(c, 1, make_state(None), meta)
        meta["list"].append(2)
        with pytest.raises(TypeError, match="JSON"):
            checkpoint.save(c, 2, make_state(None), {"array": np.zeros(2)})
    assert checkpoint.read_meta(tmp_path) == {"list": [1], "10": "ten", "2": "two"}


def test_part_of_a_state(tmp_path):
    state = make_state(mesh(2, 4))
    save_all(tmp_path, {1: state})
    part = {"params": abstract(state, None).params}
    got = checkpoint.restore(tmp_path, part, part=True).state
    assert bits(got) == bits({"params": state.params})
    with pytest.raises(UserError, match=r"leaf opt/0 is uint32\[\] there, absent here"):
        checkpoint.restore(tmp_path, part)
    # damage outside the part does not matter, damage inside does
    flip_bit(data_file(tmp_path / "1"))
    with pytest.raises(UserError, match="whole"):
        checkpoint.restore(tmp_path, like(state), warn=lambda line: None)


def test_nothing_there(tmp_path):
    assert checkpoint.restore(tmp_path / "none", {}) is None
    assert checkpoint.read_meta(tmp_path / "none") is None
    assert checkpoint.latest(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    save_all(tmp_path, {4: make_state(None)})
    assert (checkpoint.latest(tmp_path), checkpoint.steps(tmp_path)) == (4, [4])
    with pytest.raises(UserError, match=r"no checkpoint 5 in .*; there are \[4\]"):
        checkpoint.restore(tmp_path, like(make_state(None)), step=5)


# ------------------------------------------------------------------------------ retention


def test_newest_two_and_best_are_kept(tmp_path):
    state = {"w": jnp.ones(3)}
    nan = float("nan")
    with checkpoint.open_checkpoints(tmp_path / "a") as c:
        for step, loss in enumerate([nan, 3.0, 1.0, 2.0, None]):
            checkpoint.save(c, step, state, {}, loss)
    assert checkpoint.steps(tmp_path / "a") == [2, 3, 4]
    with checkpoint.open_checkpoints(tmp_path / "a", resumed=4) as c:  # losses outlive the process
        checkpoint.save(c, 5, state, {}, 1.5)
        checkpoint.save(c, 6, state, {}, 0.5)
        checkpoint.save(c, 7, state, {}, 2.5)
        checkpoint.save(c, 8, state, {}, 2.5)
    assert checkpoint.steps(tmp_path / "a") == [6, 7, 8]
    with checkpoint.open_checkpoints(tmp_path / "b", keep_best=False) as c:
        for step, loss in enumerate([3.0, 1.0, 4.0, 2.0]):
            checkpoint.save(c, step, state, {}, loss)
    assert checkpoint.steps(tmp_path / "b") == [2, 3]


def test_the_same_step_is_written_once_and_steps_do_not_fall(tmp_path):
    first, other = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
    with checkpoint.open_checkpoints(tmp_path) as c:
        checkpoint.save(c, 5, first, {})
        checkpoint.save(c, 5, other, {})
        with pytest.raises(ValueError, match="step 4 after step 5"):
            checkpoint.save(c, 4, other, {})
    save_all(tmp_path, {5: other}, resumed=5)
    assert bits(checkpoint.restore(tmp_path, like(first)).state) == bits(first)
    assert os.listdir(tmp_path) == ["5"]


def test_saves_leave_no_threads_behind(tmp_path):
    with checkpoint.open_checkpoints(tmp_path) as c:
        counts = []
        for step in range(6):
            checkpoint.save(c, step, {"w": jnp.ones(3)}, {})
            checkpoint.wait(c)
            counts.append(threading.active_count())
    assert counts[-1] <= counts[0] + 1


# ------------------------------------------------------------------------------ damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_about(path: Path) -> None:
    text = path.read_text()
    assert '"at": 2' in text
    path.write_text(text.replace('"at": 2', '"at": 3'))


DAMAGE = {
    "flipped bit": (data_file, flip_bit, "leaf (params/w|opt/1/mu): checksum differs"),
    "truncated": (data_file, truncate, r"arrays: ValueError: .*(w|mu)/c/"),
    "missing": (data_file, Path.unlink, r"arrays: ValueError: .*(w|mu)/c/"),
    "no manifest": (lambda d: d / "state/manifest.ocdbt", Path.unlink, "arrays: .*NOT_FOUND"),
    "no metadata": (lambda d: d / "state/_METADATA", Path.unlink, "arrays: FileNotFoundError"),
    "no arrays": (lambda d: d / "state", shutil.rmtree, "arrays: KeyError: .*state"),
    "no meta": (lambda d: d / "about/data.json", Path.unlink, "about: FileNotFoundError"),
    "cut meta": (lambda d: d / "about/data.json", truncate, "about: JSONDecodeError"),
    "other meta": (lambda d: d / "about/data.json", flip_about, "about: checksum differs"),
    "nothing": (lambda d: d / "state", lambda d: (shutil.rmtree(d), d.mkdir()), "arrays: "),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A directory with steps 1 and 2, and their states; to be copied."""
    states = {step: make_state(mesh(2, 4), seed=step) for step in (1, 2)}
    directory = tmp_path_factory.mktemp("two")
    save_all(directory, states)
    return directory, states


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused_named_and_left_alone(tmp_path, two_steps, kind):
    source, states = two_steps
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    target = abstract(states[1], mesh(4, 2))
    assert checkpoint.restore(tmp_path, target, warn=pytest.fail).step == 2
    find, harm, reason = DAMAGE[kind]
    harm(find(tmp_path / "2"))
    warned, warn = lines()
    step, state, meta = checkpoint.restore(tmp_path, target, warn=warn)
    assert (step, meta) == (1, {"at": 1}) and bits(state) == bits(states[1])
    assert len(warned) == 1 and "\n" not in warned[0]
    start = f"checkpoint 2 in {tmp_path} is damaged and not used: "
    assert warned[0].startswith(start)
    assert re.match(reason, warned[0].removeprefix(start)), warned[0]
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole; damaged: \[2\]"):
        checkpoint.restore(tmp_path, target, step=2, warn=warn)
    gc.collect()  # what orbax abandoned would complain now


def flip(file: Path, data: bytes, bit: int) -> None:
    bad = bytearray(data)
    bad[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bad)


# Files of a step by what they are to orbax; of others no flip may matter either.
FLIPS = {"_METADATA": 14, "process_0": 6}


def test_a_flipped_bit_in_any_file_is_harmless_or_the_checkpoint_before_is_used(
    tmp_path, two_steps, capfd
):
    """At places drawn at random, of which more in metadata: orbax makes what it can of those."""
    source, states = two_steps
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    target, rng = abstract(states[1], mesh(4, 2)), np.random.default_rng(0)
    want, seen = {step: bits(state) for step, state in states.items()}, {1: 0, 2: 0}
    files = sorted(p for p in (tmp_path / "2").rglob("*") if p.is_file())
    assert len(files) > 8
    for file in files:
        data = file.read_bytes()
        for bit in rng.integers(0, 8 * len(data), FLIPS.get(file.name, 2)):
            flip(file, data, int(bit))
            warned, warn = lines()
            step, state, meta = checkpoint.restore(tmp_path, target, warn=warn)
            assert bits(state) == want[step] and meta == {"at": step}, (file, bit)
            assert len(warned) == (step == 1), (file, bit)
            seen[step] += 1
        file.write_bytes(data)
    assert min(seen.values()) > 10, seen
    gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("gradually", [True, False])
def test_a_step_removed_while_it_is_read_is_not_called_damaged(
    tmp_path, two_steps, monkeypatch, gradually
):
    """As a run that trains there does, which keeps its newest two."""
    source, states = two_steps
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    target, load = abstract(states[1], mesh(4, 2)), ocp.load_checkpointables
    saved: list[threading.Thread] = []

    def remove() -> None:
        files = sorted(p for p in (tmp_path / "2").rglob("*") if p.is_file())
        files[-1].unlink()
        if gradually:
            for file in files[:-1]:
                time.sleep(0.02)
                file.unlink()
        shutil.rmtree(tmp_path / "2")

    def removed_behind(path, asked):
        if "state" in asked and Path(path).name == "2" and not saved:
            shutil.rmtree(tmp_path / "2" / "state" / "d")
            saved.append(threading.Thread(target=remove))
            saved[0].start()
        return load(path, asked)

    monkeypatch.setattr(ocp, "load_checkpointables", removed_behind)
    got = checkpoint.restore(tmp_path, target, warn=pytest.fail)
    assert (got.step, bits(got.state)) == (1, bits(states[1]))
    saved.pop().join()
    shutil.rmtree(tmp_path)
    shutil.copytree(source, tmp_path)
    with pytest.raises(UserError, match=r"checkpoint 2 in .* was removed while .*\[1\]: take"):
        checkpoint.restore(tmp_path, target, step=2, warn=pytest.fail)
    saved.pop().join()


def test_orbax_alone_believes_a_flipped_bit(tmp_path, two_steps):
    """Should this fail one day, orbax checks array data itself."""
    shutil.copytree(two_steps[0], tmp_path, dirs_exist_ok=True)
    flip_bit(data_file(tmp_path / "2"))
    state = two_steps[1][2]
    stored = {name: x for name, x in named_leaves(state).items() if x.size}
    got = ocp.load_checkpointables(tmp_path / "2", {"state": like(stored)})["state"]
    assert bits(got) != bits(stored)
    differing = [np.sum(np.asarray(got[n]) != np.asarray(stored[n])) for n in stored]
    assert sum(differing) >= 1


def test_all_damaged(tmp_path, two_steps):
    shutil.copytree(two_steps[0], tmp_path, dirs_exist_ok=True)
    for step in "12":
        flip_bit(data_file(tmp_path / step))
    warned, warn = lines()
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole; damaged: \[2, 1\]"):
        checkpoint.restore(tmp_path, like(two_steps[1][1]), warn=warn)
    assert len(warned) == 2
    assert checkpoint.read_meta(tmp_path, warn=pytest.fail) == {"at": 2}


@pytest.mark.parametrize("kind", ["flipped bit", "cut meta", "nothing"])
def test_training_continues_past_a_damaged_step(tmp_path, two_steps, kind):
    source, states = two_steps
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    find, harm, _ = DAMAGE[kind]
    harm(find(tmp_path / "2"))
    target = abstract(states[1], mesh(2, 4))
    step, state, _ = checkpoint.restore(tmp_path, target, warn=lambda line: None)
    assert step == 1
    fresh = make_state(mesh(2, 4), seed=9)
    save_all(tmp_path, {1: state, 2: fresh, 3: states[2]}, resumed=step)
    assert sorted(os.listdir(tmp_path)) == ["2", "2.abandoned", "3"]
    assert bits(checkpoint.restore(tmp_path, target, warn=pytest.fail).state) == bits(states[2])
    assert bits(checkpoint.restore(tmp_path, target, step=2).state) == bits(fresh)


def test_a_past_that_was_left_does_not_count_as_newest(tmp_path):
    state = {"w": jnp.ones(3)}
    with checkpoint.open_checkpoints(tmp_path) as c:
        for step in (10, 20, 30):
            checkpoint.save(c, step, state, {"run": 1}, loss=1.0 / step)
    save_all(tmp_path, {25: state}, resumed=20)
    assert sorted(os.listdir(tmp_path)) == ["20", "25", "30.abandoned"]
    save_all(tmp_path, {30: state})  # a new start
    left = ["20.abandoned", "25.abandoned", "30", "30.abandoned"]
    assert sorted(os.listdir(tmp_path)) == left
    save_all(tmp_path, {30: state})
    assert sorted(os.listdir(tmp_path)) == [*left, "30.abandoned1"]


def test_another_model_is_not_damage(tmp_path):
    state = make_state(None)
    save_all(tmp_path, {1: state, 2: state})
    target = like(state)

    def with_w(shape: tuple[int, ...], dtype: Any) -> State:
        w = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(None, "w"))
        return target._replace(params=target.params | {"w": w})

    wide = r"checkpoint 2 in .* leaf params/w is float32\[64, 48\] there, float32\[64, 50\] here"
    cases = {
        wide: with_w((64, 50), jnp.float32),
        r"params/w is float32\[64, 48\] there, bfloat16\[64, 48\] here": with_w(
            (64, 48), jnp.bfloat16
        ),
        r"leaf extra is absent there, int32\[\] here": {"extra": target.step, "step": target.step},
        r"leaf step is int32\[\] there, absent here": target._replace(step=None),
    }
    for message, other in cases.items():
        with pytest.raises(UserError, match=message):
            checkpoint.restore(tmp_path, other, warn=pytest.fail, part="extra" in message)
    with pytest.raises(ValueError, match="leaf step has no sharding"):
        checkpoint.restore(tmp_path, target._replace(step=jax.ShapeDtypeStruct((), jnp.int32)))
    assert checkpoint.restore(tmp_path, target, warn=pytest.fail).step == 2


# ------------------------------------------------------------------------------ other processes

PRELUDE = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np
from mmjax import checkpoint
from mmjax.checksum import named_leaves
from mmjax.error import UserError
def state(seed, n):
    return {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(n, 1024)), jnp.float32)}
"""

FULL_DISK = """
with checkpoint.open_checkpoints(sys.argv[1]) as c:
    checkpoint.save(c, 1, state(1, 16), {})
    checkpoint.wait(c)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    for attempt in (checkpoint.wait, lambda c: checkpoint.save(c, 3, state(3, 16), {})):
        checkpoint.save(c, 2, state(2, 1024), {})
        try:
            attempt(c)
        except UserError as e:
            print(e)
    import os
    print(sorted(os.listdir(sys.argv[1])))
    checkpoint.save(c, 4, state(4, 16), {})
"""

KILLED = """
with checkpoint.open_checkpoints(sys.argv[1]) as c:
    checkpoint.save(c, 1, state(1, 8192), {})
    checkpoint.wait(c)
    checkpoint.save(c, 2, state(2, 8192), {})
    print("saving", flush=True)
    checkpoint.wait(c)
    sys.stdin.read()
"""


def start(program: str, directory: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(checkpoint.__file__).parent.parent,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def expected(seed: int, rows: int) -> dict[str, np.ndarray]:
    return {"w": np.random.default_rng(seed).normal(size=(rows, 1024)).astype(np.float32)}


def test_full_disk_is_one_line_and_costs_nothing_else(tmp_path):
    """A limit on the size of a file fails as a full disk does, and needs no rights."""
    out, err = start(FULL_DISK, tmp_path).communicate(timeout=60)
    said = out.splitlines()
    line = f"checkpoint 2 not written to {tmp_path}: File too large; make room"
    assert len(said) == 3, out + err
    assert said[0].startswith(line) and said[0].endswith("last good checkpoint: 1")
    assert said[1] == said[0]
    assert said[2] == "['1']"  # and nothing half-written
    assert err == ""  # neither tracebacks nor log lines
    got = checkpoint.restore(tmp_path, like({"w": jnp.zeros((16, 1024))}), warn=pytest.fail)
    assert got.step == 4 and bits(got.state) == bits(expected(4, 16))


def test_sigkill_while_saving(tmp_path):
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        with start(KILLED, directory) as process:
            said = process.stdout.readline()
            process.send_signal(signal.SIGKILL)
            assert said == "saving\n", process.stderr.read()
        found = checkpoint.latest(directory)
        target = like({"w": jnp.zeros((8192, 1024))})
        got = checkpoint.restore(directory, target, warn=pytest.fail)
        assert got.step == found
        assert bits(got.state) == bits(expected(found, 8192))
        if found == 1:
            break
    else:
        pytest.fail("every save ended before the signal came")
    assert any(p.suffix == ".orbax-checkpoint-tmp" for p in directory.iterdir())
    save_all(directory, {2: {"w": jnp.zeros(3)}}, resumed=1)
    assert sorted(os.listdir(directory)) == ["1", "2"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"checkpoints in .*file: File exists; choose"),
        checkpoint.open_checkpoints(tmp_path / "file"),
    ):
        pass
