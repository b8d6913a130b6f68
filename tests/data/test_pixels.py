"""Decoded pictures: their size, their modes, their damage."""

import collections
import io
import struct
import subprocess
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms
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
    raw += struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    for function in (lambda raw: decode_image(raw, 8), pixels.size_of, checked):
        with pytest.raises(ValueError, match="picture of more than 89,478,485 pixels"):
            function(raw)


def test_a_tile_larger_than_its_image_has_a_limit():
    """A TIFF of 10 x 10 pixels in one tile: its directory, then the tile, deflated."""
    for side, allowed in ((1_008, True), (9_456, True), (9_472, False), (1 << 31, False)):
        tile = zlib.compress(bytes(min(side * side, 1 << 21)))
        entries = [(256, 10), (257, 10), (258, 8), (259, 8), (262, 1), (277, 1), (322, side),
                   (323, side), (324, 8 + 2 + 12 * 10 + 4), (325, len(tile))]  # fmt: skip
        raw = b"II*\0" + struct.pack("<IH", 8, len(entries))
        raw += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
        raw += bytes(4) + tile
        if side == 1_008:
            assert checked(raw) == raw and not decode_image(raw, 8).any()
        for function in (lambda raw: decode_image(raw, 8), pixels.size_of, checked):
            why = tried(function, raw)
            assert ("more than 89,478,485 pixels" in str(why)) != allowed


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


def photo(form, size=(12, 8), orientation=6) -> bytes:
    """Noise of (width, height) pixels with EXIF as a camera writes it."""
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = orientation, "Maker", 72.0
    exif.get_ifd(0x8769).update({0x829A: 0.5, 0x9003: "2020:01:01 00:00:00", 0x927C: b"x" * 20})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    noise = RNG.integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(noise).save(out, form, exif=exif, lossless=True)
    return out.getvalue()


WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def mutated(form, count, seed=0):
    """A file with some bytes of its EXIF changed (of a TIFF, of anything but its pixels)."""
    whole, rng = photo(form), np.random.default_rng(seed)
    begin = whole.rfind(b"MM\0*" if b"MM\0*" in whole else b"II*\0")
    end = len(whole) if form == "TIFF" else begin + 200
    for _ in range(count):
        raw = bytearray(whole)
        for at in rng.integers(begin, end, rng.integers(1, 5)):
            raw[at] = rng.choice([0, 255, rng.integers(0, 256)])
        yield bytes(raw)


def tried(function, *given):
    try:
        return function(*given)
    except ValueError as error:  # anything else is what users must not see
        return str(error)


@pytest.mark.parametrize("form", WITH_EXIF)
def test_what_the_builder_accepts_the_loader_reads_and_damaged_metadata_are_passed_over(form):
    taken = 0
    for raw in mutated(form, 120):
        accepted = tried(checked, raw) == raw
        decoded, size = tried(decode_image, raw, 8), tried(pixels.size_of, raw)
        assert accepted == (not isinstance(decoded, str)) == (not isinstance(size, str)), decoded
        if accepted:
            taken += 1
            assert size == pixels.read(raw).size[::-1] and size in ((8, 12), (12, 8))
    assert taken == 120 or form == "TIFF"  # whose metadata say where its pixels are
    assert taken > 60


@pytest.mark.parametrize("form", WITH_EXIF)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_the_upright_image_in_every_format(form, orientation):
    raw = photo(form, orientation=orientation)
    wanted = (8, 12) if orientation < 5 else (12, 8)
    assert pixels.size_of(raw) == pixels.read(raw).size[::-1] == wanted


@pytest.mark.parametrize("form", ["EPS", "PPM", "TGA", "ICO"])
def test_no_other_format_is_opened_and_no_program_started(form, monkeypatch):
    out = io.BytesIO()
    PIL.Image.new("RGB", (16, 16)).save(out, form)
    PIL.Image.open(io.BytesIO(out.getvalue())).close()  # Pillow would

    def run(*args, **options):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setattr(subprocess, "check_call", run)
    for function in (lambda raw: decode_image(raw, 8), pixels.size_of, checked):
        with pytest.raises(ValueError, match="not a picture of a known kind"):
            function(out.getvalue())


