"""Every format through the builder: records written, damage set aside, the same every time."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import picture
from test_dicom import RAMP, scan
from test_webdataset import pairs, shard

from mmjax.data import store
from mmjax.data.formats import FORMATS, reader
from mmjax.data.write import write


def make(form, path):
    """Files of a format with three good records and one damaged -> what to read."""
    path.mkdir()
    for i in range(3):
        (path / f"{i}.txt").write_text(f"caption {i}")
    if form == "folder":
        for i in range(4):
            (path / f"{i}.png").write_bytes(picture(i))
    elif form == "jsonl":
        lines = [json.dumps({"text": f"caption {i}"}) for i in range(3)]
        (path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    elif form == "llava":
        ask = {"from": "human", "value": "What?"}
        chats = [[ask, {"from": "gpt", "value": f"caption {i}"}] for i in range(3)]
        entries = [*({"conversations": c} for c in chats), {}]
        (path / "a.json").write_text(json.dumps(entries))
        return path / "a.json"
    elif form == "parquet":
        columns = {"image": [picture(i) for i in range(4)], "text": ["a", "b", "c", None]}
        pq.write_table(pa.table(columns), path / "a.parquet")
    elif form == "webdataset":
        shard(path / "a.tar", [*pairs(3), ("x.txt", b"x")])
    elif form == "dicom":
        for i in range(4):
            scan(path / f"{i}.dcm", RAMP + np.int16(i))
    else:
        (path / "3.txt").write_bytes(b"\xff")
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_a_data_set_is_built_from_it(tmp_path, form):
    path = make(form, tmp_path / "in")
    found = [write(reader(form)(path), tmp_path / out, {}, {}) for out in ("a", "b")]
    assert found[0] == found[1]
    assert (found[0]["documents"], found[0]["rejected"]) == (3, 1)
    records = store.read(tmp_path / "a", "train")
    assert len({records[i].id for i in range(3)}) == 3
    assert all(records[i].caption for i in range(3))
