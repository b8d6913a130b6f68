"""Only pictures that decode are let through, and those byte for byte."""

import io

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture

from mmjax.data.formats.picture import ENDINGS, UNREAD, checked
from mmjax.data.pixels import FORMATS


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_stay_as_they_are(form):
    data = picture(form=form)
    assert checked(data) == data


@pytest.mark.parametrize("form", FORMATS)
def test_a_cut_file_is_damage(form):
    data = picture(form=form, size=64)
    with pytest.raises(ValueError, match="picture"):
        checked(data[: len(data) // 2])


def test_a_changed_bit_of_a_png_is_damage():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(buffer, "png", compress_level=0)
    data = bytearray(buffer.getvalue())
    checked(bytes(data))
    data[len(data) // 2] ^= 1  # one of a stored pixel's
    with pytest.raises(ValueError, match="damaged picture"):
        checked(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9"]
)
def test_other_bytes_are_no_picture(data):
    with pytest.raises(ValueError, match="not a picture of a known kind"):
        checked(data)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_is_damage(side):
    buffer = io.BytesIO()
    PIL.Image.new("1", (side, side)).save(buffer, "png")
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(ValueError, match="more than 89,478,485 pixels"):
        checked(buffer.getvalue())


def test_endings_are_of_formats_that_are_read():
    known = PIL.Image.registered_extensions()
    assert {known[e] for e in ENDINGS if e != ".jif"} == set(FORMATS)  # Pillow does not list .jif
    assert not set(ENDINGS) & set(UNREAD)
    assert not {e for e in UNREAD if known.get(e) in FORMATS}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.data())
def test_damage_of_any_kind_raises_nothing_but_value_error(form, data):
    raw = bytearray(picture(form=form, size=8))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        checked(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    except ValueError:
        pass
