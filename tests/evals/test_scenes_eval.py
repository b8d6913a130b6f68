"""Evaluation on scenes: captions read back, what they say held against the truth, baselines."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mmjax.data.scenes import draw, oracle, say
from mmjax.data.scenes.items import items
from mmjax.data.scenes.scene import COLOURS, MOST, SHAPES, Scene, Thing, sample
from mmjax.evals import heldout
from mmjax.evals import scenes as evals
from mmjax.evals.scenes import nearest_pictures, nearest_words, placed, said

PAIRS = [(s, c) for s in SHAPES for c in COLOURS]


def drawn(count: int, seed: int = 3) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample(rng, range(1, MOST + 1), PAIRS, 0.0) for _ in range(count)]


SCENES = drawn(300)
TWO = (
    Thing("circle", "red", "small", 0.2, 0.5),
    Thing("star", "orange", "large", 0.7, 0.55),
)
CAPTION = "a small red circle and a large orange star to the right of it, on a grey background"


def told(scene: Scene, level: int) -> list[say.Told]:
    """What a caption of a scene says, from the scene."""
    before = [None, *scene.things[:-1]]
    return [
        say.Told(
            t.shape,
            t.colour,
            t.size if level == 3 else "",
            say.relation(t, b) if level == 3 and b is not None else None,
        )
        for b, t in zip(before, scene.things, strict=True)
    ]


@pytest.mark.parametrize("level", [2, 3])
def test_a_caption_is_read_as_what_it_was_written_from(level):
    for scene in SCENES:
        assert say.read(say.caption(scene, level)) == told(scene, level)
    assert {len(s.things) for s in SCENES} == {1, 2, 3, 4, 5}
    assert {s.background for s in SCENES} == {"white", "grey", "black", "fading"}
    sides = {one.where for s in SCENES for one in told(s, 3)}
    assert sides == {None, *say.SIDES}
    assert say.read(say.caption(SCENES[0], level)) != told(SCENES[1], level)


def test_what_is_no_caption_is_not_read():
    assert say.read(CAPTION) == told(Scene(TWO, "grey"), 3)
    assert say.read(f"  {CAPTION} ") == told(Scene(TWO, "grey"), 3)  # spaces around do no harm
    for text in (
        "",
        "two shapes",
        "a red",
        "red circle",
        "a red circle and",
        "a red circle and a dog",
        "a crimson circle",
        "a huge red circle",
        "a circle red",
        "a red circle a blue star",
        "a red circle, on the moon",
        "a red circle behind it",
        CAPTION.replace("circle", "circles"),
        CAPTION + " and more",
        "what colour is the circle?",
    ):
        assert say.read(text) is None, text


def test_true_captions_are_right_in_all_they_say():
    for scene in SCENES:
        for level in (2, 3):
            found = said(say.caption(scene, level), scene.things)
            assert found == {"pairs": True, "objects": True, "all": True}, scene


def test_captions_of_other_scenes_are_wrong():
    right = 0
    for scene, other in itertools.pairwise(SCENES):
        found = said(say.caption(other, 3), scene.things)
        same = sorted((t.colour, t.shape) for t in scene.things) == sorted(
            (t.colour, t.shape) for t in other.things
        )
        assert found["pairs"] == same
        right += found["pairs"] + found["objects"] + found["all"]
    assert right < 10
    nothing = {"pairs": False, "objects": False, "all": False}
    assert said("a dog", TWO) == said("", TWO) == said("two shapes", TWO) == nothing


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (("right", "left"), (True, True, False)),
        (("to the right of", "above"), (True, True, False)),
        (("to the right of", "below"), (True, True, True)),  # by its centre it is
        (("large", "medium"), (True, False, False)),
        (("orange", "yellow"), (False, False, False)),
        (("star", "ring"), (False, False, False)),
        (("a small red circle and ", ""), (False, False, False)),
        ((" to the right of it", ""), (True, True, True)),  # says less, and that is true
        (("grey", "black"), (True, True, True)),  # the background is not asked for
    ],
)
def test_each_false_word_is_counted_where_it_belongs(change, want):
    assert said(CAPTION, TWO) == {"pairs": True, "objects": True, "all": True}
    found = said(CAPTION.replace(*change), TWO)
    assert tuple(found[name] for name in ("pairs", "objects", "all")) == want


def test_a_swapped_relation_is_seen_in_any_scene():
    opposite = {"to the left of": "to the right of", "above": "below"}
    opposite |= {b: a for a, b in opposite.items()}
    seen = set()
    for scene in SCENES:
        names = [(t.colour, t.shape) for t in scene.things]
        if len(set(names)) < len(names):
            continue
        ones = told(scene, 3)
        for i, one in enumerate(ones):
            if one.where:
                turned = [*ones[:i], one._replace(where=opposite[one.where]), *ones[i + 1 :]]
                assert placed(ones, scene.things) and not placed(turned, scene.things)
                seen.add(one.where)
                text = say.caption(scene, 3)
                if len(scene.things) == 2:
                    swapped = said(text.replace(one.where, opposite[one.where]), scene.things)
                    assert swapped == {"pairs": True, "objects": True, "all": False}
    assert seen == set(say.SIDES)


def test_a_relation_holds_if_any_objects_of_those_names_stand_so():
    twins = (*TWO, Thing("circle", "red", "medium", 0.9, 0.1))
    text = "a small red circle and a large orange star to the {} of it and a medium red circle"
    assert said(text.format("right"), twins)["all"]
    assert said(text.format("left"), twins)["all"]  # of the other red circle
    assert not said(text.format("left"), (*TWO, replace(twins[2], x=0.3)))["all"]
    # A thing does not stand beside itself.
    one = "a small red circle and a medium red circle to the left of it"
    assert not said(one, (TWO[0], replace(TWO[0], size="medium")))["all"]


def seen_as(*things: Thing) -> list[oracle.Found]:
    return [oracle.Found(t, 1.0) for t in things]


def test_only_told_relations_are_asked_of_drawings():
    """a, b and c in a row; captions tell b of a and c of b, but not c of a."""
    a = Thing("circle", "red", "small", 0.5, 0.2)
    b = Thing("star", "blue", "small", 0.5, 0.5)  # below a
    c = Thing("ring", "green", "small", 0.9, 0.45)  # right of b; right of a, too
    caption = say.caption(Scene((a, b, c), "white"), 3)
    assert say.relation(b, a) == "below" and say.relation(c, b) == "to the right of"
    assert say.relation(c, a) == "to the right of"
    # c moves left of a, but stays right of b: only the untold relation breaks.
    moved = replace(a, x=0.8), replace(b, x=0.4), replace(c, x=0.6)
    assert not oracle.agreement((a, b, c), seen_as(*moved))["relations"]
    assert evals.shows(drawing(*moved), caption)["all"]
    # A told one breaks: then neither holds.
    for broken in ((a, replace(b, y=0.1, x=0.8), c), (a, b, replace(c, x=0.1))):
        found = evals.shows(drawing(*broken), caption)
        assert found == dict.fromkeys(found, True) | {"relations": False, "all": False}
        assert not oracle.agreement((a, b, c), seen_as(*broken))["relations"]
    missing = evals.shows(drawing(a, b), caption)
    assert not missing["relations"] and not missing["count"]


def drawing(*things: Thing, background="white") -> np.ndarray:
    return draw.picture(Scene(things, background), 64)


def test_a_drawing_is_judged_by_what_its_caption_tells():
    small, large = (replace(t, x=0.3 + 0.4 * i) for i, t in enumerate(TWO))
    right, wrong = Scene((small, large), "grey"), (replace(small, size="medium"), large)
    full, short = (say.caption(right, level) for level in (3, 2))
    assert evals.shows(drawing(*right.things, background="grey"), full)["all"]
    for things, background, what in (
        (right.things, "black", "background"),
        (right.things, "fading", "background"),
        (wrong, "grey", "objects"),
        ((replace(small, x=0.7), replace(large, x=0.3)), "grey", "relations"),
    ):
        found = evals.shows(drawing(*things, background=background), full)
        assert found == dict.fromkeys(found, True) | {what: False, "all": False}
        # Level 2 tells neither sizes nor places nor what is behind.
        assert evals.shows(drawing(*things, background=background), short)["all"]
    assert not evals.shows(drawing(small, background="grey"), short)["all"]
    assert say.ground(full) == "grey" and say.ground(short) is None


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_oracle_knows_backgrounds(size):
    for scene in SCENES[:60]:
        picture = draw.picture(scene, size).astype(np.float32)
        rough = picture + np.random.default_rng(0).normal(0, 12, picture.shape)
        for shown in (picture, rough.clip(0, 255)):
            assert oracle.ground(shown.astype(np.uint8)) == scene.background
    assert oracle.ground(np.full((size, size, 3), 110, np.uint8)) == ""


def test_agreement_with_the_truth_itself_and_with_another_scene():
    for scene, other in itertools.pairwise(SCENES[:100]):
        # Of twins neither is meant by a relation, so the scene itself always agrees.
        whole = oracle.agreement(scene.things, seen_as(*scene.things))
        assert all(whole.values())
        assert whole == oracle.agreement(scene.things, seen_as(*scene.things[::-1]))
        assert not oracle.agreement(scene.things, seen_as(*other.things))["all"]


def test_a_drawn_scene_shows_what_its_facts_say():
    records = [item.read() for item in items(count=12, level=3)]
    scenes = [Scene(tuple(evals.things(r.facts)), r.facts["background"]) for r in records]
    pixels = [draw.picture(scene, 64) for scene in scenes]
    rows = evals.table(pixels, records)
    assert set(rows) == {
        "count", "colours", "shapes", "pairs", "objects", "relations", "background", "all",
        *(f"all_of_{n}" for n in {len(scene.things) for scene in scenes}),
    }  # fmt: skip
    assert sum(rows["all"]) >= 10 and len(rows["all"]) == 12
    rolled = evals.table(pixels[1:] + pixels[:1], records)
    assert sum(rolled["all"]) <= 1
    for record in records:
        assert said(record.caption, evals.things(record.facts))["all"]
    assert evals.things(records[0].facts)[0].x == records[0].facts["objects"][0]["x"]


def test_relations_are_of_the_captions_that_tell_one_and_all_is_told_by_number():
    """Two drawings of two objects, one of them wrongly placed, and two of one, one wrong."""
    apart = tuple(replace(t, x=0.3 + 0.4 * i) for i, t in enumerate(TWO))
    both, single = Scene(apart, "grey"), Scene(apart[:1], "grey")
    turned = (replace(apart[0], x=0.7), replace(apart[1], x=0.3))
    pictures = [drawing(*t, background="grey") for t in (apart, turned, apart[:1], apart[1:])]
    scenes = both, both, single, single
    rows = evals.table(pictures, [heldout.Pair(say.caption(s, 3), b"") for s in scenes])
    assert rows["relations"] == [True, False] and rows["all"] == [True, False, True, False]
    assert rows["all_of_2"] == [True, False] and rows["all_of_1"] == [True, False]
    assert rows["count"] == [True] * 4


def test_nearest_words_finds_the_same_caption():
    captions = list(dict.fromkeys(say.caption(s, 3) for s in SCENES))
    order = np.random.default_rng(0).permutation(len(captions))
    shuffled = [captions[i] for i in order]
    np.testing.assert_array_equal(nearest_words(shuffled, captions), order)
    near = nearest_words(["a red circle on the moon"], ["a blue star", "a red circle", "a ring"])
    assert near.tolist() == [1]


def test_nearest_pictures_finds_the_same_picture():
    base = np.stack([draw.picture(s, 16) for s in SCENES[:60]])
    order = np.random.default_rng(1).permutation(60)[:20]
    np.testing.assert_array_equal(nearest_pictures(base[order], base), order)
    noisy = base[order].astype(int) + np.random.default_rng(2).integers(-6, 7, base[order].shape)
    noisy = noisy.clip(0, 255).astype(np.uint8)
    np.testing.assert_array_equal(nearest_pictures(noisy, base), order)
    others = np.stack([draw.picture(s, 16) for s in drawn(20, seed=9)])
    by_loop = [((o.astype(float) - base) ** 2).sum((1, 2, 3)).argmin() for o in others]
    np.testing.assert_array_equal(nearest_pictures(others, base), by_loop)
