"""Source -> document -> tokens -> packed rows -> batches: one grain iterator, exact on resume."""

import io
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import grain
import numpy as np
import PIL.Image
from tokenizers import Tokenizer

from mmjax.batch import Batch, Document, Image, Text
from mmjax.config import DataConfig
from mmjax.data import openmoji
from mmjax.data import tokenizer as bpe
from mmjax.data.pack import PackIterDataset, Piece
from mmjax.error import UserError

# What reads each kind of data set: (path, split) -> random-access sequence of records with at
# least `caption` (str) and `image` (encoded bytes).
SOURCES: Mapping[str, Callable] = {"openmoji": openmoji.read}


def tokenizer_of(c: DataConfig) -> Tokenizer:
    """The run's tokenizer: the one named, or that of the first data set."""
    first = next(iter(c.sources.values()))
    if not c.tokenizer:
        records(c, next(iter(c.sources)), "train")  # says which command builds a missing data set
    return bpe.load(c.tokenizer or Path(first.path) / "tokenizer.json")


def records(c: DataConfig, name: str, split: str):
    """One source's records of one split; `name` is free, what lies at its path says how to read it.

    Raises:
        UserError: for data that is not there (naming what builds it) or of an unknown kind.
    """
    path = c.sources[name].path
    return SOURCES[source_of(path)](path, split)


def source_of(path: str | Path) -> str:
    """Which of SOURCES reads the data set in a directory.

    Raises:
        UserError: if there is none (naming the command that makes it) or one of another kind.
    """
    info = Path(path) / "dataset_info.json"
    command = f"mmjax data build --src={'|'.join(SOURCES)} --dst={path}"
    if not info.is_file():
        raise UserError(f"no data set in {path}; make it with `{command}`")
    try:
        kind = json.loads(info.read_text())["name"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{info} is damaged ({error!r}); remove {path}, then `{command}`"
        ) from error
    if kind not in SOURCES:
        raise UserError(f"{path} holds a data set {kind!r}; have readers for: {', '.join(SOURCES)}")
    return kind


def decode_image(data: bytes, size: int) -> np.ndarray:
    """Encoded picture -> [size, size, 3] uint8: shorter side resized (box), centre kept.

    Raises:
        UserError: if the bytes are no readable picture.
    """
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            picture = flatten(opened)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise UserError(f"a picture of {len(data)} bytes cannot be decoded: {error}") from error
    short = min(picture.size)
    left, top = (picture.width - short) // 2, (picture.height - short) // 2
    box = (left, top, left + short, top + short)
    if short != size or picture.size != (size, size):
        picture = picture.resize((size, size), PIL.Image.Resampling.BOX, box=box)
    return np.asarray(picture, np.uint8)


def flatten(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Any picture -> RGB, transparency laid on white."""
    if picture.mode.startswith("I;16"):  # 16 bits of grey, which convert() would clip to white
        picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        ground = PIL.Image.new("RGBA", picture.size, "white")
        return PIL.Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def to_document(c: DataConfig, record: dict, rng: np.random.Generator) -> Document:
    """Record -> document: caption first or picture first, or the picture alone."""
    text_first, keep = rng.random() < c.text_first, rng.random() >= c.caption_dropout
    image, text = Image(record["image"]), Text(record["caption"])
    if not keep:
        return [image]
    return [text, image] if text_first else [image, text]


def to_piece(c: DataConfig, tokenizer: Tokenizer, document: Document) -> Piece:
    """Document -> positions and decoded pictures."""
    vocab = bpe.vocabulary(tokenizer)
    piece = bpe.lay_out(document, tokenizer, vocab, c.patches, c.shared_position)
    pictures = [decode_image(p.data, c.image) for p in document if isinstance(p, Image)]
    shape = (0, c.image, c.image, 3)
    piece["pixels"] = np.stack(pictures) if pictures else np.zeros(shape, np.uint8)
    return piece


def stack(rows) -> Batch:
    """Rows -> one batch."""
    return Batch(*(np.stack(field) for field in zip(*rows, strict=True)))


def train_batches(
    c: DataConfig, batch: int, seed: int, process: int = 0, processes: int = 1
) -> grain.DatasetIterator:
    """An endless iterator of host batches of `batch` rows for this process.

    Its `get_state()` is a small JSON-able dict; `set_state` of it restores bit-exactly.
    """
    tokenizer = tokenizer_of(c)
    parts = []
    for number, name in enumerate(c.sources):
        source = grain.MapDataset.source(records(c, name, "train")).seed(seed + number)
        # Order and dropout are drawn before the processes part ways, or all would draw the same.
        documents = source.shuffle().random_map(partial(to_document, c))[process::processes]
        parts.append(documents.repeat().map(partial(to_piece, c, tokenizer)))
    mixed = grain.MapDataset.mix(parts, weights=[s.weight for s in c.sources.values()])
    # One reading thread: decoding a batch takes a few ms, and the cores belong to the model.
    read = mixed.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=c.window))
    rows = PackIterDataset(read, c.window, c.length, c.images, c.image)
    batches = rows.batch(batch, drop_remainder=True, batch_fn=stack)
    return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2))
