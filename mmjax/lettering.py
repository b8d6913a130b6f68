"""Lines of any script on an image: a font for each letter, right-to-left order, breaks by width.

The fonts come from packages (Noto, OFL): one for Latin is in Pillow, and each letter is set in the
first that shows it.
"""

import functools
import importlib.util
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import PIL.ImageDraw
import PIL.ImageFont

PACKAGES = ("manimgx_fonts", "manimgx_fonts_cjk")
ENDINGS = (".ttf", ".otf", ".ttc")
LAST = "Emoji"  # this font of a package goes behind its others, whose digits and signs are plainer
REGULAR = 400  # weight of fonts that have any
BLANK = "\U0010ffff"  # no letter: what a font draws in place of those that it lacks
# What belongs to the letter before it: marks, joiners, variants, skin tones.
_JOINED = re.compile("[\u200c\u200d\ufe00-\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]")
# Scripts without spaces between words, whose lines end behind any letter.
_ANYWHERE = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\uff00-\uff60\U0001f000-\U0001faff\U00020000-\U0003ffff]"
)


class Run(NamedTuple):
    """Letters that are drawn at once. font: its number. right: whether they run to the left."""

    text: str
    font: int
    right: bool


@functools.cache
def _files() -> list[Path]:
    """The fonts behind Pillow's own; a package that is absent has none."""
    found: list[Path] = []
    for package in PACKAGES:
        known = importlib.util.find_spec(package)
        places = known.submodule_search_locations if known else None
        files = [f for place in places or () for f in Path(place).iterdir()]
        fonts = [
            f for f in files if f.suffix in (".ttf", ".otf", ".ttc") and "Italic" not in f.name
        ]
        found += sorted(fonts, key=lambda f: (LAST in f.name, "NotoSans[" not in f.name, f.name))
    return found


def _pictorial() -> list[int]:
    return [number for number, file in enumerate(_files(), 1) if LAST in file.name]


@functools.cache
def _font(number: int, size: int) -> PIL.ImageFont.FreeTypeFont:
    if number == 0:
        return PIL.ImageFont.load_default(size)  # type: ignore[return-value]
    font = PIL.ImageFont.truetype(str(_files()[number - 1]), size)
    try:
        axes = font.get_variation_axes()
    except OSError:  # it has one weight
        return font
    names = [str(axis["name"]) for axis in axes]
    values = [REGULAR if "eight" in n else a["default"] for n, a in zip(names, axes, strict=True)]
    font.set_variation_by_axes(values)  # type: ignore[arg-type]
    return font


@functools.cache
def _shows(number: int, letter: str) -> bool:
    font = _font(number, 16)
    drawn, blank = (font.getmask(x, mode="L", anchor="ls") for x in (letter, BLANK))
    return drawn.size != blank.size or bytes(drawn) != bytes(blank)


@functools.cache
def _font_of(cluster: str) -> int:
    """The first font that shows a letter with its marks, or at least the letter; 0 if none does."""
    plain = [x for x in cluster if not _JOINED.match(x) and not x.isspace()]
    for wanted in (plain, plain[:1]):
        for number in range(len(_files()) + 1):
            if all(_shows(number, x) for x in wanted):
                return number
    return 0


def clusters(text: str) -> list[str]:
    """Letters with the marks, joiners and skin tones that belong to them."""
    found: list[str] = []
    for x in text:
        mark = unicodedata.combining(x) or unicodedata.category(x) in ("Mn", "Mc", "Me")
        before = found[-1] if found else ""
        flag = _FLAG.match(x) and _FLAG.fullmatch(before)
        if before and (mark or _JOINED.match(x) or before.endswith("\u200d") or flag):
            found[-1] += x
        else:
            found.append(x)
    return found


def _is_right(cluster: str) -> bool | None:
    """Whether a letter runs to the left; None for those that run as the others do."""
    kind = unicodedata.bidirectional(cluster[0])
    return True if kind in ("R", "AL") else False if kind in ("L", "EN", "AN") else None


