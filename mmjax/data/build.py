"""Building, describing and showing data sets on disk."""

import collections
import contextlib
import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mmjax import paths
from mmjax.data import pipeline, store
from mmjax.data import tokenizer as bpe
from mmjax.data.formats import FORMATS, READERS
from mmjax.data.formats.files import walk
from mmjax.data.pixels import read, size_of
from mmjax.data.record import Item
from mmjax.data.split import Shares, check_shares, choose
from mmjax.data.write import write
from mmjax.destination import check_apart
from mmjax.error import UserError, near, unknown
from mmjax.extra import need
from mmjax.lock import LOCK, held
from mmjax.log import write_json
from mmjax.sheet import Cell, sheet

# Data sets that come by name: name -> module whose `items` makes them, given options.
SETS: Mapping[str, str] = {
    "digits": "mmjax.data.sets.digits",
    "prose": "mmjax.data.sets.prose",
    "scenes": "mmjax.data.scenes.items",
}
TFDS = "tfds:"
SPLITS = ("validation", "test")  # which are drawn where a source does not tell
VOCABULARY = 1024  # ids of a tokenizer
TOKENIZER_TEXTS = 200_000  # training documents the tokenizer is trained on, at most
TELLING = 300  # characters by which a language is told
LONGEST = 160  # characters of a text on a contact sheet


