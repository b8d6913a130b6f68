"""What a directory of theirs says, in terms of ours: configuration, ids, and where weights lie."""

import reprlib
from collections.abc import Callable, Container, Mapping
from dataclasses import fields as names_of
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax import values
from mmjax.batch import Vocabulary
from mmjax.convert import (
    chameleon,
    clip,
    fields,
    hub,
    idefics,
    llama,
    llava,
    original,
    processor,
    words,
)
from mmjax.convert.rows import Row
from mmjax.error import UserError

# model_type of a config.json -> the module that knows it, and family -> the same.
KINDS: dict[str, Any] = {
    "clip": clip,
    "siglip": clip,
    "chameleon": chameleon,
    "llama": llama,
    "llava": llava,
    "idefics": idefics,
}
BY_FAMILY: dict[str, Any] = {kind.FAMILY: kind for kind in KINDS.values()}
OURS = "mmjax_vocabulary"  # in a config.json of theirs, ids for which they have no names
TIED = {"head/w": "embed/table", "added/w": "added/table"}  # outputs -> embeddings, where tied
Source = hub.Hub | original.Original
# Ids of a vocabulary, one each, as config.json calls them.
ONE = {
    "pad": "pad_token_id", "bos": "bos_token_id", "eos": "eos_token_id", "boi": "boi", "eoi": "eoi",
    "sep": "sep", "eoss": "eoss", "stops": "eos_token_id",
}  # fmt: skip
# What values of other kinds than a model's make of the code that reads them.
STRANGE = (TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RecursionError)


class Understood(NamedTuple):
    """A directory's content as ours: configuration, ids, weights, and how pictures are prepared."""

    config: Any
    vocabulary: Vocabulary
    rows: list[Row]
    seen: processor.Pixels | None


def opened(src: Path) -> Source:
    """A directory of Hugging Face's or Facebook's; no tensor is read yet.

    Raises:
        UserError: for files that are missing or damaged.
    """
    if not original.there(src):
        return hub.read(src)
    try:
        return original.read(src)
    except UserError:
        raise
    except STRANGE as error:
        raise UserError(
            f"{src} is not as Facebook released it: {repr(error)[:120]}; fetch it anew"
        ) from error


def understood(source: Source) -> tuple[Any, Source, Understood]:
    """The module that knows a directory's kind, its tensors under the names known there, and what
    it says.

    Raises:
        UserError: for a kind that is not known, and whatever no such model has.
    """
    where, model_type = str(source.path / hub.CONFIG), source.config["model_type"]
    if isinstance(source, original.Original):
        where = str(source.path / original.PARAMS)
    kind = KINDS.get(str(model_type))
    if kind is None:
        raise UserError(
            f"{where}: model_type={reprlib.repr(model_type)} is unknown; have: {', '.join(KINDS)}"
        )
    source = source.renamed(getattr(kind, "RENAMED", ()))
    fields.check(source.config, where)
    try:
        return kind, source, _understood(kind, source, where)
    except UserError:
        raise
    except STRANGE as error:
        raise UserError(
            f"{where} holds what no such model has: {repr(error)[:120]}; correct it or fetch it "
            f"anew"
        ) from error


def _understood(kind, source: Source, where: str) -> Understood:
    c = kind.config(source.config)
    seen = pixels_of(c, source)
    c = processor.standardised(c, seen)
    vocabulary = vocabulary_of(kind, source.config)
    theirs = not isinstance(source, original.Original)  # whose table tells how many there are
    if theirs:
        check_ids(vocabulary, where)
    if OURS not in source.config:
        vocabulary = told_beside(kind, vocabulary, source)
    if theirs:
        check_ids(vocabulary, str(source.path))
    return Understood(c, vocabulary, kind.rows(c, vocabulary, source.config), seen)


