"""Words about scenes: captions at three levels of detail, and questions with their answers."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mmjax.data.scenes.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing

NUMBERS = ("no", "one", "two", "three", "four", "five")
SIDES = ("to the left of", "to the right of", "above", "below")
NAMED = re.compile(
    rf"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<colour>{'|'.join(COLOURS)}) "
    rf"(?P<shape>{'|'.join(SHAPES)})(?: (?P<where>{'|'.join(SIDES)}) it)?"
)
BEHIND = {name: f"a {name} background" for name in BACKGROUNDS}
BEHIND["fading"] = "a background fading to grey"
MARGIN = 0.15  # how much further apart along one axis than along the other


def relation(a: Thing, b: Thing) -> str | None:
    """Where a lies seen from b, if that is beyond doubt: "to the left of", ..., or None."""
    dx, dy = a.x - b.x, a.y - b.y
    if abs(abs(dx) - abs(dy)) < MARGIN:
        return None
    if abs(dx) > abs(dy):
        return "to the left of" if dx < 0 else "to the right of"
    return "above" if dy < 0 else "below"


def named(thing: Thing, size: bool = False) -> str:
    """ "a red circle", or with its size "a small red circle"."""
    words = [thing.size] * size + [thing.colour, thing.shape]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def caption(scene: Scene, level: int) -> str:
    """A scene in words.

    Args:
        scene: which; its first objects are named first.
        level: 1 counts, 2 names colours and shapes, 3 adds sizes, places and the background.
    """
    things = scene.things
    if level == 1:
        return f"{NUMBERS[len(things)]} shape{'s' if len(things) > 1 else ''}"
    if level == 2:
        return listed([named(t) for t in things])
    parts = [named(things[0], size=True)]
    for before, thing in itertools.pairwise(things):
        where = relation(thing, before)
        what = named(thing, size=True)
        parts.append(f"{what} {where} it" if where else what)
    return f"{listed(parts)}, on {BEHIND[scene.background]}"


class Told(NamedTuple):
    """An object as a caption names it: size "" where it names none, where None without relation."""

    shape: str
    colour: str
    size: str
    where: str | None


def read(text: str) -> list[Told] | None:
    """The objects a caption of level 2 or 3 names, in order; None for any other text."""
    text = text.strip()
    if behind := ground(text):
        text = text.removesuffix(f", on {BEHIND[behind]}")
    told = []
    for part in re.split(r", | and ", text):
        found = NAMED.fullmatch(part.strip())
        if found is None:
            return None
        told.append(Told(found["shape"], found["colour"], found["size"] or "", found["where"]))
    return told


def ground(text: str) -> str | None:
    """The background a caption of level 3 names; None where it names none."""
    said = (name for name, words in BEHIND.items() if text.strip().endswith(f", on {words}"))
    return next(said, None)


def blur(scene: Scene, rng: np.random.Generator, information: float) -> Scene:
    """The scene as a caption of limited information tells it.

    Each colour, shape and size is kept with probability `information`, and else drawn anew from
    its marginal distribution, independently of all others.
    """

    def told(true: str, of: Sequence[str]) -> str:
        anew = str(rng.choice(list(of)))
        return true if rng.random() < information else anew

    things = [
        dataclasses.replace(
            t,
            colour=told(t.colour, list(COLOURS)),
            shape=told(t.shape, SHAPES),
            size=told(t.size, list(SIZES)),
        )
        for t in scene.things
    ]
    return dataclasses.replace(scene, things=tuple(things))


def mutual_information(information: float, values: int) -> float:
    """Nats that one told attribute says about the true one.

    The channel keeps a value with probability `information` and else draws it from all `values`,
    which are equally likely: I = log k - H, with k values and H the entropy of what is told given
    the truth. That is log k at 1 and 0 at 0.
    """
    other = (1 - information) / values
    same = information + other
    entropy = -sum(p * math.log(p) for p in [same] + [other] * (values - 1) if p > 0)
    return math.log(values) - entropy


def questions(scene: Scene, rng: np.random.Generator) -> list[dict[str, str]]:
    """One question of each kind that the scene allows, shuffled: {"kind", "question", "answer"}.

    Kinds: colour, count, existence, relation, comparison. Objects are named so that only one is
    meant; yes and no are equally likely where both can be true.
    """
    things = scene.things
    asked = [_count(things, rng), _existence(things, rng)]
    shapes = [t.shape for t in things]
    alone = [t for t in things if shapes.count(t.shape) == 1]
    if alone:
        thing = alone[int(rng.integers(len(alone)))]
        asked.append(("colour", f"what colour is the {thing.shape}?", thing.colour))
    names = [(t.colour, t.shape) for t in things]
    unique = [t for t in things if names.count((t.colour, t.shape)) == 1]
    pairs = [(a, b) for a in unique for b in unique if a is not b]
    related = [(a, b) for a, b in pairs if relation(a, b)]
    if related:
        asked.append(_relation(*related[int(rng.integers(len(related)))], rng))
    unlike = [(a, b) for a, b in pairs if a.size != b.size]
    if unlike:
        a, b = unlike[int(rng.integers(len(unlike)))]
        larger = max((a, b), key=lambda t: t.radius)
        text = f"which is larger, the {a.colour} {a.shape} or the {b.colour} {b.shape}?"
        asked.append(("comparison", text, f"the {larger.colour} {larger.shape}"))
    # In no order: asked one after the other, a question's place would tell what kind it is of.
    mixed = [asked[i] for i in rng.permutation(len(asked))]
    return [{"kind": k, "question": q, "answer": a} for k, q, a in mixed]


def _count(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str, str]:
    colour = things[int(rng.integers(len(things)))].colour
    if rng.random() < 0.25:
        colour = str(rng.choice(list(COLOURS)))
    number = sum(t.colour == colour for t in things)
    return "count", f"how many {colour} shapes are there?", NUMBERS[number].replace("no", "none")


def _existence(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str, str]:
    there = {(t.colour, t.shape) for t in things}
    if rng.random() < 0.5:
        colour, shape = sorted(there)[int(rng.integers(len(there)))]
    else:  # a colour and a shape that are there, if possible, but not together
        apart = sorted({(a.colour, b.shape) for a in things for b in things} - there)
        if not apart:  # else one of the two: neither colour nor shape alone gives the answer
            mine, right = things[int(rng.integers(len(things)))], rng.random() < 0.5
            colours = [mine.colour] if right else [c for c in COLOURS if c != mine.colour]
            shapes = [s for s in SHAPES if s != mine.shape] if right else [mine.shape]
            apart = [(c, s) for c in colours for s in shapes if (c, s) not in there]
        colour, shape = apart[int(rng.integers(len(apart)))]
    answer = "yes" if (colour, shape) in there else "no"
    return "existence", f"is there {_a(colour)} {colour} {shape}?", answer


def _relation(a: Thing, b: Thing, rng: np.random.Generator) -> tuple[str, str, str]:
    true = relation(a, b)
    opposite = {
        "to the left of": "to the right of",
        "to the right of": "to the left of",
        "above": "below",
        "below": "above",
    }
    where, answer = (true, "yes") if rng.random() < 0.5 else (opposite[str(true)], "no")
    text = f"is the {a.colour} {a.shape} {where} the {b.colour} {b.shape}?"
    return "relation", text, answer


def _a(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
