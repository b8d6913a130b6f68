"""Edits of scenes: one thing changes, all else stays, and the words say which."""

from collections import Counter

import numpy as np
import pytest

from mmjax.batch import Image, Text
from mmjax.data.scenes.draw import png
from mmjax.data.scenes.edit import KINDS, edit
from mmjax.data.scenes.items import items
from mmjax.data.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing, held_pairs, sample

ALL = [(s, c) for s in SHAPES for c in COLOURS]


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    some = [sample(rng, range(1, 6), ALL, 0.0) for _ in range(400)]
    return [(scene, *edit(scene, rng, ALL)) for scene in some]


def test_the_words_say_what_changed_and_all_else_stays(drawn):
    for scene, kind, words, after in drawn:
        lost = Counter(scene.things) - Counter(after.things)
        new = Counter(after.things) - Counter(scene.things)
        if kind == "ground":
            assert words == f"on a {after.background} background"
            assert after.background != scene.background and not lost and not new
            continue
        assert after.background == scene.background and lost.total() == 1
        (gone,) = lost
        name = f"the {gone.colour} {gone.shape}"
        assert sum((t.shape, t.colour) == (gone.shape, gone.colour) for t in scene.things) == 1
        if kind == "remove":
            assert words == f"remove {name}" and not new and after.things
        else:
            (painted,) = new
            assert words == f"paint {name} {painted.colour}" and painted.colour != gone.colour
            at = scene.things.index(gone)
            assert after.things[at] == painted
            same = (painted.shape, painted.size, painted.x, painted.y)
            assert same == (gone.shape, gone.size, gone.x, gone.y)


def test_every_kind_is_as_frequent_where_it_is_possible(drawn):
    several = [kind for scene, kind, _, _ in drawn if len(set(scene.things)) > 1]
    found = Counter(several)
    assert set(found) == set(KINDS) and min(found.values()) > len(several) / 4.5
    alone = {kind for scene, kind, _, _ in drawn if len(scene.things) == 1}
    assert alone == {"paint", "ground"}
    assert {after.background for _, kind, _, after in drawn if kind == "ground"} == set(BACKGROUNDS)


def test_painting_brings_about_no_pair_that_is_kept_back():
    thing = Thing("star", "red", "small", 0.5, 0.5)
    rng = np.random.default_rng(0)
    scene = Scene((thing,), "white")
    only = [edit(scene, rng, [("star", "blue"), ("ring", "green")]) for _ in range(40)]
    assert {words for _, words, _ in only if words.startswith("p")} == {"paint the red star blue"}
    twins = Scene((thing, Thing("star", "red", "large", 0.2, 0.2)), "white")
    assert {edit(twins, rng, ALL)[0] for _ in range(40)} == {"ground"}  # which one would be open


def test_documents_are_picture_words_picture_and_splits_keep_their_pairs():
    held, plain = held_pairs(0), {item.source: item.read() for item in items(300, size=16)}
    splits = Counter()
    for item in items(300, size=16, edits=True):
        record = item.read()
        first, words, last = record.document
        assert isinstance(words, Text) and isinstance(first, Image) and isinstance(last, Image)
        assert first.data == plain[item.source].images[0] != last.data  # the same scenes
        facts = record.facts
        things = [Thing(**{k: v for k, v in o.items() if k != "box"}) for o in facts["objects"]]
        assert png(Scene(tuple(things), facts["background"]), 16) == last.data
        assert facts["edit"] in KINDS
        if item.split == "train":
            assert not {(t.shape, t.colour) for t in things} & held
        splits[item.split] += 1
    assert splits["train"] > 200 and splits["compositional"]
