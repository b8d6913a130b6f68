"""Contact sheets: what is shown of a picture."""

import numpy as np
import PIL.Image
import pytest

from mmjax.sheet import SIDE, Cell, sheet


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16), (16, 4), (1, 500)])
def test_a_picture_keeps_its_aspect_and_all_of_it_is_seen(tmp_path, height, width):
    red = np.zeros((height, width, 3), np.uint8)
    red[..., 0] = np.linspace(200, 250, width).astype(np.uint8)
    sheet([Cell([red], ["red"])], tmp_path / "sheet.png", "one")
    with PIL.Image.open(tmp_path / "sheet.png") as page:
        seen = np.argwhere((np.asarray(page)[..., 0] > 190) & (np.asarray(page)[..., 1] == 0))
        tall, broad = np.ptp(seen, axis=0) + 1
        row, left, right = seen[0, 0], seen[:, 1].min(), seen[:, 1].max()
        ends = [page.getpixel((int(x), int(row)))[0] for x in (left, right)]
    assert max(tall, broad) == SIDE
    assert abs(tall - SIDE * height / max(height, width)) <= 1
    assert abs(broad - SIDE * width / max(height, width)) <= 1
    assert abs(ends[0] - 200) < 9 and abs(ends[1] - 250) < 9
