"""Scenes: what is drawn, what is said, and what the oracle sees."""

import collections
import dataclasses
import io
import itertools
import math

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.record import pack
from mmjax.data.scenes import draw, oracle, say
from mmjax.data.scenes.items import SHARES, items, split_of
from mmjax.data.scenes.scene import COLOURS, MOST, SHAPES, SIZES, Scene, Thing, held_pairs, sample
from mmjax.error import UserError

PAIRS = [(s, c) for s in SHAPES for c in COLOURS]


def scenes(count, counts=range(1, MOST + 1), overlap=0.0, seed=7):
    rng = np.random.default_rng(seed)
    return [sample(rng, counts, PAIRS, overlap) for _ in range(count)]


def things(*named) -> tuple[Thing, ...]:
    """Objects from "large red circle .2 .5"."""
    parts = [one.split() for one in named]
    return tuple(Thing(shape, c, size, float(x), float(y)) for size, c, shape, x, y in parts)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_objects_lie_within_the_picture_and_apart(seed):
    (scene,) = scenes(1, seed=seed)
    for thing in scene.things:
        assert min(thing.box) > 0 and max(thing.box) < 1
    for a, b in itertools.combinations(scene.things, 2):
        assert max(abs(a.x - b.x), abs(a.y - b.y)) > a.radius + b.radius
    covers = [draw.cover(t.shape, 64 * t.x, 64 * t.y, 64 * t.radius, 64) for t in scene.things]
    assert sum(covers).max() <= 1


def test_overlap_is_as_asked():
    close = [
        max(abs(a.x - b.x), abs(a.y - b.y)) / (a.radius + b.radius)
        for scene in scenes(200, overlap=0.5)
        for a, b in itertools.combinations(scene.things, 2)
    ]
    assert 0.5 <= min(close) < 0.7


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_shows_the_same_at_any_resolution(shape):
    exact = draw.cover(shape, 128.0, 128.0, 100.0, 256)
    for side in (16, 32, 64):
        k = 256 // side
        small = draw.cover(shape, side / 2, side / 2, 100.0 / k, side)
        averaged = exact.reshape(side, k, side, k).mean((1, 3))
        off = abs(small - averaged)  # a point in four along an edge may fall to either side
        assert off.max() < 0.3 and off.mean() < 0.03
    moved = draw.cover(shape, 128.3, 128.4, 100.2, 256)
    assert set(np.unique(moved)) - {0.0, 1.0}  # edges are smooth
    others = [draw.cover(s, 128.0, 128.0, 100.0, 256) for s in SHAPES if s != shape]
    assert min(abs(exact - other).mean() for other in others) > 0.03


def test_later_objects_are_in_front():
    scene = Scene(things("large red circle .5 .5", "small blue square .5 .5"), "white")
    pixels = draw.picture(scene, 32)
    assert tuple(pixels[16, 16]) == COLOURS["blue"] and tuple(pixels[16, 9]) == COLOURS["red"]
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    behind = dataclasses.replace(scene, things=scene.things[::-1])
    assert tuple(draw.picture(behind, 32)[16, 16]) == COLOURS["red"]


TWO = Scene(things("small red circle .2 .5", "large orange star .7 .55"), "grey")


def test_captions_at_three_levels():
    assert say.caption(TWO, 1) == "two shapes"
    assert say.caption(TWO, 2) == "a red circle and an orange star"
    assert say.caption(TWO, 3) == (
        "a small red circle and a large orange star to the right of it, on a grey background"
    )
    near = Scene(things("small red circle .4 .4", "small orange star .6 .65"), "fading")
    assert say.caption(near, 3) == (
        "a small red circle and a small orange star, on a background fading to grey"
    )
    assert say.caption(Scene(TWO.things[:1], "black"), 1) == "one shape"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_relations_have_opposites_and_a_margin(seed):
    (scene,) = scenes(1, counts=[3], seed=seed)
    turned = {"to the left of": "to the right of", "above": "below", None: None}
    turned |= {v: k for k, v in turned.items()}
    for a, b in itertools.permutations(scene.things, 2):
        told = say.relation(a, b)
        assert say.relation(b, a) == turned[told]
        if told == "above":
            assert a.y < b.y - abs(a.x - b.x) - 0.1


