"""An error of a reader names file and record, whatever it is that fails."""

import contextlib
import dataclasses
import pickle

import numpy as np
import pytest
from test_pipeline import batches_of, settings

from mmjax.batch import Image, Text
from mmjax.config import KindConfig
from mmjax.data import pipeline, transform
from mmjax.data.build import train_tokenizer
from mmjax.data.naming import naming, one_by_one
from mmjax.data.pixels import Encoded, decode_all
from mmjax.data.record import Item, Record
from mmjax.data.sets.digits import items as digits
from mmjax.data.write import write
from mmjax.error import UserError

ROLES = {"roles": ["human", "gpt"]}


@pytest.fixture(scope="module")
def image():
    return next(iter(digits())).read().images[0]


@pytest.fixture
def one_bad(tmp_path, image):
    """Makes a set of good conversations and one record as it is given, and its configuration."""

    def make(bad, **changes):
        parts = Image(image, loss=False), Text("three")
        records = [Record(f"good {i}", parts, ROLES) for i in range(5)] + [bad]
        items = [Item(r.id, lambda r=r: r, "train") for r in records]
        write(items, tmp_path / "set", {}, {})
        train_tokenizer([tmp_path / "set"], 300).save(str(tmp_path / "set/tokenizer.json"))
        return settings(tmp_path / "set", **{"data.length": 64, "data.workers": 0} | changes)

    return make


def said(c):
    """What the first batches say."""
    with contextlib.closing(batches_of(c)) as batches, pytest.raises(UserError) as caught:
        for _ in range(20):
            next(batches)
    return str(caught.value)


PLACE = r"/set, split train, record 5 (bad one): "
WORDS = (Text("x"), Text("three"))
BAD = {
    "an answer to nothing": (Record("bad one", WORDS, {"roles": ["gpt", "human"]}), "sep",
                             "record bad one has no prompt with an answer"),
    "roles of other parts": (Record("bad one", WORDS, {"roles": ["gpt"]}), "vicuna",
                             "record bad one has 1 roles for 2 parts"),
    "another question": (Record("bad one", WORDS, {"questions": [{"ask": 1}]}), "sep",
                         "record bad one has a question that is not {question, answer}"),
    "no image": (Record("bad one", WORDS), "caption", "record bad one has no picture"),
    "a damaged image": (Record("bad one", (Image(b"x"), Text("y"))), "",
                        "a picture of 1 bytes cannot be decoded: not a picture of a known kind"),
}  # fmt: skip


@pytest.mark.parametrize("record, template, message", BAD.values(), ids=BAD)
def test_data_that_stop_training_are_named(one_bad, record, template, message):
    c = one_bad(record, **{"data.sources.openmoji.template": template})
    assert f"{PLACE}{message}" in said(c)


def test_so_are_images_whose_kind_is_asked_and_records_that_take_turns(one_bad):
    c = one_bad(Record("bad one", (Image(b"x"), Text("y"))))
    kind = KindConfig(c.image, 2 * c.image, c.patch, "image", ())
    assert f"{PLACE}a picture of 1 bytes" in said(dataclasses.replace(c, kinds={"wide": kind}))
    (name,) = c.sources
    turns = dataclasses.replace(c.sources[name], balance=True, template="vicuna")
    with pytest.raises(UserError, match=r"record 5 \(bad one\): record bad one has no prompt"):
        next(batches_of(dataclasses.replace(c, sources={name: turns})))


def test_a_fault_of_the_code_stays_one_and_says_where(one_bad, monkeypatch):
    c = one_bad(Record("bad one", WORDS))

    def stumble(c, template, record, rng):
        if record.id == "bad one":
            raise AttributeError("a fault")
        return record.document

    monkeypatch.setattr(pipeline, "to_document", stumble)
    with contextlib.closing(batches_of(c)) as batches, pytest.raises(AttributeError) as caught:
        for _ in range(20):
            next(batches)
    assert any("record 5 (bad one)" in note for note in caught.value.__notes__)


def test_of_several_the_one_that_fails_is_found():
    def function(some, places):
        if 3 in some:
            raise UserError("three")
        return sum(some)

    assert one_by_one(function, [1, 2], ["a", "b"]) == 3
    with pytest.raises(UserError, match=r"^c: three$"):
        one_by_one(function, [1, 2, 3, 4], ["a", "b", "c", "d"])
    with naming("nowhere"):
        pass


def test_what_a_worker_says_comes_through(image):
    (pixels,) = decode_all([Encoded(image, 8, "pil_box", 1, "here")])
    assert pixels.shape == (8, 8, 3) and np.ptp(pixels) > 0
    with pytest.raises(UserError) as caught:
        decode_all([Encoded(b"x", 8, "pil_box", 1, "here")])
    assert str(pickle.loads(pickle.dumps(caught.value))).startswith("here: a picture of 1 bytes")


def test_builders_refuse_what_templates_could_not_read():
    for record, template, _ in BAD.values():
        if template in ("sep", "vicuna"):
            with pytest.raises(ValueError):
                transform.check(record)
    transform.check(Record("a", WORDS, ROLES))
    transform.check(Record("a", WORDS, {"roles": ["gpt", "human"], "x": 1} | ROLES))
    transform.check(Record("a", WORDS))
