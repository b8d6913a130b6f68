"""Steps of resizing: their words, and that large pictures take no more room than is shown.

That what they make is what `transformers` makes is tested in tests/convert/test_processor.py.
"""

import resource

import numpy as np
import pytest

from mmjax.data import steps
from mmjax.error import UserError

WORDS = [
    "shortest=224 kernel=bicubic crop=224x224",
    "shortest_rounded=512 kernel=lanczos crop=512x512",
    "pad=122,116,104 shortest=336 kernel=box",
    "size=20x30 kernel=hamming",
    "crop=5x7",
]


@pytest.mark.parametrize("text", WORDS)
def test_words_come_back(text):
    assert str(steps.parse(text)) == text
    high, wide = steps.parse(text).made
    pixels = np.zeros((9, 14, 3), np.uint8)
    assert steps.to_size(pixels, (high, wide), text).shape == (high, wide, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cubic", "'cubic' is unknown; have: pil_box, .*or steps, as 'shortest=224"),
        ("", "leaves pictures of several sizes; add crop="),
        ("shortest=224", "leaves pictures of several sizes; add crop="),
        ("shortest=224 kernel=magic crop=1x1", "kernel must be one of nearest, lanczos"),
        ("shortest=0 crop=1x1", "shortest must be between 1 and 32768"),
        ("shortest=1.5 crop=1x1", "shortest must be 1 whole number, as 1"),
        ("crop=3", "crop must be 2 whole numbers, as 1x1"),
        ("crop=3x-1", "crop must be 2 whole numbers, as 1x1"),
        ("crop=3x٣", "crop must be 2 whole numbers, as 1x1"),
        ("pad=1,2,256 size=3x3", "pad must be between 0 and 255"),
        ("size=3x3 shortest=3", "has size and shortest; give one"),
        ("shortest=3 shortest_rounded=3 crop=3x3", "says shortest twice"),
    ],
)
def test_words_that_are_none_are_named(text, words):
    with pytest.raises(UserError, match=f"^data.resize_prompt=.*{words}") as error:
        steps.parse(text, "data.resize_prompt")
    assert "\n" not in str(error.value)


def test_another_size_than_is_read_is_refused():
    steps.check("crop=5x7", (5, 7))
    steps.check("pil_box", (5, 7))
    with pytest.raises(UserError, match="makes pictures of 5 x 7, but they are read at 7 x 7"):
        steps.to_size(np.zeros((9, 9, 3), np.uint8), 7, "crop=5x7")


@pytest.mark.parametrize("shape", [(3, 60), (60, 3), (60, 47), (61, 1)])
def test_large_pictures_in_parts_are_the_same(shape, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    cut, padded = "shortest=16 kernel=bicubic crop=16x15", "pad=9,200,3 shortest=16 kernel=lanczos"
    whole = [steps.to_size(pixels, s, t) for s, t in (((16, 15), cut), (16, padded))]
    monkeypatch.setattr(steps, "MOST", 100)
    parts = [steps.to_size(pixels, s, t) for s, t in (((16, 15), cut), (16, padded))]
    for part, one in zip(parts, whole, strict=True):  # a float says where pixels begin
        assert np.abs(part.astype(int) - one).max() <= 1 and one.std() > 5


@pytest.mark.parametrize("shape", [(60_000, 1), (1, 60_000)])
def test_a_line_takes_little_room(shape):
    pixels = np.full((*shape, 3), 90, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for text in (
        "shortest=336 kernel=bicubic crop=336x336",
        "pad=90,90,90 shortest=336 kernel=box",
    ):
        assert (steps.to_size(pixels, 336, text) == 90).all()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1_200_000  # kB; 20 GB and 10 GB if all were made
