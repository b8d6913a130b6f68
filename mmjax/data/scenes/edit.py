"""Edits: what is to change in a scene, in words, and the scene changed."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from mmjax.data.scenes.scene import BACKGROUNDS, COLOURS, Scene

KINDS = ("paint", "remove", "ground")


def edit(
    scene: Scene, rng: np.random.Generator, pairs: Collection[tuple[str, str]]
) -> tuple[str, str, Scene]:
    """(kind, words, scene changed): one object painted or removed, or another background.

    Args:
        scene: which. rng: decides; all that is possible is equally likely, first among kinds.
        pairs: (shape, colour) that painting may bring about.
    """
    names = Counter((t.shape, t.colour) for t in scene.things)
    named = [i for i, t in enumerate(scene.things) if names[t.shape, t.colour] == 1]
    others = {
        i: [
            c
            for c in COLOURS
            if c != scene.things[i].colour and (scene.things[i].shape, c) in pairs
        ]
        for i in named
    }
    can = {
        "paint": [i for i in named if others[i]],
        "remove": named if len(scene.things) > 1 else [],
    }
    possible = [kind for kind in KINDS if can.get(kind, True)]
    kind = possible[rng.integers(len(possible))]
    if kind == "ground":
        grounds = [g for g in BACKGROUNDS if g != scene.background]
        chosen = grounds[rng.integers(len(grounds))]
        return kind, f"on a {chosen} background", replace(scene, background=chosen)
    at = can[kind][rng.integers(len(can[kind]))]
    thing, before, behind = scene.things[at], scene.things[:at], scene.things[at + 1 :]
    name = f"the {thing.colour} {thing.shape}"
    if kind == "remove":
        return kind, f"remove {name}", replace(scene, things=(*before, *behind))
    colour = others[at][rng.integers(len(others[at]))]
    painted = replace(thing, colour=colour)
    words = f"paint {name} {colour}"
    return kind, words, replace(scene, things=(*before, painted, *behind))
