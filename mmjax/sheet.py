"""Contact sheets: pictures side by side with what is said about them, as one PNG."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.PngImagePlugin

from mmjax import paths
from mmjax.lettering import wrapped, write

SIDE = 96  # pixels a picture takes on the sheet
LINE = 14
SMALL, LARGE = 11, 15  # of letters, in pixels
MADE_BY = "mmjax contact sheet"  # as the PNG says


class Cell(NamedTuple):
    """Pictures shown side by side, and the lines of text below them."""

    pictures: Sequence[PIL.Image.Image | np.ndarray]
    lines: Sequence[str]


def sheet(cells: Sequence[Cell], path: str | Path, title: str, columns: int = 0) -> None:
    """Writes cells as a grid to a PNG; pictures are enlarged without smoothing."""
    across = max(len(c.pictures) for c in cells)
    side = SIDE if across else 0  # texts alone take no room for pictures, but wider lines
    wide = (across * (SIDE + 4) if across else 3 * SIDE) + 12
    columns = columns or max(1, min(len(cells), 1200 // wide))
    texts = [[w for line in c.lines for w in wrapped(line, wide - 12, SMALL)] for c in cells]
    high = side + 8 + LINE * max(len(t) for t in texts) + 6
    rows = -(-len(cells) // columns)
    page = PIL.Image.new("RGB", (columns * wide + 12, rows * high + 34), "white")
    pen = PIL.ImageDraw.Draw(page)
    write(pen, (12, 22), title, LARGE, "black")
    for number, (cell, text) in enumerate(zip(cells, texts, strict=True)):
        left, top = 12 + number % columns * wide, 34 + number // columns * high
        for k, picture in enumerate(cell.pictures):
            if isinstance(picture, np.ndarray):
                picture = PIL.Image.fromarray(picture)
            x = left + k * (SIDE + 4)
            page.paste(fitted(picture), (x, top))
            pen.rectangle((x - 1, top - 1, x + SIDE, top + SIDE), outline=(200, 200, 200))
        for k, line in enumerate(text):
            write(pen, (left, top + side + 16 + k * LINE), line, SMALL, (30, 30, 30))
    file, whole = paths.of(path), io.BytesIO()
    paths.make(file.parent)
    told = PIL.PngImagePlugin.PngInfo()
    told.add_text("Software", MADE_BY)
    form = PIL.Image.registered_extensions().get(file.suffix.lower(), "PNG")
    page.save(whole, form, pnginfo=told)  # other formats than PNG leave it out
    file.write_bytes(whole.getvalue())


def is_sheet(path: str | Path) -> bool:
    """Whether a file is a contact sheet that `sheet` wrote."""
    try:
        with paths.of(path).open("rb") as file, PIL.Image.open(file) as found:
            return found.info.get("Software") == MADE_BY
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return False


def fitted(picture: PIL.Image.Image) -> PIL.Image.Image:
    """A picture of any shape in the middle of a white square of SIDE pixels, at its own aspect."""
    width, height = (max(1, round(SIDE * x / max(picture.size))) for x in picture.size)
    square = PIL.Image.new("RGB", (SIDE, SIDE), "white")
    corner = (SIDE - width) // 2, (SIDE - height) // 2
    square.paste(picture.resize((width, height), PIL.Image.Resampling.NEAREST), corner)
    return square
