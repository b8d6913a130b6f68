"""Decoded pictures: their size, their modes, their damage."""

import collections
import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from mmjax.data import pixels
from mmjax.data.formats.picture import checked
from mmjax.error import UserError


def decode_image(raw, size):
    return pixels.decode_image(raw, size, "pil_box")


def png(array, mode=None, form="PNG", **options) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(np.asarray(array)).convert(mode).save(out, form, **options)
    return out.getvalue()


RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)


def test_a_picture_of_the_right_size_is_taken_as_it_is():
    np.testing.assert_array_equal(decode_image(png(PICTURE), 8), PICTURE)
    assert (decode_image(png(PICTURE[::-1]), 8) != PICTURE).any()


def test_a_larger_picture_is_averaged_over_squares():
    large = RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    want = large.reshape(8, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(decode_image(png(large), 8) - want).max() < 1  # rounded along each axis


@pytest.mark.parametrize("tall", [False, True])
def test_the_centre_of_a_picture_that_is_not_square_is_kept(tall):
    wide = np.zeros((10, 30, 3), np.uint8)
    for third, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        wide[:, 10 * third : 10 * third + 10] = colour
    picture = wide.transpose(1, 0, 2) if tall else wide
    for size in (4, 10, 16):
        got = decode_image(png(picture), size)
        assert got.shape == (size, size, 3) and (got == (0, 255, 0)).all()


def test_a_photograph_is_turned_as_its_camera_says():
    out = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    PIL.Image.fromarray(PICTURE).save(out, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(out.getvalue(), 8), np.rot90(PICTURE, -1))
    assert (decode_image(out.getvalue(), 8) != PICTURE).any()


def test_transparency_lies_on_white():
    clear = np.dstack([PICTURE, np.zeros((8, 8), np.uint8)])
    assert (decode_image(png(clear), 8) == 255).all()
    opaque = np.dstack([PICTURE, np.full((8, 8), 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(png(opaque), 8), PICTURE)
    half = np.zeros((8, 8, 4), np.uint8)
    half[..., 3] = 51
    assert (decode_image(png(half), 8) == 204).all()
    grey = np.zeros((8, 8, 4), np.uint8)
    assert (decode_image(png(grey, "LA"), 8) == 255).all()
    palette = np.zeros((8, 8), np.uint8)
    palette[4:] = 255
    got = decode_image(png(palette, "P", transparency=0), 8)
    assert (got == 255).all()
    assert (decode_image(png(palette, "P"), 8)[:4] == 0).all()


@pytest.mark.parametrize(
    ("mode", "form"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("P", "GIF")]
)
def test_other_modes_become_rgb(mode, form):
    got = decode_image(png(np.full((9, 9, 3), 255, np.uint8), mode, form), 4)
    assert got.shape == (4, 4, 3) and got.dtype == np.uint8 and got.min() >= 250
    black = decode_image(png(np.zeros((9, 9, 3), np.uint8), mode, form), 4)
    assert black.max() <= 5


def test_sixteen_bits_of_grey_keep_their_upper_eight():
    deep = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    out = io.BytesIO()
    PIL.Image.fromarray(deep).save(out, "PNG")
    got = decode_image(out.getvalue(), 8)
    np.testing.assert_array_equal(got, np.repeat(deep[..., None] // 256, 3, axis=2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_whose_white_is_not_known_are_refused(dtype):
    out = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8), 20_000, dtype)).save(out, "TIFF")
    for read in (lambda raw: decode_image(raw, 8), checked):
        with pytest.raises(ValueError, match=r"32 bits, .*; save it with 8 or 16 bits$"):
            read(out.getvalue())


@pytest.mark.filterwarnings("ignore")  # damaged files make the decoders talk
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF"])
def test_damaged_bytes_are_a_picture_or_a_user_error(form):
    whole, rng = (
        png(RNG.integers(0, 256, (24, 20, 3)).astype(np.uint8), None, form),
        np.random.default_rng(1),
    )
    outcomes = collections.Counter()
    for i in range(200):
        raw = bytearray(whole)
        if i % 2:
            del raw[rng.integers(0, len(raw)) :]
        else:
            raw[rng.integers(0, len(raw))] ^= int(rng.integers(1, 256))
        try:
            assert decode_image(bytes(raw), 8).shape == (8, 8, 3)
            outcomes["picture"] += 1
        except UserError as error:
            assert "cannot be decoded" in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 50
    assert decode_image(whole, 8).any()


def test_no_picture_at_all():
    for raw in (b"", b"a red apple", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(UserError, match=rf"a picture of {len(raw)} bytes cannot be decoded"):
            decode_image(raw, 8)


def test_a_header_that_promises_too_many_pixels():
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    raw += struct.pack(">I", zlib.crc32(header))
    with pytest.raises(UserError, match="cannot be decoded"):
        decode_image(raw, 8)


def test_a_shrunk_picture_shows_the_means_of_its_squares_alone():
    coarse = RNG.integers(50, 200, (4, 4, 3)).astype(np.uint8)
    detail = RNG.integers(1, 50, (4, 1, 4, 1, 3)) * np.array([1, -1]).reshape(1, 2, 1, 1, 1)
    flat = np.repeat(np.repeat(coarse, 2, 0), 2, 1)
    rough = (flat + np.broadcast_to(detail, (4, 2, 4, 2, 3)).reshape(8, 8, 3)).astype(np.uint8)
    seen, same = (pixels.decode_image(png(x), 8, "pil_box", 2) for x in (flat, rough))
    np.testing.assert_array_equal(seen, same)
    assert (
        seen.shape == (8, 8, 3)
        and (decode_image(png(rough), 8) != decode_image(png(flat), 8)).all()
    )
    other = pixels.decode_image(png(flat[::-1]), 8, "pil_box", 2)
    assert (other != seen).any() and np.abs(other[::-1].astype(int) - seen).max() <= 1
    box = pixels.Encoded(png(flat), 8, "pil_box")
    given = [box._replace(shrink=2), box, PICTURE, box._replace(size=(4, 8), resize="nearest")]
    cut = pixels.decode_image(png(flat), (4, 8), "nearest")
    for found, want in zip(pixels.decode_all(given), [seen, flat, PICTURE, cut], strict=True):
        np.testing.assert_array_equal(found, want)