def check_ids(v: Vocabulary, where: str) -> None:
    """Holds ids against the size of the table; -1 is none.

    Raises:
        UserError: for one that has no row.
    """
    ids = {f.name: getattr(v, f.name) for f in names_of(v)}
    single = {name: [i] for name, i in ids.items() if type(i) is int and name in ONE}
    several = {name: i for name, i in ids.items() if isinstance(i, tuple)}
    for name, found in (single | several).items():
        for i in found:
            if type(i) is not int or not -1 <= i < v.size:
                raise UserError(
                    f"{where}: the id {i} of {ONE.get(name, name)} has no row in a table of "
                    f"{v.size}; correct it or fetch it anew"
                )


def finite(source: Source) -> Callable[[str], np.ndarray]:
    """Name -> a tensor, whose numbers are all finite.

    Raises:
        UserError: when one is asked for that has others.
    """

    def tensor(name: str) -> np.ndarray:
        x = source.tensor(name)
        if wrong := x.size - int(np.isfinite(x).sum()):
            raise UserError(
                f"{source.path}, tensor {name}: {wrong:,} of {x.size:,} numbers are NaN or "
                f"infinite in f32; fetch it anew"
            )
        return x

    return tensor


def vocabulary_of(kind, given: Mapping) -> Vocabulary:
    """The ids of their config.json; of a model made here those it went out with."""
    if OURS in given:
        return values.build(Vocabulary, given[OURS], OURS)
    return kind.vocabulary(given)


def told_beside(kind, v: Vocabulary, source: Source) -> Vocabulary:
    """Ids with what files beside config.json say: of padding and ends, and where texts stop."""
    if kind is clip:
        return clip.named(v, source.config, source.beside, source.path)
    told = hub.content(source.beside, hub.GENERATION, source.path)
    more = [n for n in hub.tokens(told, "eos_token_id") if n not in (v.eos, *v.stops)]
    v = replace(v, stops=(*v.stops, *more)) if v.eos >= 0 else v
    # The processor of IDEFICS writes BOS itself; releases of others than Hugging Face's have one.
    if kind is idefics or isinstance(source, original.Original):
        return v
    return words.processed(v, source.beside, source.path)


def pixels_of(c: Any, source: Source) -> processor.Pixels | None:
    """How pictures are prepared, where files beside say it."""
    if not hasattr(c, "image"):
        return None
    return processor.read(source.path, source.config["model_type"], c.image)


def sized(kind, c: Any, source: Source, seen: processor.Pixels | None) -> dict:
    """Sizes of rows and how pictures come to size, as far as the files beside say otherwise."""
    place = kind.place(c) | ({} if seen is None else {"resize": seen.resize})
    if isinstance(source, original.Original):
        place |= {"resize": original.RESIZE.format(c.image)}
    text = source.config.get("text_config") or source.config
    most = text.get("max_position_embeddings")
    if kind is clip or not most:  # a text tower's row has room for a picture and sentinels too
        return place
    return place | {"length": min(place["length"], most)}


def untied(given: Mapping) -> dict:
    """Their config.json, embeddings and outputs being weights of their own."""
    found = dict(given)
    if found.get("tie_word_embeddings"):
        found["tie_word_embeddings"] = False
    if found.get("text_config"):
        found["text_config"] = untied(found["text_config"])
    return found


def apart(rows: list, given: Mapping, there: Container[str]) -> list:
    """Rows in which, of tied outputs and embeddings, the one that is absent is read from the other.

    there: names of the tensors there are. Where both are, both count, as theirs loads them.
    """
    both = given, given.get("text_config") or {}
    if not any(c.get("tie_word_embeddings") for c in both):
        return rows
    names = {row.ours: row.theirs for row in rows}
    tied = {}
    for out, table in TIED.items():
        if out in names and names[out] not in there:
            tied[out] = names[table]
        elif out in names and names[table] not in there:
            tied[table] = names[out]
    return [row._replace(theirs=tied.get(row.ours, row.theirs)) for row in rows]
