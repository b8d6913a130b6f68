"""Text files: documents of whole paragraphs, nothing lost between them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import outcome

from mmjax.batch import Text
from mmjax.data.formats import text
from mmjax.error import UserError


def test_paragraphs_go_together_until_a_document_is_full(tmp_path):
    a, b, c = "a " * 400 + "a", "b" * 1000, "c" * 500
    (tmp_path / "a.txt").write_bytes(f"\ufeff{a}\r\n \r\n\n{b}\n\n\t{c}\n".encode())
    records, reasons = outcome(text.items(tmp_path / "a.txt"))
    assert not reasons
    assert {k: r.document for k, r in records.items()} == {
        "a.txt:1": (Text(f"{a}\n\n{b}"),),
        "a.txt:2": (Text(c),),
    }


def test_a_folder_with_splits(tmp_path):
    for name in ("b.md", "a/x.TXT", "test/y.txt", ".z.txt", "c.rst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    found = [(i.source, i.split, i.read().caption) for i in text.items(tmp_path) if not i.ignored]
    assert found == [
        ("a/x.TXT:1", None, "a/x.TXT"),
        ("b.md:1", None, "b.md"),
        ("test/y.txt:1", "test", "test/y.txt"),
    ]


def test_what_is_not_utf8_is_named_by_its_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 1500 + b"\n\n" + b"y" * 1500 + b"\n\nK\xe4uzchen\n")
    (tmp_path / "b.txt").write_text("fine")
    records, reasons = outcome(text.items(tmp_path))
    assert [r.caption[0] for r in records.values()] == ["x", "f"]
    assert reasons == {"a.txt:2": "line 5: not UTF-8 at byte 1; save the file as UTF-8"}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab \n", max_size=30), max_size=30), st.integers(1, 3))
def test_no_word_is_lost_and_no_document_too_long(tmp_path_factory, pieces, repeat):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    said = "start " + "\n\n".join(p * 40 * repeat for p in pieces)
    path.write_text(said)
    records, reasons = outcome(text.items(path))
    assert not reasons
    captions = [r.caption for r in records.values()]
    assert all(0 < len(c) <= text.LONGEST for c in captions)
    # Words longer than a document are cut; but for that the words are the same.
    assert "".join("".join(captions).split()) == "".join(said.split())
    if max(map(len, said.split())) < text.LONGEST:
        assert " ".join(captions).split() == said.split()


def test_a_large_paragraph_takes_no_time_to_cut(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 1_000_000)
    assert sum(1 for _ in text.items(tmp_path)) == 2500


def test_a_path_without_text_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        text.items(tmp_path / "no")
    with pytest.raises(UserError, match=r"no file in .* ends in \.txt \.md"):
        text.items(tmp_path)
