"""Resize modes against pictures made by the libraries they are named after.

tests/golden/resize holds sections of scikit-learn's two photographs, 60 x 40 and 40 x 60, and what
Pillow 13.0, torch 2.13 and jax 0.10.2 made of them: the whole picture resized to 24 x 16 or 72 x 48
(so that no side is rounded), the centre cut out. TensorFlow's formula was written out pixel by
pixel for it.
"""

import itertools
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from PIL.Image import Resampling

from mmjax.data import resize
from mmjax.data.resize import MEAN_COLOUR, WHITE
from mmjax.data.resize import RESIZE as ALL

GOLDEN = Path(__file__).parents[1] / "golden" / "resize"
WHOLE = ("_pad", "_stretch")  # cut nothing off
RESIZE = {mode: function for mode, function in ALL.items() if not mode.endswith(WHOLE)}
NAMES, SIZES = ("china", "flower"), (16, 48)
# Pillow computes in integers; elsewhere a tie of rounding may fall on either side.
TOLERANCE = {mode: 0 if mode.startswith("pil") or mode == "nearest" else 1 for mode in RESIZE}
KERNELS = {
    "pil_box": Resampling.BOX,
    "pil_bilinear_aa": Resampling.BILINEAR,
    "pil_bicubic_aa": Resampling.BICUBIC,
    "pil_lanczos": Resampling.LANCZOS,
    "nearest": Resampling.NEAREST,
}


def load(name):
    return np.asarray(PIL.Image.open(GOLDEN / f"{name}.png"))


PICTURES = {name: load(name) for name in NAMES}


def gap(a, b):
    """Largest difference of two pictures."""
    return int(abs(a.astype(int) - b.astype(int)).max())


def centre(picture, size):
    top, left = ((n - size) // 2 for n in picture.shape[:2])
    return picture[top : top + size, left : left + size]


@pytest.mark.parametrize("mode", RESIZE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_what_the_libraries_made(name, size, mode):
    found = RESIZE[mode](PICTURES[name], size)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    assert gap(found, load(f"{name}_{size}_{mode}")) <= TOLERANCE[mode]


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(RESIZE, 2)))
def test_no_mode_passes_for_another(a, b):
    pairs = itertools.product(NAMES, SIZES)
    widest = max(gap(RESIZE[a](PICTURES[n], s), load(f"{n}_{s}_{b}")) for n, s in pairs)
    assert widest > 10 * max(TOLERANCE[a], TOLERANCE[b])
    assert widest > 10


@pytest.mark.parametrize("mode", RESIZE)
def test_half_the_size_away_and_back_is_another_picture(mode):
    square = PICTURES["china"][:, :40]
    assert gap(RESIZE[mode](RESIZE[mode](square, 20), 40), square) > 10


@pytest.mark.parametrize("mode", RESIZE)
def test_a_picture_of_the_right_size_stays_as_it_is(mode):
    square = PICTURES["china"][:, :40]
    np.testing.assert_array_equal(RESIZE[mode](square, 40), square)


@pytest.mark.parametrize("mode", RESIZE)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 2), (41, 40)])
def test_one_colour_stays_one_colour(mode, shape):
    colour = np.array([3, 128, 255], np.uint8)
    found = RESIZE[mode](np.broadcast_to(colour, (*shape, 3)).copy(), 5)
    np.testing.assert_array_equal(found, np.broadcast_to(colour, (5, 5, 3)))


@pytest.mark.parametrize("mode", RESIZE)
def test_the_centre_is_kept(mode):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    inner = RESIZE[mode](wide, 8)
    assert inner.min() == inner.max() == 200  # not so one column further
    assert RESIZE[mode](wide[:, 2:], 8).min() == 0
    tall = RESIZE[mode](wide.swapaxes(0, 1).copy(), 8)
    np.testing.assert_array_equal(tall, inner)


@pytest.mark.parametrize("mode", [m for m in RESIZE if m not in ("pil_box", "nearest")])
def test_kernels_see_what_lies_beyond_the_square(mode):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    cut = RESIZE[mode](wide[:, 8:16].copy(), 16)
    assert cut.min() == cut.max() == 200
    assert RESIZE[mode](wide, 16).min() < 200


