"""Interleaved documents, line by line."""

import base64
import gzip
import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import outcome, picture

from mmjax.batch import Image, Text
from mmjax.data.formats import jsonl
from mmjax.data.record import pack, unpack
from mmjax.error import UserError


def written(path, *lines):
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(lines))
    return path


def test_parts_in_any_order(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").write_bytes(picture(1))
    inline = base64.b64encode(picture(2, "webp")).decode()
    path = written(tmp_path / "in/a.jsonl", {
        "id": "x", "split": "golden_2", "facts": {"label": [1, {"deep": None}]},
        "parts": [
            {"text": "one\n", "loss": False}, {"image": "../out.png"},
            {"image": "../out.png", "loss": False},
            {"image_base64": inline, "loss": False}, {"text": " two"},
        ],
    })  # fmt: skip
    (outside,) = jsonl.items(path)
    with pytest.raises(ValueError, match=r"part 2: ../out.png lies outside .* --images=DIR"):
        outside.read()
    (item,) = jsonl.items(path, images=str(tmp_path))
    record = item.read()
    assert (item.source, item.split, record.id) == ("a.jsonl:1", "golden_2", "x")
    assert record.facts == {"label": [1, {"deep": None}]}
    assert record.document == (
        Text("one\n", loss=False), Image(picture(1)), Image(picture(1), loss=False),
        Image(picture(2, "webp"), loss=False), Text(" two"),
    )  # fmt: skip


def test_short_forms_and_blank_lines(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    absolute = str(tmp_path / "a.png")
    pairs = [{"image": "a.png", "caption": " a "}, {"image": absolute, "caption": "b"}]
    path = written(tmp_path / "a.jsonl", {"text": "hello", "meta": 3}, b"", b"  \r", *pairs)
    records, reasons = outcome(jsonl.items(path))
    assert not reasons
    assert {k: r.document for k, r in records.items()} == {
        "a.jsonl:1": (Text("hello"),),
        "a.jsonl:4": (Text("a"), Image(picture())),
        "a.jsonl:5": (Text("b"), Image(picture())),
    }


DAMAGED = [
    (b"{", "not JSON"), (b"[1]", "not a JSON object"), (b"\xff", "not UTF-8 at byte 0"),
    (b"[" * 100_000, "nested too deeply"), ({}, "neither"), ({"text": "\n"}, "empty text"),
    ({"text": None}, "neither"), ({"text": "\udc00"}, "half a character"),
    ({"id": [7], "text": "x"}, "id is not text"), ({"id": "\udc00", "text": "x"}, "half a char"),
    ({"image": "a.png"}, "no caption"), ({"image": "b.png", "caption": "x"}, "b.png: no such file"),
    ({"image": "/nowhere/a.png", "caption": "x"}, "no such file"),
    ({"image": "a\0.png", "caption": "x"}, "null"), ({"image": ".", "caption": "x"}, "directory"),
    ({"parts": []}, "empty"), ({"parts": "x"}, "not a list"), ({"parts": ["x"]}, "part 1: not a"),
    ({"parts": [{"text": "x"}, {"text": ""}]}, "part 2: text is empty"),
    ({"parts": [{"text": " "}]}, "no text but white space"),
    ({"parts": [{"text": "x", "los": False}]}, "unknown field 'los'"),
    ({"parts": [{"text": "x", "loss": 0}]}, "loss 0 is neither"),
    ({"parts": [{"text": "x", "image": "a.png"}]}, "has 2"), ({"parts": [{}]}, "has 0"),
    ({"parts": [{"image_base64": "a?"}]}, "not base64"),
    ({"parts": [{"image_base64": "aGVsbG8="}]}, "part 1: not a picture"),
    ({"text": "x", "split": "../up"}, "split '../up' is not"), ({"text": "x", "split": 1}, "split"),
    ({"text": "x", "facts": []}, "facts are not"),
    ({"text": "x", "facts": {"n": 2**64}}, "facts cannot be written"),
    ({"text": "x", "facts": {"n": "\udc00"}}, "facts cannot be written"),
    ({"text": "x", "facts": {"roles": "gpt"}}, "roles are not a list"),
    ({"text": "x", "facts": {"roles": ["gpt"]}}, "no answer (of gpt's) behind a prompt"),
    ({"text": "x", "facts": {"roles": ["human", "gpt"]}}, "2 roles for 1 parts"),
    ({"text": "x", "facts": {"questions": [{"question": "?"}]}}, "questions are not a list of"),
    ({"text": "x", "facts": {"questions": {"a": 1}}}, "questions are not a list of"),
]  # fmt: skip


@pytest.mark.parametrize("line, reason", DAMAGED, ids=[str(r) for _, r in DAMAGED])
def test_a_damaged_line_is_named_and_its_neighbours_live(tmp_path, line, reason):
    (tmp_path / "a.png").write_bytes(picture())
    path = written(tmp_path / "a.jsonl", {"text": "before"}, line, {"text": "after"})
    items = list(jsonl.items(path))
    assert items[1].split is None
    records, reasons = outcome(items)
    assert [r.caption for r in records.values()] == ["before", "after"]
    assert reasons.keys() == {"a.jsonl:2"} and reason in reasons["a.jsonl:2"]


def test_a_folder_and_packed_files(tmp_path):
    for name in ("b.jsonl", "test/a.jsonl", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        written(tmp_path / name, {"text": name})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "packed", "split": "dev"}\n'))
    found = [(i.source, i.split, i.read().caption) for i in jsonl.items(tmp_path) if not i.ignored]
    assert found == [
        ("a.jsonl.gz:1", "dev", "packed"),
        ("b.jsonl:1", None, "b.jsonl"),
        ("test/a.jsonl:1", "test", "test/a.jsonl"),
    ]


def test_a_packed_file_that_breaks_off_keeps_what_came_before(tmp_path):
    lines = [json.dumps({"text": picture(i).hex()}).encode() for i in range(400)]
    data = gzip.compress(b"\n".join(lines))
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    records, reasons = outcome(jsonl.items(tmp_path))
    assert 100 < len(records) < 300
    assert [r.caption for r in records.values()] == [picture(i).hex() for i in range(len(records))]
    assert list(reasons) == [f"a.jsonl.gz:{len(records) + 1}"]
    assert "cannot be read from here on" in next(iter(reasons.values()))


def test_a_path_without_lines_is_the_users_mistake(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    for path, message in ((tmp_path / "no", "does not exist"), (tmp_path, "no file in")):
        with pytest.raises(UserError, match=message):
            jsonl.items(path)
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(UserError, match="is empty"):
        jsonl.items(tmp_path / "a.jsonl")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def test_null_is_as_good_as_absent_and_an_id_may_be_a_number(tmp_path):
    """As tables are exported: every field in every line."""
    (tmp_path / "a.png").write_bytes(picture())
    path = written(
        tmp_path / "a.jsonl",
        {"id": 17, "text": "plain", "image": None, "caption": None, "parts": None, "split": None},
        {"id": 2.5, "text": "said", "image": "a.png", "caption": None, "facts": None},
        {"id": None, "parts": [{"text": "x", "image": None, "loss": None}]},
        {"id": True, "text": "x"},
        {"id": 3, "text": None, "image": None},
    )
    records, reasons = outcome(jsonl.items(path))
    assert [(r.id, r.caption) for r in records.values()] == [
        ("17", "plain"), ("2.5", "said"), ("a.jsonl:3", "x")
    ]  # fmt: skip
    assert reasons["a.jsonl:4"].startswith("id is not text but bool")
    assert reasons["a.jsonl:5"].startswith("neither")


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_however_their_accents_are_spelled(tmp_path, forms):
    there, told = (unicodedata.normalize(form, "é/ñ.png") for form in forms)
    (tmp_path / there).parent.mkdir()
    (tmp_path / there).write_bytes(picture())
    path = written(tmp_path / "a.jsonl", {"image": told, "caption": "x"})
    records, reasons = outcome(jsonl.items(path))
    assert not reasons and records["a.jsonl:1"].images == [picture()]


FIELDS = st.sampled_from(["id", "split", "facts", "parts", "text", "image", "caption"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(FIELDS, json_values))
def test_whatever_is_read_can_be_written(tmp_path_factory, line):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    records, reasons = outcome(jsonl.items(written(path, line)))
    assert len(records) + len(reasons) == 1
    for record in records.values():
        assert unpack(pack(record)).document == record.document
