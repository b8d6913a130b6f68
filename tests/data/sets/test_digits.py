"""scikit-learn's digits as records."""

import collections
import io

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from mmjax.batch import Image, Text
from mmjax.data.record import pack, unpack
from mmjax.data.sets import digits


@pytest.fixture(scope="module")
def read():
    return [(item.split, item.read()) for item in digits.items()]


def test_pictures_are_the_digits(read):
    real = load_digits()
    assert len(read) == len(real.images) == 1797
    for (_, record), image, label in zip(read, real.images, real.target, strict=True):
        text, picture = record.document
        assert isinstance(text, Text) and isinstance(picture, Image)
        assert text.text == f"the digit {digits.WORDS[label]}" and record.facts["label"] == label
        with PIL.Image.open(io.BytesIO(picture.data)) as opened:
            assert (opened.format, opened.mode, opened.size) == ("PNG", "L", (8, 8))
            grey = np.asarray(opened)
        np.testing.assert_allclose(grey, image * 255 / 16, atol=0.51)
    assert grey.max() > 200  # not left at 0 ... 16
    assert unpack(pack(record)) == record


def test_splits_hold_every_digit_in_the_same_share(read):
    count = collections.Counter(split for split, _ in read)
    assert count == {"train": 1437, "validation": 180, "test": 180}
    labels = collections.Counter((split, record.facts["label"]) for split, record in read)
    whole = collections.Counter(record.facts["label"] for _, record in read)
    for (split, label), n in labels.items():
        assert abs(n - whole[label] * count[split] / len(read)) <= 1.5
    assert len({record.id for _, record in read}) == len(read)
    assert all(record.facts["concept"] == record.id for _, record in read)


def test_the_same_every_time(read):
    assert [(item.split, item.read()) for item in digits.items()] == read
    # Not in blocks: neighbours come into different splits.
    assert len({split for split, _ in read[:60]}) == 3