def answer(scene: Scene, question: str) -> str:
    """The answer by reading the question, not by how it was made."""
    words = question.rstrip("?").replace("the ", "").replace(",", "").split()
    named = lambda c, s: [t for t in scene.things if (t.colour, t.shape) == (c, s)]  # noqa: E731
    if words[:2] == ["how", "many"]:
        number = sum(t.colour == words[2] for t in scene.things)
        return ("none", "one", "two", "three", "four", "five")[number]
    if words[:2] == ["is", "there"]:
        return "yes" if named(words[3], words[4]) else "no"
    if words[0] == "what":
        (only,) = [t for t in scene.things if t.shape == words[3]]
        return only.colour
    if words[0] == "which":
        (a,), (b,) = named(words[3], words[4]), named(words[6], words[7])
        best = max((a, b), key=lambda t: SIZES[t.size])
        return f"the {best.colour} {best.shape}"
    (a,), (b,) = named(words[1], words[2]), named(words[-2], words[-1])
    where = " ".join(words[3:-2])
    axis = {"to left of": b.x - a.x, "to right of": a.x - b.x, "above": b.y - a.y}
    return "yes" if (axis | {"below": a.y - b.y})[where] > 0 else "no"


def test_every_answer_is_true_and_no_answer_can_be_guessed():
    rng = np.random.default_rng(0)
    seen = collections.defaultdict(collections.Counter)
    first = collections.Counter()  # of the three kinds that most scenes have
    for scene in scenes(1500):
        every = say.questions(scene, rng)
        first[next(q["kind"] for q in every if q["kind"] in ("colour", "count", "existence"))] += 1
        for asked in every:
            assert asked["answer"] == answer(scene, asked["question"]), (scene, asked)
            seen[asked["kind"]][asked["answer"]] += 1
    assert set(seen) == {"colour", "count", "existence", "relation", "comparison"}
    assert len(first) == 3 and min(first.values()) > 1500 / 4  # nor by its place
    for kind in ("existence", "relation"):
        assert abs(seen[kind]["yes"] / seen[kind].total() - 0.5) < 0.05
    assert max(seen["colour"].values()) / seen["colour"].total() < 0.2
    assert len(seen["count"]) >= 4
    wrong = Scene(TWO.things, "white")
    assert answer(wrong, "is there a blue star?") == "no"
    assert answer(wrong, "is there an orange star?") == "yes"


def test_of_one_object_neither_colour_nor_shape_tells_alone_whether_it_is_there():
    rng, right = np.random.default_rng(0), collections.Counter()
    some = [scene for scene in scenes(3000) if len(scene.things) == 1]
    for scene in some:
        (thing,) = scene.things
        (asked,) = [q for q in say.questions(scene, rng) if q["kind"] == "existence"]
        *_, colour, shape = asked["question"].rstrip("?").split()
        same = {"colour": thing.colour == colour, "shape": thing.shape == shape}
        same["both"] = all(same.values())
        right.update(name for name, told in same.items() if told == (asked["answer"] == "yes"))
        assert same["colour"] or same["shape"]
    assert len(some) > 300 and right["both"] == len(some)
    assert max(abs(right[name] / len(some) - 0.75) for name in ("colour", "shape")) < 0.08


def test_splits_hold_what_they_are_for():
    held = held_pairs(0)
    assert sorted(s for s, _ in held) == sorted(SHAPES)
    assert sorted(c for _, c in held) == sorted(COLOURS)
    assert held != held_pairs(1)
    found = collections.defaultdict(list)
    for item in items(3000, size=8):
        found[item.split].append(item.read())
    shares = {split: len(part) / 3000 for split, part in found.items()}
    assert set(shares) == {"train", *SHARES}
    assert all(abs(shares[s] - share) < 0.015 for s, share in SHARES.items())
    for split, part in found.items():
        has = [any((o["shape"], o["colour"]) in held for o in r.facts["objects"]) for r in part]
        assert all(has) if split == "compositional" else not any(has)
        counts = {len(r.facts["objects"]) for r in part}
        assert counts == ({MOST} if split == "counts" else set(range(1, MOST)))
    colours = collections.Counter(o["colour"] for r in found["train"] for o in r.facts["objects"])
    assert max(colours.values()) / min(colours.values()) < 1.25


def test_scenes_may_hold_fewer_objects():
    found = collections.defaultdict(set)
    for item in items(400, size=8, most=3):
        found[item.split].add(len(item.read().facts["objects"]))
    assert found["counts"] == {3} and found["train"] == found["compositional"] == {1, 2}
    with pytest.raises(UserError, match="--most=1 must lie between 2 and 5"):
        items(10, most=1)