def handed(raw):
    """A photo in every form a user may hand over that says how it is turned."""
    yield raw
    yield bytearray(raw)
    yield io.BytesIO(raw)
    with PIL.Image.open(io.BytesIO(raw)) as opened:
        yield opened
        yield opened.convert("CMYK").convert("RGB")  # carries its EXIF on


def test_a_turned_photo_is_upright_whatever_it_is_handed_over_as(tmp_path):
    raw = photo("PNG")
    (tmp_path / "a.png").write_bytes(raw)
    file = (tmp_path / "a.png").open("rb")
    wanted = np.asarray(pixels.read(raw))
    stored = np.asarray(PIL.Image.open(io.BytesIO(raw)))
    assert wanted.shape == (12, 8, 3) and stored.shape == (8, 12, 3)
    *ways, converted = [*handed(raw)]
    for given in (*ways, tmp_path / "a.png", file):
        assert pixels.is_image(given)
        np.testing.assert_array_equal(np.asarray(pixels.read(pixels.encode(given))), wanted)
        assert pixels.size_of(pixels.encode(given)) == (12, 8)
    file.close()
    assert pixels.size_of(pixels.encode(converted)) == (12, 8)
    np.testing.assert_array_equal(pixels.read(pixels.encode(stored)), stored)  # an array as it is


MODES = ("RGB", "RGBA", "RGBa", "RGBX", "L", "LA", "La", "P", "PA", "1", "CMYK", "YCbCr", "HSV",
         "LAB", "I;16", "I;16B", "I;16L")  # fmt: skip


def in_mode(mode, rgb):
    image = PIL.Image.fromarray(np.full((8, 8, 3), rgb, np.uint8))
    if mode == "LAB":
        srgb, lab = PIL.ImageCms.createProfile("sRGB"), PIL.ImageCms.createProfile("LAB")
        return PIL.ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    if mode.startswith("I;16"):
        grey = np.asarray(image.convert("L")).astype(">u2" if mode.endswith("B") else "<u2") * 257
        return PIL.Image.frombytes(mode, (8, 8), grey.astype(">u2" if mode == "I;16B" else "<u2"))
    by = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    return (image.convert(by) if by else image).convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_images_of_every_mode_are_read(mode):
    for rgb in ((255, 255, 255), (0, 0, 0), (200, 40, 90)):
        image = in_mode(mode, rgb)
        assert image.mode == mode
        got = np.asarray(pixels.read(pixels.encode(image))).reshape(-1, 3).mean(0)
        grey = mode[0] in "L1I" and mode != "LAB"
        wanted = [0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]] * 3 if grey else rgb
        assert np.abs(got - wanted).max() <= (9 if mode == "1" else 4)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_whose_white_is_not_known_are_one_line(mode):
    with pytest.raises(UserError, match=rf"mode '{mode}' of 4 x 2 pixels .* 32 bits, .*save it"):
        pixels.encode(PIL.Image.new(mode, (4, 2)))


def test_transparency_of_images_handed_over_lies_on_white():
    paletted = PIL.Image.fromarray(np.eye(8, dtype=np.uint8) * 200).convert("P")
    clear = paletted.info | {"transparency": 0}
    paletted.info = clear
    for image in (
        PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0)), PIL.Image.new("LA", (8, 8), (0, 0)), paletted
    ):  # fmt: skip
        assert np.asarray(pixels.read(pixels.encode(image)))[0, 1].tolist() == [255] * 3


class Unreadable:
    def read(self, size=-1):
        return "text"

    def seekable(self):
        return False


def test_what_cannot_be_read_of_things_handed_over_is_one_line(tmp_path):
    cut = PIL.Image.open(io.BytesIO(photo("JPEG", (64, 64))[:900]))  # its header is whole
    closed = (tmp_path / "a").open("wb")
    closed.close()
    for given, message in (
        (cut, "truncated"), (Unreadable(), "gives no bytes .*; open it in mode 'rb'"),
        (closed, "closed file; open it anew"), (tmp_path, "is a directory"),
        (tmp_path / "b", "does not exist"), (np.zeros((4, 4)), "uint8 .h, w, 3., not float64"),
        (PIL.Image.new("1", (9500, 9500)), "more than 89,478,485 pixels"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            pixels.encode(given)
        assert "\n" not in str(caught.value)
