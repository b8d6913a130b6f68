"""Building, describing and showing data sets on disk."""

import collections
import contextlib
import hashlib
import inspect
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mmjax.data import pipeline, store
from mmjax.data import tokenizer as bpe
from mmjax.data.formats import READERS
from mmjax.data.formats.files import walk
from mmjax.data.pixels import read, size_of
from mmjax.data.record import Item
from mmjax.data.write import write
from mmjax.destination import check_apart
from mmjax.error import UserError
from mmjax.extra import need
from mmjax.lock import LOCK, held
from mmjax.sheet import Cell, sheet

# Data sets that come by name: name -> module whose `items` makes them, given options.
SETS: Mapping[str, str] = {
    "digits": "mmjax.data.sets.digits",
    "prose": "mmjax.data.sets.prose",
    "scenes": "mmjax.data.scenes.items",
}
TFDS = "tfds:"
TOKENIZER_TEXTS = 200_000  # training documents the tokenizer is trained on, at most
TELLING = 300  # characters by which a language is told
LONGEST = 160  # characters of a text on a contact sheet


def build(
    src: str,
    dst: str | Path,
    form: str = "",
    vocabulary: int = 1024,
    tokenizer: str = "",
    shares: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict:
    """Builds a data set and its tokenizer; again, it goes on where it was stopped.

    Args:
        src: "openmoji", a name of SETS, "tfds:NAME", or with `form` a path.
        dst: directory to build into. form: a name of READERS.
        vocabulary: ids of the tokenizer trained on its texts. tokenizer: a file to take instead.
        shares: of `validation` and `test`, where the source does not tell.
        options: arguments of the set or reader.

    Returns:
        What dataset.json holds; {} for openmoji, which TFDS writes.

    Raises:
        UserError: for an unknown source, or see `write.write`.
    """
    options = dict(options or {})
    shares = shares or {"validation": 0.05, "test": 0.05}
    if src == "openmoji":
        place = Path(dst).resolve()  # TFDS puts a directory it made elsewhere there
        lock = held(place.with_name(f"{place.name}.{LOCK}"))
        with contextlib.nullcontext() if (place / pipeline.OPENMOJI).is_file() else lock:
            need("mmjax.data.sets.openmoji").build(dst)
        found = {}
    else:
        if form:
            check_apart(src, dst)
        source = _source(src, form, options)
        done = (Path(dst) / store.INFO).is_file()
        found = store.info(dst) if done else {}
        if done and found["source"] != source:
            raise UserError(
                f"{dst} holds another data set, or its source changed; remove it or choose another "
                f"--dst"
            )
        if not done:
            items = _items(src, form, options)
            with held(Path(dst) / LOCK):
                found = write(items, dst, source, shares, options.get("count"))
    _tokenizer(Path(dst), vocabulary, tokenizer)
    return found


def _items(src: str, form: str, options: Mapping[str, Any]) -> Iterator[Item]:
    """The items of a source.

    Raises:
        UserError: for an unknown source or format, or options it does not have.
    """
    if form and form not in READERS:
        raise UserError(f"--format={form} is unknown; have: {', '.join(READERS)}")
    if not form and src not in SETS and not src.startswith(TFDS):
        names = ", ".join(["openmoji", *SETS, f"{TFDS}NAME"])
        raise UserError(
            f"--src={src} is unknown; have: {names}; for files of your own say "
            f"--format={'|'.join(READERS)}"
        )
    module = "mmjax.data.sets.tfds"
    given: tuple = (src.removeprefix(TFDS),)
    if form:
        module, given = READERS[form], (Path(src),)
    elif src in SETS:
        module, given = SETS[src], ()
    reader: Callable[..., Iterator[Item]] = need(module).items
    known = list(inspect.signature(reader).parameters)[len(given) :]
    for name in options:
        if name not in known:
            have = ", ".join(f"--{n}" for n in known) or "none"
            raise UserError(f"--{name} is no option of {form or src}; have: {have}")
    return reader(*given, **options)


def _source(src: str, form: str, options: Mapping[str, Any]) -> dict:
    """What is read, so that it is known again: names, options, and of files sizes and times."""
    found: dict[str, Any] = {"src": src, "format": form, "options": dict(options)}
    if form:
        path = Path(src)
        files = walk(path, bool(options.get("follow_links"))).files if path.exists() else []
        state = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        found |= {
            "src": str(path.resolve()),
            "files": len(files),
            "state": hashlib.sha256(repr(state).encode()).hexdigest(),
        }
    return found


def _tokenizer(dst: Path, vocabulary: int, given: str) -> None:
    """Puts a tokenizer beside the records, unless there is one."""
    path = dst / store.TOKENIZER
    if path.exists():
        return
    save(bpe.load(given) if given else train_tokenizer([dst], vocabulary), path)


def train_tokenizer(paths: Sequence[str | Path], vocabulary: int) -> Tokenizer:
    """A tokenizer of the training texts of one or several data sets, as many of each at most.

    Raises:
        UserError: for a data set that is not there, or too small a vocabulary.
    """
    sets = [pipeline.open_split(path, "train") for path in paths]
    most = TOKENIZER_TEXTS // len(sets)
    texts = (part[i].caption for part in sets for i in range(min(len(part), most)))
    return bpe.train(texts, vocabulary)


def save(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes a tokenizer.json, whole or not at all."""
    draft = Path(path).with_suffix(".tmp")
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
    tokenizer = bpe.load(Path(path) / store.TOKENIZER)
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