def test_a_scene_is_a_function_of_its_number():
    first, again = list(items(50, size=16)), list(items(20, size=16))
    assert [pack(i.read()) for i in first[:20]] == [pack(i.read()) for i in reversed(again)][::-1]
    other = next(items(1, size=16, seed=1)).read()
    assert other.document != first[0].read().document
    record = first[3].read()
    with PIL.Image.open(io.BytesIO(record.images[0])) as opened:
        assert opened.size == (16, 16)
    assert split_of(3, 0) == first[3].split and record.facts["true"]


def test_the_knob_sets_the_mutual_information():
    """Against the plug-in estimate from 6,000 true and told colours (its bias is 0.004)."""
    for information in (0.0, 0.3, 0.7, 1.0):
        rng = np.random.default_rng(1)
        joint = np.zeros((8, 8))
        names = list(COLOURS)
        for scene in scenes(2400, counts=[2, 3]):
            for a, b in zip(scene.things, say.blur(scene, rng, information).things, strict=True):
                joint[names.index(a.colour), names.index(b.colour)] += 1
        joint /= joint.sum()
        marginal = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.nansum(joint * np.log(joint / marginal))
        assert abs(found - say.mutual_information(information, 8)) < 0.05
    assert say.mutual_information(1.0, 8) == pytest.approx(math.log(8))
    assert say.mutual_information(0.0, 8) == pytest.approx(0.0, abs=1e-12)
    false = [i.read().facts["true"] for i in items(200, size=8, information=0.5)]
    assert 0 < sum(false) < 100


@pytest.mark.parametrize(("size", "least"), [(16, 0.94), (32, 0.98), (64, 0.98)])
def test_the_oracle_sees_what_is_there(size, least):
    some = scenes(120, seed=3)
    found = [oracle.find(draw.picture(scene, size)) for scene in some]
    right = [oracle.agreement(s.things, f)["all"] for s, f in zip(some, found, strict=True)]
    assert np.mean(right) >= least
    for scene, seen in zip(some, found, strict=True):
        if oracle.agreement(scene.things, seen)["all"]:
            true = sorted(scene.things, key=lambda t: t.x)
            for a, b in zip(true, (f.thing for f in seen), strict=True):
                assert max(abs(a.x - b.x), abs(a.y - b.y)) < 1.2 / size
    turned = [oracle.agreement(s.things, f)["all"] for s, f in zip(some, found[1:], strict=False)]
    assert np.mean(turned) < 0.05  # another scene's picture does not pass


def test_the_oracle_sees_through_some_noise_and_blames_the_picture():
    rng = np.random.default_rng(0)
    some = scenes(60, seed=4)
    noisy = [draw.picture(s, 64) + rng.normal(0, 25, (64, 64, 3)) for s in some]
    found = [oracle.find(np.clip(p, 0, 255).astype(np.uint8)) for p in noisy]
    right = [oracle.agreement(s.things, f)["all"] for s, f in zip(some, found, strict=True)]
    assert np.mean(right) > 0.93
    assert oracle.find(np.full((32, 32, 3), 200, np.uint8)) == []
    nothing = [oracle.find(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)) for _ in range(20)]
    assert sum(map(len, nothing)) <= 2


def test_agreement_tells_what_is_wrong():
    def seen(*named):
        return [oracle.Found(t, 0.9) for t in things(*named)]

    kinds = ("count", "colours", "shapes", "pairs", "objects")
    truth = TWO.things
    wrong = {
        ("small red circle .2 .5", "large orange star .7 .55"): set(),
        ("small red circle .2 .5",): {*kinds, "relations"},
        ("large red circle .2 .5", "large orange star .7 .55"): {"objects"},
        ("small orange circle .2 .5", "large red star .7 .55"): {"pairs", "objects", "relations"},
        ("small red circle .8 .5", "large orange star .3 .55"): {"relations"},
        ("small red ring .2 .5", "large orange star .7 .55"): {
            "shapes", "pairs", "objects", "relations",
        },
    }  # fmt: skip
    for named, missed in wrong.items():
        got = oracle.agreement(truth, seen(*named))
        assert {k for k, v in got.items() if not v} == missed | ({"all"} if missed else set())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"level": 4}, "--level=4 must lie between 1 and 3"),
        ({"information": 1.5}, "information=1.5"),
    ],
)
def test_options_out_of_range(option, words):
    with pytest.raises(UserError, match=words):
        items(5, **option)
