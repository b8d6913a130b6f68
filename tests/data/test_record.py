"""Records to bytes and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.batch import Image, Text
from mmjax.data.record import Record, pack, unpack

parts = st.one_of(
    st.builds(Text, st.text(), st.booleans()), st.builds(Image, st.binary(), st.booleans())
)
facts = st.dictionaries(st.text(), st.one_of(st.integers(-(2**60), 2**60), st.text(), st.none()))
records = st.builds(Record, st.text(), st.lists(parts).map(tuple), facts)


@given(records, records)
def test_every_record_survives(a, b):
    assert unpack(pack(a)) == a
    assert (pack(a) == pack(b)) == (a == b)


def test_its_text_and_its_pictures():
    record = Record("x", (Text("a cat"), Image(b"1"), Text("a dog", loss=False), Image(b"2")))
    assert record.caption == "a cat a dog" and record.images == [b"1", b"2"]


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x01", b"\x81\xa2id\xa1x", pack(Record("x", ()))[:-1]]
)
def test_other_bytes_are_no_record(data):
    with pytest.raises(ValueError):
        unpack(data)
