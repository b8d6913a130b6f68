"""Real pictures for the tests of formats, and what becomes of items."""

import io

import numpy as np
import PIL.Image


def picture(seed: int = 0, form: str = "png", size: int = 16) -> bytes:
    """Noise, which does not compress: a cut file lacks pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def outcome(items):
    """Items -> (records by source, reasons by source), read in order as the builder does."""
    records, reasons = {}, {}
    for item in items:
        if item.ignored:
            continue
        assert item.source not in {**records, **reasons}, "a source comes twice"
        try:
            records[item.source] = item.read()
        except (OSError, ValueError, KeyError) as error:
            reasons[item.source] = str(error)
    return records, reasons
