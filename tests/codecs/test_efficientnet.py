"""EfficientNet-Lite0: the file's format by hand, the network by photographs it must know."""

import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from mmjax.codecs import efficientnet
from mmjax.data.resize import RESIZE
from mmjax.error import UserError

PALACE, DAISY = 698, 985  # classes of ImageNet


@pytest.fixture(scope="module")
def params():
    return efficientnet.load()


def photographs():
    shrunk = [RESIZE["pil_bicubic_aa"](image, 224) for image in load_sample_images().images]
    return np.stack(shrunk).astype(np.float32) / 127.5 - 1.0


def test_it_knows_photographs(params):
    x = photographs()
    classify = jax.jit(lambda x: jax.nn.softmax(efficientnet.logits(params, x)))
    found = np.asarray(classify(x))
    np.testing.assert_array_equal(found.argmax(-1), [PALACE, DAISY])
    np.testing.assert_allclose(found.max(-1), [0.30, 0.23], atol=0.01)
    grey = classify(0.5 * x)  # another range of values
    assert abs(np.asarray(grey).max(-1) - found.max(-1)).min() > 0.05


@pytest.mark.parametrize("size", [32, 33, 64])
def test_stages_at_any_size(params, size):
    def shapes(stages, params):
        x = jnp.zeros((1, size, size, 3))
        seen = jax.eval_shape(lambda p: efficientnet.features(p, x, stages), params)
        return [y.shape for y in seen]

    channels = (32, 16, 24, 40, 80, 112, 192, 320)
    strides = (2, 2, 4, 8, 16, 16, 32, 32)
    want = [(1, -(-size // s), -(-size // s), c) for s, c in zip(strides, channels, strict=True)]
    assert shapes(tuple(range(8)), params) == want
    assert shapes((5, 2), params) == [want[5], want[2]]
    few = {name: params[name] for name in ("stem", "stage1", "stage2")}
    assert shapes((2,), few) == [want[2]]
    with pytest.raises(KeyError, match="stage3"):
        shapes((3,), few)


def test_pooled_is_the_mean_over_places(params):
    # A head that hands on the first 320 channels: what is pooled is then what stage 7 sees.
    head = {"w": np.eye(320, 1280, dtype=np.float32)[None, None], "bias": np.zeros(1280, "f4")}
    own = {**params, "head": head}
    x = jax.random.uniform(jax.random.key(0), (2, 64, 64, 3), minval=-1.0)
    both = jax.jit(lambda x: (efficientnet.features(own, x, (7,)), efficientnet.pooled(own, x)))
    (last,), found = both(x)
    places = np.clip(np.asarray(last), 0.0, 6.0).reshape(2, 4, 320)
    np.testing.assert_allclose(found[:, :320], places.mean(1), atol=1e-4)
    np.testing.assert_array_equal(found[:, 320:], 0.0)
    assert abs(found[:, :320] - places.max(1)).max() > 0.1


def pickled(value) -> bytes:
    """The value's opcodes alone."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key: str, length: int, *view, kind: bytes = b"ctorch\nFloatStorage\n") -> bytes:
    """Opcodes of a view (offset, sizes, strides) of a storage."""
    storage = pickled("storage") + kind + b"".join(map(pickled, (key, "cpu", length, None)))
    rest = b"".join(map(pickled, (*view, False, {})))
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + rest + b"tR"


def file_of(tensors: dict[str, bytes], storages: dict[str, list[float]]) -> bytes:
    """A file in the format of torch before 1.6; storages of f32, in this order."""
    views = b"".join(pickled(name) + opcodes + b"s" for name, opcodes in tensors.items())
    head = [pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts = [*head, b"\x80\x02}" + views + b".", pickle.dumps(list(storages), 2)]
    for numbers in storages.values():
        parts += [len(numbers).to_bytes(8, "little"), np.array(numbers, "<f4").tobytes()]
    return b"".join(parts)


def test_tensors_are_views_of_storages_in_the_order_of_their_keys():
    tensors = {
        "plain": tensor("7", 4, 0, (2, 2), (2, 1)),
        "turned": tensor("5", 7, 1, (2, 3), (1, 2)),
    }
    found = efficientnet.state_dict(
        file_of(tensors, {"5": [9, 0, 1, 2, 3, 4, 5], "7": [1, 2, 3, 4]})
    )
    np.testing.assert_array_equal(found["plain"], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(found["turned"], [[0, 2, 4], [1, 3, 5]])


def test_a_file_runs_no_code_and_reads_nothing_else():
    storages = {"5": [0.0, 1.0, 2.0, 3.0]}
    bad = {
        "os.system": tensor("5", 4, 0, (1,), (1,), kind=b"cos\nsystem\n"),
        "builtins.eval": b"cbuiltins\neval\n(" + pickled("1") + b"tR",
        "reaches to 4": tensor("5", 4, 1, (2, 2), (2, 1)),
        "reaches to 1": tensor("5", 4, 3, (2,), (-2,)),
    }
    for said, opcodes in bad.items():
        with pytest.raises(pickle.UnpicklingError, match=said):
            efficientnet.state_dict(file_of({"x": opcodes}, storages))
    good = efficientnet.state_dict(file_of({"x": tensor("5", 4, 0, (2, 2), (2, 1))}, storages))
    np.testing.assert_array_equal(good["x"], [[0, 1], [2, 3]])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"not installed: {efficientnet.INSTALL}"):
        efficientnet.load()


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    data = bytearray(efficientnet._file())
    path = tmp_path / efficientnet.FILE
    origin = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: origin)
    with pytest.raises(UserError, match="cannot be read"):
        efficientnet.load()
    path.parent.mkdir()
    path.write_bytes(data)
    assert efficientnet.load()["stem"]["w"].shape == (3, 3, 3, 32)
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        efficientnet.load()
