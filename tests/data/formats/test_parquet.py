"""Rows of Parquet files as Hugging Face writes them, and as others do."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import outcome, picture

from mmjax.batch import Image, Text
from mmjax.data.formats import parquet
from mmjax.error import UserError


def struct(data, path="a.png"):
    return None if data is None else {"bytes": data, "path": path}


def write(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("kind", ["struct", "bytes", "large_bytes"])
@pytest.mark.parametrize("words", ["caption", "text", "label_text", "answer"])
def test_picture_and_caption_in_any_known_shape(tmp_path, kind, words):
    data = [picture(i, "jpeg") for i in range(3)]
    column = {
        "struct": lambda: [struct(d) for d in data],
        "bytes": lambda: data,
        "large_bytes": lambda: pa.array(data, pa.large_binary()),
    }[kind]()
    captions = pa.array(["a", "b", "c"], pa.large_string())
    path = write(tmp_path / "a.parquet", {"image": column, words: captions, "width": [1, 2, 3]})
    records, reasons = outcome(parquet.items(path))
    assert not reasons
    assert {k: r.document for k, r in records.items()} == {
        f"a.parquet:{i}": (Text(c), Image(data[i])) for i, c in enumerate("abc")
    }


BYTES = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.binary()),
}


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("shape", ["alone", "struct", "list", "list of structs", "list_view"])
def test_every_type_that_holds_bytes_is_read(tmp_path, kind, shape):
    data, kind = [picture(i) for i in range(3)], BYTES[kind]
    flat = pa.array(data).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(data)
    flat = flat if pa.types.is_dictionary(kind) else flat.cast(kind)
    held = pa.StructArray.from_arrays([flat, pa.array(list("xyz"))], ["bytes", "path"])
    starts, sizes = pa.array([0, 2, 3], pa.int32()), pa.array([0, 2], pa.int32())
    column = {
        "alone": lambda: flat,
        "struct": lambda: held,
        "list": lambda: pa.ListArray.from_arrays(starts, flat),
        "list of structs": lambda: pa.LargeListArray.from_arrays(starts.cast("int64"), held),
        "list_view": lambda: pa.ListViewArray.from_arrays(sizes, pa.array([2, 1], "int32"), flat),
    }[shape]()
    several = len(column) == 2
    texts = ["a", "b"] if several else ["a", "b", "c"]
    try:
        path = write(tmp_path / "a.parquet", {"image": column, "text": texts})
    except pa.ArrowNotImplementedError as error:
        pytest.skip(f"this Arrow does not write it: {error}")
    records, reasons = outcome(parquet.items(path))
    wanted = [data[:2], data[2:]] if several else [[d] for d in data]
    assert not reasons and [r.images for r in records.values()] == wanted
    assert [r.caption for r in records.values()] == texts


@pytest.mark.parametrize("kind", [
    pa.string_view(), pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.string_view()),
    pa.large_list(pa.large_string()), pa.list_view(pa.string()), pa.large_list_view(pa.string()),
    pa.list_(pa.string(), 1), pa.json_(),
], ids=str)  # fmt: skip
def test_every_type_that_holds_text_is_read(tmp_path, kind):
    texts = ["a", "b"]
    if pa.types.is_dictionary(kind):
        column = pa.array(texts).dictionary_encode()
    elif isinstance(kind, pa.BaseExtensionType):
        column = pa.array(texts, kind)
    elif parquet._is_list(kind):
        column = pa.array([[t] for t in texts], kind)
    else:
        column = pa.array(texts, kind)
    width = len(picture(1))
    columns = {
        "image": pa.array([picture(1), picture(2)[:width].ljust(width, b"\0")], pa.binary(width)),
        "caption": column,
        "sha256": pa.array([bytes(32)] * 2, pa.binary(32)),  # no image is as small
        "id": pa.array([bytes(16)] * 2, pa.uuid()),
        "text": pa.array([None, None], pa.string()),
    }
    records, reasons = outcome(parquet.items(write(tmp_path / "a.parquet", columns)))
    assert not reasons and [r.caption for r in records.values()] == texts


def test_missing_images_of_a_list_are_named(tmp_path):
    columns = {"images": [[struct(picture()), struct(None)], [], None], "text": list("abc")}
    columns["images"][0][1] = {"bytes": None, "path": "x.png"}
    records, reasons = outcome(parquet.items(write(tmp_path / "a.parquet", columns)))
    assert not records and list(reasons.values()) == [
        "image 2 of 2 has no bytes", "no image", "no image"
    ]  # fmt: skip


def test_a_column_that_is_null_throughout_is_no_second_caption(tmp_path):
    captions = {"caption": pa.array([None, None], pa.string()), "text": ["x", "y"]}
    columns = {"image": [picture(1), picture(2)]} | captions
    records, _ = outcome(parquet.items(write(tmp_path / "a.parquet", columns)))
    assert [r.caption for r in records.values()] == ["x", "y"]
    captions["caption"] = pa.array([None, "z"])
    with pytest.raises(UserError, match="several columns may hold the captions"):
        parquet.items(write(tmp_path / "b.parquet", columns | captions))


def test_rows_keep_their_pictures_whatever_is_skipped(tmp_path):
    count = 300  # several row groups, of several batches each
    columns = {
        "img": [struct(picture(i, size=4)) for i in range(count)],
        "text": pa.array([str(i) for i in range(count)]).dictionary_encode(),
    }
    path = write(tmp_path / "a.parquet", columns, row_group_size=130)
    assert sum(1 for _ in parquet.items(path)) == count
    for step in (1, 7, 100):
        for i, item in enumerate(parquet.items(path)):
            if i % step == step - 1:
                record = item.read()
                assert (record.id, record.caption) == (f"a.parquet:{i}", str(i))
                assert record.images == [picture(i, size=4)]


def test_row_groups_whose_items_are_skipped_are_not_decoded(tmp_path):
    noise = np.random.default_rng(0).bytes(50_000)
    columns = {"image": [struct(picture()), struct(noise), struct(picture())], "text": list("abc")}
    path = write(tmp_path / "a.parquet", columns, row_group_size=1, compression="snappy")
    raw = path.read_bytes()
    start = raw.index(noise[1000:1010])
    path.write_bytes(raw[: start - 900] + bytes(40_000) + raw[start + 39_100 :])
    found = [i.read().caption for n, i in enumerate(parquet.items(path)) if n != 1]
    assert found == ["a", "c"]
    records, reasons = outcome(parquet.items(path))
    assert len(records) == 2 and "picture" in reasons["a.parquet:1"]


def test_several_captions_make_several_records(tmp_path):
    columns = {"image": [picture(1), picture(2)], "caption": [["x", "y"], []]}
    records, reasons = outcome(parquet.items(write(tmp_path / "a.parquet", columns)))
    assert {k: (r.caption, r.images) for k, r in records.items()} == {
        "a.parquet:0": ("x", [picture(1)]),
        "a.parquet:0:2": ("y", [picture(1)]),
    }
    assert reasons == {"a.parquet:1": "no caption"}


def test_damaged_rows_are_named_and_the_others_live(tmp_path):
    columns = {
        "image": [struct(picture()), None, {"bytes": None, "path": "x.png"},
                  struct(picture()), struct(picture()), struct(picture()[:-99]), struct(b"")],
        "text": ["good", "b", "c", None, "  ", "f", "g"],
    }  # fmt: skip
    records, reasons = outcome(parquet.items(write(tmp_path / "a.parquet", columns)))
    assert list(records) == ["a.parquet:0"]
    assert reasons.pop("a.parquet:5").startswith("damaged picture")
    assert reasons.pop("a.parquet:6").startswith("not a picture")
    assert reasons == {
        "a.parquet:1": "no image",
        "a.parquet:2": "image 1 of 1 has no bytes",
        "a.parquet:3": "no caption",
        "a.parquet:4": "empty caption",
    }


def test_a_folder_with_splits_and_a_cut_file(tmp_path):
    columns = {"image": [picture()], "text": ["x"]}
    for name in ("test/a.parquet", "validation-00000-of-00001-ab.parquet", "train.parquet"):
        write(tmp_path / name, columns)
    cut = write(tmp_path / "cut.parquet", columns)
    cut.write_bytes(cut.read_bytes()[:-30])
    assert {i.source: i.split for i in parquet.items(tmp_path)} == {
        "cut.parquet": None,
        "test/a.parquet:0": "test",
        "train.parquet:0": None,
        "validation-00000-of-00001-ab.parquet:0": "validation",
    }
    records, reasons = outcome(parquet.items(tmp_path))
    assert len(records) == 3
    assert reasons == {"cut.parquet": "not a Parquet file, or damaged at its end"}


def test_damage_in_the_captions_ends_the_row_group_alone(tmp_path):
    texts = [np.random.default_rng(i).bytes(3000).hex() for i in range(4)]
    columns = {"image": [picture(i) for i in range(4)], "text": texts}
    options = {"row_group_size": 2, "compression": "gzip", "use_dictionary": False}
    path = write(tmp_path / "a.parquet", columns, **options)
    first = pq.ParquetFile(path).metadata.row_group(0).column(1)
    raw = bytearray(path.read_bytes())
    middle = first.data_page_offset + first.total_compressed_size // 2
    raw[middle : middle + 500] = bytes(500)
    path.write_bytes(raw)
    records, reasons = outcome(parquet.items(path))
    assert list(records) == ["a.parquet:2", "a.parquet:3"]
    assert records["a.parquet:3"].images == [picture(3)]
    assert "row group cannot be read" in reasons["a.parquet:0"]


def test_a_changed_bit_is_damage_where_the_writer_left_checksums(tmp_path):
    columns = {"image": [struct(picture())], "text": ["a caption that is long enough to find"]}
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    for checks in (True, False):
        path = tmp_path / "a.parquet"
        write(path, columns, write_page_checksum=checks, **options)
        path.write_bytes(path.read_bytes().replace(b"long enough", b"lonG enough"))
        records, reasons = outcome(parquet.items(path))
        assert len(reasons) == checks and len(records) == (not checks)


@pytest.mark.parametrize("columns, message", [
    ({"image": [b""], "caption": ["a"], "text": ["b"]}, "captions .caption: string, text: string"),
    ({"image": [b""], "mask": [b""], "text": ["b"]}, "images .*, mask: binary.; drop or rename"),
    ({"image": [b""], "words": ["b"]}, "no column holds the captions .image: binary, words: st"),
    ({"image": ["a.png"], "text": ["b"]}, "no column holds the images .image: string, text:"),
    ({"image": [b""], "text": [3]}, "the captions .*text: int64.; make one that is string, large_"),
])  # fmt: skip
def test_columns_that_are_not_clear_are_named(tmp_path, columns, message):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=f"a.parquet: .*{message}"):
        parquet.items(path)


def test_a_path_without_files_is_the_users_mistake(tmp_path):
    for path, message in ((tmp_path / "no", "does not exist"), (tmp_path, "no file in")):
        with pytest.raises(UserError, match=message):
            parquet.items(path)
