"""Which kind a picture is of, and rows of several."""

import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from tiny import tiny, tiny_config

from mmjax import config, kind, run, values
from mmjax.batch import IMAGE, TEXT, Document, Image, Text, Vocabulary
from mmjax.data import tokenizer
from mmjax.data.kinds import encoded, with_kinds
from mmjax.data.pipeline import begin_rows, plain_shape
from mmjax.data.pixels import decode_image
from mmjax.data.resize import RESIZE
from mmjax.error import UserError
from mmjax.kind import KindConfig

PLAIN = tiny().data
KINDS = {
    "wide": KindConfig(8, 16, PLAIN.patch),
    "depth": KindConfig(4, 4, 4, "", ("openmoji",)),
}
DATA = dataclasses.replace(PLAIN, kinds=KINDS)


def png(height: int, width: int, value: int = 9) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def kinds(document: Document, source=None, c=DATA):
    return [p.kind for p in with_kinds(c, document, source) if isinstance(p, Image)]


def test_a_picture_takes_the_kind_of_its_aspect_or_its_source():
    both = [Text("a"), Image(png(30, 31)), Image(png(20, 60)), Image(png(60, 20))]
    assert kinds(both, "other") == [0, 1, 0]
    assert kinds(both, "openmoji") == [2, 2, 2]
    assert kinds(both, c=PLAIN) == [0, 0, 0]


def test_positions_are_of_their_pictures_modality():
    """Another shape is no other modality; the second of its own is one more."""
    assert kind.modalities([]) == (IMAGE,)
    assert kind.modalities(["image", "", "image", ""]) == (IMAGE, IMAGE, 2, IMAGE, 3)
    tokens = tokenizer.train(["a picture"] * 3, 300)
    document = [Text("a"), Image(png(20, 60)), Image(png(30, 31), of="depth"), Text("b")]
    at = with_kinds(DATA, document), tokens, Vocabulary(300), DATA.counts, False
    piece = tokenizer.lay_out(*at)
    found = {(int(i), int(m)) for i, m in zip(piece["image"], piece["modality"], strict=True)}
    assert found == {(0, TEXT), (1, IMAGE), (2, 2)}


def test_rows_hold_each_picture_in_its_shape():
    shape = plain_shape(DATA, 4, 3)
    nothing = {n: np.zeros(4, np.int32) for n in ("tokens", "modality", "image", "position")}
    pictures = [Image(png(8, 8, 5)), Image(png(8, 16, 6), kind=1), Image(png(9, 9, 7), kind=2)]
    piece = nothing | {
        "weight": np.zeros(4, np.float32),
        "pictures": [encoded(DATA, p) for p in pictures],
        "kinds": [p.kind for p in pictures],
    }
    batch = begin_rows(shape, Vocabulary(32), [[piece]])()
    assert batch.pixels.shape == (1, 3, 8, 16, 3) and batch.kind.tolist() == [[0, 1, 2]]
    assert [(x > 0).any(-1).sum() for x in batch.pixels[0]] == [64, 128, 16]
    assert (batch.pixels[0, 2, :4, :4] == 7).all()
    assert plain_shape(PLAIN, 4, 3).canvas is None


@pytest.mark.parametrize("resize", [m for m in RESIZE if not m.endswith(("_pad", "_stretch"))])
def test_the_centre_is_kept_at_the_aspect_that_is_wanted(resize):
    """Of 20 x 60 pixels 8 x 16 shows columns 10 to 50, and 16 x 8 columns 25 to 35."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 10:50], pixels[:, 25:35] = 100, 200
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    wide, tall = (decode_image(out.getvalue(), size, resize) for size in ((8, 16), (16, 8)))
    assert wide.shape == (8, 16, 3) and tall.shape == (16, 8, 3)
    assert wide[:, 1:5].min() > 80 and wide[:, 7:9].min() > 180 and wide[:, 1:4].max() < 120
    assert tall[:, 1:7].min() > 180
    assert (decode_image(out.getvalue(), 8, resize)[:, :2] < 120).all()  # a square has more


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (KindConfig(9, 8, 2), "must divide"),
        (KindConfig(8, 8, 8), "whose weights"),
        (KindConfig(8, 8, 4, ""), "no sources"),
        (KindConfig(8, 8, PLAIN.patch, "b"), "like='b'"),
        (KindConfig(8, 8, PLAIN.patch, "image", ("nothing",)), "nothing"),
        (KindConfig(80, 80, PLAIN.patch), "data.length"),
    ],
)
def test_kinds_that_cannot_be_are_refused(found, word):
    with pytest.raises(UserError, match=word):
        dataclasses.replace(PLAIN, kinds={"a": found})


def test_data_and_model_must_agree():
    model = SimpleNamespace(kinds={"wide": 0}, resolved=(0, KindConfig(8, 16, PLAIN.patch)))
    data = dataclasses.replace(PLAIN, kinds={"wide": KINDS["wide"]})
    kind.check_agree("transfusion", model, data)
    with pytest.raises(UserError, match="height"):
        other = dataclasses.replace(PLAIN, kinds={"wide": KindConfig(4, 16, PLAIN.patch)})
        kind.check_agree("transfusion", model, other)
    with pytest.raises(UserError, match="same in one order"):
        kind.check_agree("transfusion", model, PLAIN)
    with pytest.raises(UserError, match="no kinds"):
        kind.check_agree("oneflow", SimpleNamespace(), data)


def test_there_are_no_more_towers_than_modalities():
    def model(towers: int):
        found = tuple(KindConfig(k.height, k.width, k.patch, k.like) for k in KINDS.values())
        decoder = SimpleNamespace(towers=towers)
        return SimpleNamespace(kinds=KINDS, resolved=(0, *found), decoder=decoder)

    kind.check_agree("transfusion", model(3), DATA)
    with pytest.raises(UserError, match="towers=4, but there are 3 modalities; give at most 3"):
        kind.check_agree("transfusion", model(4), DATA)
    with pytest.raises(UserError, match="towers=3, but there are 2 modalities"):
        kind.check_agree("chameleon", SimpleNamespace(decoder=SimpleNamespace(towers=3)), PLAIN)


def test_kinds_are_stored_where_there_are_some():
    c = tiny_config()
    c.data.kinds = {"wide": {"height": 8, "width": 16, "patch": c.data.patch}}
    c.model.kinds = {"wide": {"height": 8, "width": 16}}
    e = config.resolve(c, run.families())
    assert config.resolve(json.loads(values.to_json(e)), run.families()) == e
    plain = values.to_dict(tiny())
    assert values.to_dict(e)["data"]["kinds"] == {
        "wide": {"height": 8, "width": 16, "patch": c.data.patch}
    }
    assert "kinds" not in plain["data"] and "kinds" not in plain["model"]
    found = values.difference(plain, values.to_dict(e))
    assert [line.partition(":")[0] for line in found] == ["data.kinds", "model.kinds"]
