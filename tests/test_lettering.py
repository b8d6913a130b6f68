"""Captions of any script on contact sheets: no boxes, the right order, within the margin."""

import importlib.util

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax import lettering
from mmjax.lettering import clusters, runs, width, wrapped, write
from mmjax.sheet import Cell, sheet

TEXTS = {
    "arabic": "مرحبا بالعالم",
    "hebrew": "שלום עולם",
    "hindi": "नमस्ते दुनिया",
    "bengali": "বাংলা ভাষা",
    "tamil": "தமிழ் மொழி",
    "thai": "สวัสดีชาวโลก",
    "georgian": "ქართული ენა",
    "amharic": "አማርኛ",
    "greek and russian": "Ελληνικά, Русский",
    "vietnamese": "Tiếng Việt có dấu",
    "emoji": "😀 👩🏽‍🚀 🇩🇪 ❤️ 🦝",
    "signs": "x² ≤ ∑ → ∞ € ★",
    "chinese": "猫坐在垫子上，看着窗外的鸟",
    "japanese": "こんにちは、カタカナ",
    "korean": "고양이가 본다",
}
EASTERN = ("chinese", "japanese", "korean", "signs")  # in fonts of the second package


def drawn(text: str, size: int = 24) -> np.ndarray:
    """[h, w] bool: the ink of a line."""
    page = PIL.Image.new("L", (600, 60), 255)
    write(PIL.ImageDraw.Draw(page), (20, 40), text, size, 0)
    return np.asarray(page) < 128


@pytest.mark.parametrize("name", TEXTS)
def test_no_letter_is_a_box(name):
    if name in EASTERN and importlib.util.find_spec("manimgx_fonts_cjk") is None:
        pytest.skip("manimgx-fonts-cjk is not installed")
    for cluster in clusters(TEXTS[name]):
        font = lettering._font_of(cluster)
        shown = [x for x in cluster if not lettering._JOINED.match(x) and not x.isspace()]
        assert all(lettering._shows(font, x) for x in shown), f"{cluster!r} in font {font}"
    assert drawn(TEXTS[name]).sum() > 100


def test_without_the_fonts_there_are_boxes(monkeypatch):
    """What the test above looks at can fail."""
    assert not lettering._shows(0, "م") and not lettering._shows(0, "猫")
    box = drawn(lettering.BLANK)
    monkeypatch.setattr(lettering, "_font_of", lambda cluster: 0)
    assert (drawn("猫") == box).all() and box.any()
    monkeypatch.undo()
    assert not (drawn("م") == box).all()


def test_right_to_left_is_seen_from_the_right():
    def order(text):
        return ["".join(run.text.split()) for run in runs(text) if run.text.strip()]

    assert order("אב abc גד") == ["גד", "abc", "אב"]
    assert order("one אב two") == ["one", "אב", "two"]
    assert order("the word سلام means مرحبا") == ["theword", "سلام", "means", "مرحبا"]
    assert [run.right for run in runs("אב 12")] == [False, True]
    # In one run it is Raqm that orders letters: the wide one comes first, so stands on the right.
    ink = drawn("ששששי").any(0)
    places = np.flatnonzero(ink)
    half = (places[0] + places[-1]) // 2
    turned = drawn("יששששש").any(0)
    assert ink.sum() > 20 and half < 300 and not (ink == turned).all()


def test_arabic_letters_join():
    alone = sum(width(x, 24) for x in "سلام")
    assert width("سلام", 24) < 0.95 * alone


def test_marks_joiners_and_flags_stay_with_their_letters():
    assert clusters("ae\u0301b") == ["a", "e\u0301", "b"]
    assert clusters("👩🏽‍🚀🇩🇪🇫🇷❤️") == ["👩🏽‍🚀", "🇩🇪", "🇫🇷", "❤️"]


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab iW-\u0301猫م 1😀")), st.integers(8, 90))
def test_lines_keep_all_letters_and_within_the_width(text, most):
    lines = wrapped(text, most, 11)
    assert "".join("".join(lines).split()) == "".join(text.split())
    for line in lines:
        assert width(line, 11) <= most or len(clusters(line)) == 1
    assert lines


def test_words_are_kept_whole_where_they_fit():
    lines = wrapped("a red circle above a blue square", 100, 11)
    assert " ".join(lines) == "a red circle above a blue square" and len(lines) > 1
    assert wrapped("", 100, 11) == [""] and wrapped("  ", 100, 11) == [""]


def test_a_sheet_of_them(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    texts = [*TEXTS.values(), "", "x" * 500, "\x00\x07\ud800", "a\nb\x0b\u2028c"]
    sheet([Cell([picture], [text]) for text in texts], tmp_path / "a.png", TEXTS["hindi"], 6)
    with PIL.Image.open(tmp_path / "a.png") as page:
        assert page.width == 6 * 112 + 12