@pytest.mark.parametrize("mode", KERNELS)
@pytest.mark.parametrize("size", SIZES)
def test_as_the_whole_picture_resized_by_pillow(mode, size):
    whole = PIL.Image.fromarray(PICTURES["china"]).resize((size * 3 // 2, size), KERNELS[mode])
    found = RESIZE[mode](PICTURES["china"], size)
    np.testing.assert_array_equal(found, centre(np.asarray(whole), size))
    assert gap(found, np.asarray(whole)[:, :size]) > 10


@pytest.mark.parametrize("shape", [(33, 33), (33, 20), (9, 21)])
@pytest.mark.parametrize("size", [7, 12, 40])
def test_pil_box_is_one_call_of_pillow(shape, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture, short = PIL.Image.fromarray(pixels), min(shape)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    box = (left, top, left + short, top + short)
    expected = np.asarray(picture.resize((size, size), Resampling.BOX, box=box))
    found = RESIZE["pil_box"](pixels, size)
    np.testing.assert_array_equal(found, expected)
    assert gap(RESIZE["pil_bilinear_aa"](pixels, size), expected) > 1


def test_pil_box_is_a_mean():
    square = PICTURES["china"][:, 10:50]
    mean = square.reshape(10, 4, 10, 4, 3).mean((1, 3))
    found = RESIZE["pil_box"](PICTURES["china"], 10)
    assert abs(found - mean).max() <= 1
    assert abs(RESIZE["pil_bilinear_aa"](PICTURES["china"], 10) - mean).max() > 10


@pytest.mark.parametrize("size", [6, 13, 40, 90])
def test_jax_cubic_is_jax(size):
    square = PICTURES["flower"][:40]
    real = jax.image.resize(square.astype(np.float32), (size, size, 3), "cubic", antialias=True)
    real = np.clip(np.rint(real), 0, 255).astype(np.uint8)
    assert gap(RESIZE["jax_cubic"](square, size), real) <= TOLERANCE["jax_cubic"]
    if size < 40:
        plain = jax.image.resize(square.astype(np.float32), (size, size, 3), "cubic", False)
        assert gap(np.clip(plain, 0, 255), real) > 10


def test_tf1_bilinear_takes_its_samples_from_the_top_left():
    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[None, :, None], (16, 16, 3)).copy()
    half = RESIZE["tf1_bilinear"](ramp, 8)
    np.testing.assert_array_equal(half[0, :, 0], np.arange(0, 160, 20))  # every other pixel
    double = RESIZE["tf1_bilinear"](ramp, 32)
    np.testing.assert_array_equal(double[0, :, 0], np.minimum(np.arange(0, 160, 5), 150))
    assert gap(RESIZE["pil_bilinear_aa"](ramp, 8), half) >= 5  # half-pixel centres


@pytest.mark.parametrize("kernel, colour", [("pil_bicubic", MEAN_COLOUR), ("pil_lanczos", WHITE)])
def test_padding_keeps_all_of_a_picture_in_the_middle(kernel, colour):
    """A square of the longer side in the mean colour (LLaVA 1.5) or white, the picture centred."""
    pad, plain = f"{kernel}_pad", {"pil_bicubic": "pil_bicubic_aa"}.get(kernel, kernel)
    picture = PICTURES["china"]
    tall, wide = picture.shape[:2]
    side = max(tall, wide)
    square = np.broadcast_to(np.array(colour, np.uint8), (side, side, 3)).copy()
    top, left = (side - tall) // 2, (side - wide) // 2
    square[top : top + tall, left : left + wide] = picture
    np.testing.assert_array_equal(ALL[pad](picture, side), square)
    found = ALL[pad](picture, 20)
    np.testing.assert_array_equal(found, ALL[plain](square, 20))
    assert gap(found, ALL[plain](picture, 20)) > 10
    np.testing.assert_array_equal(ALL[pad](picture, (tall, wide)), picture)


@pytest.mark.parametrize("size", [16, (16, 8)])
def test_stretched_is_the_whole_picture(size):
    high, wide = (size, size) if isinstance(size, int) else size
    for name in NAMES:
        picture = PIL.Image.fromarray(PICTURES[name]).resize((wide, high), Resampling.BICUBIC)
        found = ALL["pil_bicubic_stretch"](PICTURES[name], size)
        np.testing.assert_array_equal(found, np.asarray(picture))
        assert gap(found, ALL["pil_bicubic_aa"](PICTURES[name], size)) > 10
    square = PICTURES["china"][:, :40]
    same = (ALL[mode](square, 16) for mode in ("pil_bicubic_stretch", "pil_bicubic_aa"))
    np.testing.assert_array_equal(*same)


LONG = np.random.default_rng(0).integers(0, 256, (3, 60_000, 3)).astype(np.uint8)


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("mode", ALL)
def test_a_long_picture_takes_little_memory(mode, tall, monkeypatch):
    monkeypatch.setattr(resize, "PIXELS", 1 << 20)
    monkeypatch.setattr(resize, "SIDE", 1 << 12)
    long = LONG.swapaxes(0, 1) if tall else LONG
    tracemalloc.start()  # NumPy's memory; Pillow's is that of what is handed to it
    try:
        found = ALL[mode](long, 16)
        assert found.shape == (16, 16, 3)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", [m for m in ALL if m.endswith(WHOLE)])
def test_what_is_shrunk_at_first_looks_the_same(mode, monkeypatch):
    across = np.linspace(0, 255, 1_500)[None, :, None]
    wide = np.broadcast_to(across, (500, 1_500, 3)).astype(np.uint8)
    for pixels in (wide, np.ascontiguousarray(wide.swapaxes(0, 1))):
        whole = ALL[mode](pixels, 32)
        with monkeypatch.context() as small:
            small.setattr(resize, "PIXELS", 1 << 17)
            small.setattr(resize, "SIDE", 1 << 8)
            assert gap(ALL[mode](pixels, 32), whole) <= 3
        assert gap(ALL[mode](pixels[::-1, ::-1], 32), whole) > 100


@pytest.mark.parametrize("mode", ["torch_bicubic", "jax_cubic", "tf1_bilinear"])
def test_blocks_and_cuts_change_nothing(mode, monkeypatch):
    for shape in ((40, 90), (90, 40), (200, 30)):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
        for size in (7, 50):
            whole = ALL[mode](pixels, size)
            with monkeypatch.context() as small:
                small.setattr(resize, "CHUNK", 64)
                np.testing.assert_array_equal(ALL[mode](pixels, size), whole)
            # What lies further than kernels reach plays no part.
            wider = np.pad(pixels, ((0, 0), (60, 60), (0, 0)) if shape[1] > shape[0] else
                           ((60, 60), (0, 0), (0, 0)))  # fmt: skip
            np.testing.assert_array_equal(ALL[mode](wider, size), whole)