def build(
    src: str,
    dst: str | Path,
    form: str = "",
    vocabulary: int = VOCABULARY,
    tokenizer: str = "",
    shares: Shares | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict:
    """Builds a data set and its tokenizer; again, it goes on where it was stopped.

    Args:
        src: "openmoji", a name of SETS, "tfds:NAME", or with `form` a path.
        dst: directory to build into. form: a name of READERS.
        vocabulary: ids of the tokenizer trained on its texts. tokenizer: a file to take instead.
        shares: of the splits that are drawn where files do not tell; of one that is None, and by
            default of `validation` and `test`, see `split.wanted`.
        options: arguments of the set or reader.

    Returns:
        What dataset.json holds; {} for openmoji, which TFDS writes.

    Raises:
        UserError: for an unknown source, a set in dst that was built otherwise, or see
            `write.write`.
    """
    dst, options = paths.of(dst), dict(options or {})
    if paths.is_remote(dst):
        if form:
            check_apart(src, dst)
        whole = (store.INFO, pipeline.OPENMOJI)
        with paths.made(dst, whole, (*whole, store.TOKENIZER, store.BUILT)) as place:
            return build(src, place, form, vocabulary, tokenizer, shares, options)
    reader, known = _reader(src, form)
    check_options(form or src, known, options, shares)
    if form:
        check_apart(src, dst)
    if reader is None:
        place = dst.resolve()  # TFDS puts a directory it made elsewhere there
        lock = held(place.with_name(f"{place.name}.{LOCK}"))
        with contextlib.nullcontext() if (place / pipeline.OPENMOJI).is_file() else lock:
            need("mmjax.data.sets.openmoji").build(dst)
        found: dict = {}
    else:
        shares = (shares or dict.fromkeys(SPLITS)) if form in FORMATS else {}
        source = _source(src, form, known | options, shares)
        done = (dst / store.INFO).is_file()
        found = store.info(dst) if done else {}
        if done:
            check_same(dst, found["source"], source, known)
        else:
            make = partial(reader, **options)
            chosen = choose(make, shares) if shares else {}
            with held(dst / LOCK):
                found = write(make(), dst, source, shares, options.get("count"), chosen)
    _tokenizer(dst, vocabulary, tokenizer)
    return found


def _reader(src: str, form: str) -> tuple[Callable[..., Iterator[Item]] | None, dict[str, Any]]:
    """What reads a source, and its options with their defaults; None for openmoji.

    Raises:
        UserError: for an unknown source or format.
    """
    if form and form not in READERS:
        raise UserError(f"--format={form} {unknown(form, READERS)}")
    if not form and src not in SETS and src != "openmoji" and not src.startswith(TFDS):
        names = ["openmoji", *SETS, f"{TFDS}NAME"]
        raise UserError(
            f"--src={src} {unknown(src, names)}; for files of your own say "
            f"--format={'|'.join(READERS)}"
        )
    if not form and src == "openmoji":
        return None, {}
    module = "mmjax.data.sets.tfds"
    given: tuple = (src.removeprefix(TFDS),)
    if form:
        module, given = READERS[form], (paths.near(paths.of(src)),)
    elif src in SETS:
        module, given = SETS[src], ()
    reader: Callable[..., Iterator[Item]] = need(module).items
    known = list(inspect.signature(reader).parameters.values())[len(given) :]
    return partial(reader, *given), {p.name: p.default for p in known}


def check_options(name: str, known: Mapping[str, Any], options, shares: Shares | None) -> None:
    """Checks that a source has options of these names, and if there are shares, draws splits.

    Raises:
        UserError: naming one it does not have.
    """
    for option in options:
        if option not in known:
            have = ", ".join(f"--{n}" for n in known) or "none"
            hint = f"{near(option, known)}; have: {have}"
            raise UserError(f"--{option} is no option of {name}{hint}")
    if shares is None:
        return
    if name not in FORMATS and (given := [n for n, share in shares.items() if share is not None]):
        raise UserError(f"--{given[0]} is no option of {name}, which has splits of its own")
    check_shares(shares)


def _source(src: str, form: str, options: Mapping[str, Any], shares: Shares) -> dict:
    """What is read, so that it is known again: names, options, and of files sizes and times."""
    found: dict[str, Any] = {"src": src, "format": form, "options": options}
    if shares:
        found["shares"] = shares
    if form:
        follow = bool(options.get("follow_links"))
        places = [paths.of(src), *(paths.of(options[n]) for n in ("images",) if options.get(n))]
        state = []
        for named in places:
            path = paths.near(named)
            for p in walk(path, follow).files if path.exists() else ():
                called = f"{named}{str(p).removeprefix(str(path))}"
                state.append((called, p.stat().st_size, p.stat().st_mtime_ns))
        found |= {
            "src": str(paths.absolute(places[0])),
            "files": len(state),
            "state": hashlib.sha256(repr(state).encode()).hexdigest(),
        }
    return json.loads(json.dumps(found))


def check_same(dst: Path, old: Mapping, new: Mapping, defaults: Mapping[str, Any]) -> None:
    """Checks that a set was built from what is asked for now.

    Args:
        dst: where it lies. old, new: see `_source`. defaults: of the options.

    Raises:
        UserError: naming every flag that differs, with both values.
    """
    known = json.loads(json.dumps(dict(defaults)))
    told = {
        "src": (old.get("src"), new["src"]),
        "format": (old.get("format", ""), new["format"]),
    }
    was = known | old.get("options", {})
    told |= {name: (was.get(name), value) for name, value in new["options"].items()}
    if "shares" in old:  # which sets of older versions do not tell
        names = {**old["shares"], **new.get("shares", {})}
        told |= {n: (old["shares"].get(n), new.get("shares", {}).get(n)) for n in names}
    lines = [f"--{n}={_said(a)}, not {_said(b)}" for n, (a, b) in told.items() if a != b]
    anew = f"choose another --dst, or remove {dst} to build it anew"
    if lines:
        raise UserError(f"{dst} was built with {'; '.join(lines)}: say it as it was, {anew}")
    if old.get("state") != new.get("state"):
        counts = f"{old.get('files', 0):,} files then, {new['files']:,} now"
        raise UserError(f"{dst} was built before its source changed ({counts}); {anew}")


def _said(value: Any) -> str:
    """A flag's value as it is given on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "(the default)" if value is None else str(value)


def _tokenizer(dst: Path, vocabulary: int, given: str) -> None:
    """Puts a tokenizer beside the records, unless there is one, made alike.

    Raises:
        UserError: if there is another.
    """
    path, wanted = dst / store.TOKENIZER, bpe.load(given) if given else None
    mark = "" if wanted is None else store.digest_of(wanted.to_str())
    how = {"vocabulary": None if given else vocabulary, "tokenizer": mark}
    if path.exists():
        _check_tokenizer(path, how, given)
        return
    found = train_tokenizer([dst], vocabulary) if wanted is None else wanted
    save(found, path)
    write_json(dst / store.BUILT, how | {"digest": store.digest_of(found.to_str())})


def _check_tokenizer(path: Path, how: Mapping[str, Any], given: str) -> None:
    """Checks that a set's tokenizer was made as it is asked for now, as far as can be told."""
    was = store.built(path.parent)
    made = f"--vocabulary={was.get('vocabulary')}"
    if not was:  # of an older version
        held = bpe.load(path)
        size, made = bpe.vocabulary(held).size, "another tokenizer"
        if given and store.digest_of(held.to_str()) == how["tokenizer"]:
            return
        if not given and size <= how["vocabulary"]:
            return
    elif all(was.get(name) == value for name, value in how.items()):
        return
    elif was.get("tokenizer"):
        made = "a --tokenizer that was given"
    now = f"--tokenizer={given}" if given else f"--vocabulary={how['vocabulary']}"
    raise UserError(
        f"{path} was made with {made}, not {now}: say it as it was, choose another --dst, or "
        f"remove {path} to have it made anew"
    )


def train_tokenizer(sets: Sequence[str | Path], vocabulary: int) -> Tokenizer:
    """A tokenizer of the training texts of one or several data sets, as many of each at most.

    Raises:
        UserError: for a data set that is not there, or too small a vocabulary.
    """
    parts = [pipeline.open_split(path, "train") for path in sets]
    most = TOKENIZER_TEXTS // len(parts)
    texts = (part[i].caption for part in parts for i in range(min(len(part), most)))
    return bpe.train(texts, vocabulary)


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes a tokenizer.json, whole or not at all."""
    path = paths.of(path)
    if paths.is_remote(path):
        path.write_bytes(tokenizer.to_str(pretty=True).encode())
        return
    draft = path.with_suffix(".tmp")
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(
        tokenizer.to_str(pretty=True), encoding="utf-8"
    )  # its own errors are no OSError
    os.replace(draft, path)


def describe(path: str | Path) -> dict[str, dict[str, Any]]:
    """Counts by split.

    `tokens`: of text. `sides`: smallest and largest width or height of a picture, in pixels.
    `languages`: the three most frequent, by their share of the documents with text; short texts
    are told by several together, as one alone says too little.
    `repeated text`, `repeated pictures`: documents whose text, or a picture of which, stands in an
    earlier split too.
    """
    names = pipeline.splits(path)
    tokenizer = bpe.load(paths.of(path) / store.TOKENIZER)
    texts: set[bytes] = set()
    pictures: set[bytes] = set()
    table = {}
    for split in names:
        source = pipeline.open_split(path, split)
        table[split], new = _count(source, tokenizer, texts, pictures)
        texts |= new[0]
        pictures |= new[1]
    return table


def _count(source, tokenizer, texts, pictures) -> tuple[dict, tuple[set, set]]:
    """One split's row of `describe`, and the hashes of its texts and pictures."""
    count: collections.Counter = collections.Counter()
    spoken: collections.Counter = collections.Counter()
    sides: list[int] = []
    new: tuple[set, set] = (set(), set())
    unknown: list[str] = []
    for record in (source[i] for i in range(len(source))):
        text, images = record.caption, record.images
        marks = [hashlib.sha256(image).digest() for image in images]
        mark = hashlib.sha256(text.encode()).digest()
        count["documents"] += 1
        count["pictures"] += len(images)
        count["tokens"] += len(bpe.encode(tokenizer, text))
        count["bytes"] += sum(map(len, images)) + len(text.encode())
        count["repeated text"] += bool(text) and mark in texts
        count["repeated pictures"] += any(m in pictures for m in marks)
        for image in images:
            sides += size_of(image)
        if text:
            new[0].add(mark)
        if record.facts.get("language"):
            spoken[record.facts["language"]] += 1
        elif text:
            unknown.append(text)
        if sum(map(len, unknown)) >= TELLING:
            spoken[need("py3langid").classify(" ".join(unknown))[0]] += len(unknown)
            unknown = []
        new[1].update(marks)
    if unknown:
        spoken[need("py3langid").classify(" ".join(unknown))[0]] += len(unknown)
    names = ("documents", "pictures", "tokens", "bytes")
    row: dict[str, Any] = {name: count[name] for name in names}
    row["sides"] = f"{min(sides)} ... {max(sides)}" if sides else ""
    total = max(spoken.total(), 1)
    row["languages"] = ", ".join(f"{k} {v / total:.0%}" for k, v in spoken.most_common(3))
    return row | {name: count[name] for name in ("repeated text", "repeated pictures")}, new


def show(path: str | Path, split: str, out: str | Path, count: int) -> None:
    """Writes a contact sheet of `count` records, evenly spaced over the split."""
    source = pipeline.open_split(path, split)
    picks = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int))
    cells = []
    for record in (source[int(i)] for i in picks):
        pictures = []
        for image in itertools.islice(record.images, 4):
            pictures.append(read(image))
        text = record.caption
        cells.append(Cell(pictures, [text if len(text) < LONGEST else text[:LONGEST] + " ..."]))
    sheet(cells, out, f"{split}: {len(cells)} of {len(source)}")
