"""Building, describing and showing data sets on disk."""

import collections
import io
import os
from collections.abc import Mapping
from pathlib import Path

import PIL.Image

from mmjax.data import openmoji, pipeline
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.sheet import Cell, sheet

# Data sets mmjax can make by itself: name -> function of the destination.
BUILDERS: Mapping = {"openmoji": openmoji.build}
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "validation", "test", "compositional")


def build(src: str, dst: str | Path, vocabulary: int) -> None:
    """Builds a data set and trains its tokenizer on the training captions.

    Raises:
        UserError: for an unknown source.
    """
    if src not in BUILDERS:
        raise UserError(f"--src={src} is unknown; have: {', '.join(BUILDERS)}")
    BUILDERS[src](dst)
    path = Path(dst) / TOKENIZER
    if path.exists():
        return
    read = pipeline.SOURCES[src](dst, "train")
    tokenizer = bpe.train((read[i]["caption"] for i in range(len(read))), vocabulary)
    draft = path.with_suffix(".tmp")
    tokenizer.save(str(draft))
    os.replace(draft, path)


def describe(path: str | Path) -> dict[str, dict[str, float]]:
    """Counts by split: documents, pictures, concepts, caption tokens, bytes, captions seen before.

    `repeated` counts captions that stand in an earlier split too.
    """
    read = pipeline.SOURCES[pipeline.source_of(path)]
    tokenizer = bpe.load(Path(path) / TOKENIZER)
    seen: set[str] = set()
    table = {}
    for split in SPLITS:
        count: collections.Counter = collections.Counter()
        concepts, captions = set(), set()
        source = read(path, split)
        for i in range(len(source)):
            record = source[i]
            count["documents"] += 1
            count["pictures"] += 1
            count["tokens"] += len(bpe.encode(tokenizer, record["caption"]))
            count["bytes"] += len(record["image"])
            count["repeated"] += record["caption"] in seen
            concepts.add(record["concept"])
            captions.add(record["caption"])
        seen |= captions
        table[split] = dict(count) | {"concepts": len(concepts)}
    return table


def show(path: str | Path, split: str, out: str | Path, count: int) -> None:
    """Writes a contact sheet of `count` records, evenly spaced over the split."""
    source = pipeline.SOURCES[pipeline.source_of(path)](path, split)
    step = max(len(source) // count, 1)
    cells = []
    for i in range(0, min(len(source), step * count), step):
        record = source[i]
        with PIL.Image.open(io.BytesIO(record["image"])) as picture:
            cells.append(Cell([pipeline.flatten(picture)], [record["caption"]]))
    sheet(cells, out, f"{split}: {len(cells)} of {len(source)}")
