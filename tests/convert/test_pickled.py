"""Files of torch from strangers: nothing is read that does not lie in the record it is said to."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from mmjax import verification
from mmjax.convert import pickled
from mmjax.error import UserError

NUMBERS = np.arange(12, dtype=np.float32)
RAW = NUMBERS.tobytes()


def body(value) -> bytes:
    """A value's opcodes, to be put among others."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(offset=0, shape=(3, 4), stride=(4, 1), storage=b"ctorch\nFloatStorage\n", total=12,
           record="0", mark="storage"):  # fmt: skip
    """Opcodes as torch.save writes them for a tensor."""
    kept = b"(" + body(mark) + storage + body(record) + body("cpu") + body(total) + b"tQ"
    rest = b"".join(map(body, (offset, shape, stride, False, {})))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + kept + rest + b"tR"


def written(path, opcodes, data=RAW, **how):
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr("x/data.pkl", b"\x80\x02}" + body("w") + opcodes + b"s.")
        file.writestr("x/data/0", data)
    return path


def read(path):
    return pickled.numbers(path, pickled.tensors(path)["w"])


@pytest.mark.parametrize("view, wanted", [
    ({}, NUMBERS.reshape(3, 4)),
    ({"offset": 1, "shape": (2, 3), "stride": (1, 2)}, [[1, 3, 5], [2, 4, 6]]),
    ({"offset": 11, "shape": (), "stride": ()}, 11),
    ({"shape": (0, 7), "stride": (7, 1)}, np.zeros((0, 7))),
    ({"shape": (3, 4), "stride": (0, 1)}, np.tile(NUMBERS[:4], (3, 1))),
])  # fmt: skip
def test_a_view_within_its_record_is_read(tmp_path, view, wanted):
    np.testing.assert_array_equal(read(written(tmp_path / "a.pth", tensor(**view))), wanted)


LEAVES = {
    "negative strides": {"stride": (-4, 1)}, "negative offsets": {"offset": -1},
    "negative sizes": {"shape": (-3, 4)}, "an end behind the record": {"offset": 1},
    "wide strides": {"stride": (5, 1)}, "strides that wrap around": {"stride": (1 << 61, 1)},
    "huge offsets": {"offset": 1 << 63}, "more numbers than there are": {
        "shape": (1 << 40, 1 << 20), "stride": (0, 0)},
    "ranks that differ": {"stride": (4,)}, "sizes that are none": {"shape": (3.0, 4)},
    "truth for a number": {"offset": True}, "lists": {"shape": [3, 4]},
    "negative totals": {"total": -12}, "names that are none": {"record": 0},
    "other marks": {"mark": "module"}, "types that are none": {"storage": body("O")},
    "callables for types": {"storage": b"ccollections\nOrderedDict\n"},
}  # fmt: skip


@pytest.mark.parametrize("view", LEAVES.values(), ids=LEAVES)
def test_what_leaves_its_record_is_refused_before_anything_is_viewed(tmp_path, view, monkeypatch):
    monkeypatch.delattr(np.lib.stride_tricks, "as_strided")
    with pytest.raises(UserError, match=r"a\.pth is not as `torch.save` writes tensors") as caught:
        pickled.contents(written(tmp_path / "a.pth", tensor(**view)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how, message", [
    ({"data": NUMBERS[:-1].tobytes()}, "record 0: it is cut short"),
    ({"compression": zipfile.ZIP_DEFLATED}, "is compressed"),
])  # fmt: skip
def test_a_record_that_is_not_what_the_pickle_says(tmp_path, how, message):
    with pytest.raises(UserError, match=message):
        read(written(tmp_path / "a.pth", tensor(), **how))


def test_a_tensor_made_by_hand_is_checked_too(tmp_path):
    path = written(tmp_path / "a.pth", tensor())
    storage = pickled.Storage("0", np.dtype(np.float32), 12)
    with pytest.raises(UserError, match="stride"):
        pickled.numbers(path, pickled.Stored(storage, 8, (3,), (-4,)))


@pytest.mark.parametrize("opcodes", [
    b"ctorch._utils\n_rebuild_tensor_v2\n(tR", body(3) + b"\x85R", b"ccollections\nOrderedDict\n("
    + body(3) + b"tR", b"X\xff\xff\xff\x7f", b"h\x07", b"0000", b"\x95" + b"\xff" * 8,
    b"ctorch._utils\n_rebuild_tensor_v2\n(" + body(3) * 5 + b"tR",
])  # fmt: skip
def test_whatever_a_pickle_makes_fail_is_one_line(tmp_path, opcodes):
    with pytest.raises(UserError, match=r"is not as `torch.save` writes tensors"):
        pickled.contents(written(tmp_path / "a.pth", opcodes))


def test_a_pickle_has_a_size(tmp_path, monkeypatch):
    path = written(tmp_path / "a.pth", tensor())
    monkeypatch.setattr(pickled, "PICKLE", 100)
    with pytest.raises(UserError, match="more than 100 bytes"):
        pickled.contents(path)


def test_what_is_no_table_of_names_is_said(tmp_path):
    assert set(pickled.tensors(written(tmp_path / "a.pth", tensor()))) == {"w"}
    assert not pickled.tensors(written(tmp_path / "b.pth", body(3)))  # an epoch, say
    with zipfile.ZipFile(tmp_path / "c.pth", "w") as file:
        file.writestr("x/data.pkl", pickle.dumps([3]))
    with pytest.raises(UserError, match="no tensors by name"):
        pickled.tensors(tmp_path / "c.pth")


def test_arrays_of_damaged_archives_are_one_line(tmp_path):
    np.savez(tmp_path / "good.npz", a=NUMBERS)
    np.testing.assert_array_equal(verification.arrays(tmp_path / "good.npz")["a"], NUMBERS)
    whole = (tmp_path / "good.npz").read_bytes()
    head = io.BytesIO()
    about = {"descr": "<f4", "fortran_order": False, "shape": (1 << 45,)}
    np.lib.format.write_array_header_1_0(head, about)
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file:
        file.writestr("a.npy", head.getvalue() + RAW)
    np.save(tmp_path / "one.npy", NUMBERS)
    for name, data in (("cut", whole[:-30]), ("flip", whole.replace(RAW[8:24], b"x" * 16)),
                       ("none", b"PK"), ("one", (tmp_path / "one.npy").read_bytes())):  # fmt: skip
        (tmp_path / f"{name}.npz").write_bytes(data)
    for name in ("cut", "flip", "none", "one", "huge"):
        with pytest.raises(UserError, match=rf"{name}\.npz is damaged: .*; write it again"):
            verification.arrays(tmp_path / f"{name}.npz")
