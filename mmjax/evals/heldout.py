"""Held-out records, drawn once for all evaluations."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from mmjax.batch import SEP, Document, Image, Text
from mmjax.config import DataConfig
from mmjax.data import pipeline
from mmjax.data.kinds import with_kinds
from mmjax.data.record import Record
from mmjax.data.tokenizer import encode
from mmjax.trained import Trained

CHOICES = 10  # a picture's or caption's own and nine others: chance is 0.10
LOOKED = 100  # records of a source that are looked at for a picture with a text
SHOWN = 48  # cells on a contact sheet
FEWEST = 2  # records of a split that is measured: one alone has no interval

# Split -> suffix of the names in summary.json. The compositional split holds new combinations of
# parts that were seen; the test split, where there are both, concepts that were never seen.
SPLITS = {"compositional": "", "test": "_concepts"}
# What is measured, under names that end so, where neither holds anything.
SPARE = {"validation": "_validation", "train": "_train"}


class Pair(NamedTuple):
    """A caption and its picture, encoded, and what else is known of them."""

    caption: str
    image: bytes
    facts: Mapping = MappingProxyType({})


def source(trained: Trained, kind: int = 0) -> str:
    """The source that is evaluated: by name the first to have what is asked about, or the first.

    It has some if there is one among its first LOOKED training records. A kind of pictures that
    has sources of its own is evaluated on the first of them, and no other kind is.
    """
    data = replace(trained.run.experiment.data, coded=False)
    if kind and (own := list(data.kinds.values())[kind - 1].sources):
        return own[0]
    taken = {name for k in data.kinds.values() for name in k.sources}
    for name in (name for name in data.sources if name not in taken):
        records = pipeline.records(data, name, "train")
        if any(is_asked(trained, records[i]) for i in range(min(len(records), LOOKED))):
            return name
    return next(iter(data.sources))


def is_asked(trained: Trained, record: Record) -> bool:
    """Whether a record is one picture with a text; for a codec, which reads none, has a picture."""
    if not trained.abilities.reads:
        return bool(record.images)
    return len(record.images) == 1 and bool(record.caption)


def splits(trained: Trained, kind: int = 0) -> dict[str, str]:
    """SPLITS as far as the source has them; the first has no suffix.

    A split with fewer than CHOICES records counts only if there is none with as many, and one of
    SPARE only if there is no other. A source without pictures has none of them.
    """
    data = trained.run.experiment.data
    there = pipeline.splits(data.sources[source(trained, kind)].path)
    known = {s: len(draw(trained, s, CHOICES, 0, kind)) for s in SPLITS if s in there}
    for least in (CHOICES, FEWEST):
        if found := [s for s, count in known.items() if count >= least]:
            return {s: SPLITS[s] if i else "" for i, s in enumerate(found)}
    for spare, suffix in SPARE.items():
        if spare in there and len(draw(trained, spare, FEWEST, 0, kind, LOOKED)) == FEWEST:
            return {spare: suffix}
    return {}


def draw(
    trained: Trained, split: str, count: int, seed: int, kind: int = 0, look: int | None = None
) -> list[Pair]:
    """Up to `count` pairs of a split of the source, in an order the seed fixes.

    Passed over are records that are not one picture with a text, too long for a row, or whose
    picture is of another kind. For a codec any first picture of a record will do. `look`: how many
    records are looked at, at most.
    """
    data = replace(trained.run.experiment.data, coded=False)  # pictures, not codes of them
    name = source(trained, kind)
    held = pipeline.records(data, name, split)
    room = data.length - data.counts[kind] - 3  # BOS, BOI, EOI
    reads = trained.abilities.reads
    pairs: list[Pair] = []
    for i in np.random.default_rng(seed).permutation(len(held))[:look]:
        record = held[int(i)]
        fits = is_asked(trained, record)
        if fits and reads:
            words = len(encode(trained.run.tokenizer, record.caption))
            fits = words + data.ends - words % data.ends <= room  # EOS with them
        if fits and all(k == kind for k in kinds_of(data, record, name)):
            pairs.append(Pair(record.caption, record.images[0], record.facts))
        if len(pairs) == count:
            break
    return pairs


def kinds_of(data: DataConfig, record: Record, name: str) -> list[int]:
    """Numbers of the kinds of a record's pictures."""
    return [p.kind for p in with_kinds(data, record.document, name) if isinstance(p, Image)]


def drawings(
    trained: Trained, split: str, count: int, seed: int, kind: int = 0
) -> tuple[list[Pair], np.ndarray]:
    """Records of a split, and uint8 [n, h, w, 3] drawn from their captions.

    Several evaluations look at the same drawings; they are made once.
    """
    at = (split, count, seed, kind)
    if at not in trained.drawn:
        records = draw(trained, split, count, seed, kind)
        asked = [request(trained, r.caption) for r in records]
        options = {"kind": names(trained)[kind]} if kind else {}
        trained.drawn[at] = records, trained.draw(asked, seed, **options)
    return trained.drawn[at]


def names(trained: Trained) -> list[str]:
    """Of the kinds of pictures there are, by number."""
    return ["image", *trained.run.experiment.data.kinds]


def request(trained: Trained, caption: str) -> Document:
    """What asks for a picture of a caption, in the form that the model was trained on."""
    templates = {s.template for s in trained.run.experiment.data.sources.values()}
    ends = [replace(SEP, loss=False)] if "sep_draw" in templates else []
    return [Text(caption), *ends]


def captioned(records: Sequence[Pair], text_first: bool = False) -> list:
    """Pairs as documents of both parts."""
    pairs = [(Text(r.caption), Image(r.image)) for r in records]
    return [[t, i] if text_first else [i, t] for t, i in pairs]


def choices(names: Sequence) -> int:
    """Among how many a record's own is to be found: CHOICES, or as many names as there are."""
    return min(CHOICES, len(set(names)))


def others(names: Sequence, choices: int, seed: int) -> np.ndarray:
    """[n, choices] int: each row its own index first, then others, drawn at random.

    No two of a row have the same name; empty where there are too few names for that.
    """
    if len(set(names)) < choices:
        return np.zeros((0, choices), int)
    rng = np.random.default_rng(seed + 1)
    rows = []
    for i in range(len(names)):
        rest = rng.permutation(np.delete(np.arange(len(names)), i))
        first = {names[j]: j for j in [*rest[::-1].tolist(), i]}  # of each name the first of `rest`
        rows.append(list(dict.fromkeys([i, *(first[names[j]] for j in rest.tolist())]))[:choices])
    return np.array(rows)
