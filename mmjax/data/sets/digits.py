"""scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, read from the package itself.

The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998).
"""

import io
from collections.abc import Iterator
from functools import partial

import numpy as np
import PIL.Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mmjax.batch import Image, Text
from mmjax.data.record import Item, Record

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DEEPEST = 16  # the value of a pixel all ink, in scikit-learn's arrays
HELD_OUT = 180  # pictures in validation, and in test


def items() -> Iterator[Item]:
    """The digits in scikit-learn's order, white on black; 1,437 train, 180 validation, 180 test.

    Each split has every digit in the same share. Pictures are grey PNG of 8 x 8; a caption is "the
    digit seven", `facts["label"]` is 7.
    """
    pixels, labels = load_digits(return_X_y=True)
    number = np.arange(len(labels))
    train, held = train_test_split(number, test_size=2 * HELD_OUT, stratify=labels, random_state=0)
    _, test = train_test_split(held, test_size=HELD_OUT, stratify=labels[held], random_state=0)
    split = np.full(len(labels), "validation", dtype=object)
    split[train], split[test] = "train", "test"
    for i, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        yield Item(f"digits:{i}", partial(_record, f"digits:{i}", picture, int(label)), split[i])


def _record(id: str, pixels: np.ndarray, label: int) -> Record:
    """pixels: [64] float, 0 to DEEPEST."""
    grey = np.round(pixels.reshape(8, 8) * (255 / DEEPEST)).astype(np.uint8)
    png = io.BytesIO()
    PIL.Image.fromarray(grey).save(png, "PNG")
    document = (Text(f"the digit {WORDS[label]}"), Image(png.getvalue()))
    return Record(id, document, {"concept": id, "label": label})