def runs(text: str) -> list[Run]:
    """A line's runs from left to right, as they are seen.

    The first letter that has a direction gives the line's; of the Unicode algorithm's embeddings
    there are two levels: words of one direction within a line of the other.
    """
    letters = clusters(text)
    kinds = [_is_right(letter) for letter in letters]
    line = next((kind for kind in kinds if kind is not None), False)
    # What has none takes that of its neighbours where they agree, else the line's.
    ahead = [*kinds]
    for n in range(len(kinds) - 2, -1, -1):
        ahead[n] = ahead[n + 1] if ahead[n] is None else ahead[n]
    before, ways = line, []
    for kind, after in zip(kinds, ahead, strict=True):
        if kind is None:
            kind = before if before == (line if after is None else after) else line
        ways.append(kind)
        before = kind
    found: list[Run] = []
    for letter, right in zip(letters, ways, strict=True):
        last = found[-1] if found else None
        # A space is the font's of what stands before it, but those between emoji are too wide.
        kept = last is not None and letter.isspace() and last.font not in _pictorial()
        font = last.font if last is not None and kept else _font_of(letter)
        if last and (last.font, last.right) == (font, right):
            found[-1] = last._replace(text=last.text + letter)
        else:
            found.append(Run(letter, font, right))
    return list(_seen(found, bool(line)))


def _seen(found: list[Run], line: bool) -> Iterator[Run]:
    """Runs in the order they are read -> from left to right."""
    groups: list[list[Run]] = []
    for run in found:
        if groups and groups[-1][0].right == run.right:
            groups[-1].append(run)
        else:
            groups.append([run])
    for group in groups[::-1] if line else groups:
        yield from group[::-1] if group[0].right else group


def _drawn(run: Run, size: int) -> tuple[PIL.ImageFont.FreeTypeFont, str, str | None]:
    """A run's font, text and direction for Pillow, which needs Raqm to shape and order letters."""
    font = _font(run.font, size)
    if font.layout_engine == PIL.ImageFont.Layout.RAQM:
        return font, run.text, "rtl" if run.right else "ltr"
    return font, run.text[:: -1 if run.right else 1], None


def width(text: str, size: int) -> float:
    """Pixels that a line takes."""
    total = 0.0
    for run in runs(text):
        font, letters, way = _drawn(run, size)
        total += font.getlength(letters, direction=way)
    return total


def wrapped(text: str, most: float, size: int) -> list[str]:
    """Lines of at most `most` pixels, broken at white space, or within a word that is longer.

    A line holds one letter at least; no text gives one empty line.
    """
    lines, line = [], ""
    for word in _words(" ".join(text.split())):
        if width((line + word).rstrip(), size) <= most:
            line += word
            continue
        if line.strip():
            lines.append(line.rstrip())
        line = word.lstrip()
        while width(line.rstrip(), size) > most and len(pieces := clusters(line)) > 1:
            count = next(n for n in range(len(pieces), 0, -1)
                         if n == 1 or width("".join(pieces[:n]), size) <= most)  # fmt: skip
            lines.append("".join(pieces[:count]))
            line = "".join(pieces[count:])
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _words(text: str) -> list[str]:
    """Pieces between which a line may end; they join to the text."""
    found: list[str] = []
    for letter in clusters(text):
        alone = _ANYWHERE.match(letter) or (found and _ANYWHERE.match(found[-1][-1]))
        if not found or alone or letter == " ":
            found.append(letter)
        else:
            found[-1] += letter
    return found


def write(
    pen: PIL.ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, fill
) -> None:
    """Draws a line whose letters stand on the height at[1], from at[0] on to the right."""
    x, y = at
    for run in runs(text):
        font, letters, way = _drawn(run, size)
        pen.text((x, y), letters, fill, font, anchor="ls", direction=way)
        x += font.getlength(letters, direction=way)
