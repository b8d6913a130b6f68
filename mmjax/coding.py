"""`mmjax tokenize`: what a trained codec makes of a data set's pictures, written once.

The pictures of a set in DIR become codes or latents in DIR.coded, a data set of its own with the
same documents, splits and tokenizer. A kill costs what came since the last commit of `data.write`;
the same command goes on, and the digest is that of a run never killed.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from mmjax import paths, start, watch
from mmjax.batch import Batch, Coded, Image
from mmjax.codecs import autoencoder
from mmjax.config import DataConfig
from mmjax.data import integrity, pipeline, store
from mmjax.data.pixels import Encoded, decode_all
from mmjax.data.record import Item, Record
from mmjax.data.transform import reads
from mmjax.data.write import write
from mmjax.error import UserError
from mmjax.lock import LOCK, held
from mmjax.models.codec import Parts
from mmjax.trained import Trained

AHEAD = 256  # records encoded at a time
ROWS = 64  # pictures given to the device at a time


def encode(parts: Parts, params, batch: Batch):
    """Pixels [b, 1, h, w, 3] of a batch -> codes [b, p] int32, or latents [b, h', w', c] f32."""
    return autoencoder.encode(parts.codec, params["codec"], batch.pixels[:, 0])


def in_parts(trained: Trained, function, pixels: np.ndarray) -> np.ndarray:
    """function(parts, params, batch) over pictures [n, h, w, 3], ROWS at a time."""
    out = []
    for first in watch.pieces(range(0, len(pixels), ROWS), "pictures", ROWS, len(pixels)):
        part = pixels[first : first + ROWS]
        flat = np.zeros((len(part), 1), np.int32)
        batch = Batch(flat, flat, flat, flat, flat, flat, part[:, None])
        out.append(trained.call(function, batch))
    return np.concatenate(out)


def coded(trained: Trained, pictures: Sequence[np.ndarray]) -> list[Coded]:
    """Pictures, uint8 [h, w, 3] of the codec's size -> what the codec makes of them."""
    if not pictures:
        return []
    found = in_parts(trained, encode, np.stack(pictures))
    found = found if found.dtype == np.int32 else found.astype(np.float16)
    return [Coded(x.tobytes(), str(x.dtype), x.shape) for x in found]


class Block:
    """Records that are encoded together, when the first of them is asked for."""

    def __init__(self, trained: Trained, records, numbers: range, c: DataConfig, template: str):
        self._trained, self._records, self._numbers = trained, records, numbers
        self._c, self._template = c, template
        self._done: list[Record | UserError] = []

    def read(self, number: int) -> Record:
        """Record `number` of the split, its pictures coded.

        Raises:
            UserError: if it, and not another of the block, is damaged.
        """
        if not self._done:
            self._done = self._encode()
        found = self._done[number - self._numbers.start]
        if isinstance(found, UserError):
            raise found
        return found

    def _encode(self) -> list[Record | UserError]:
        read: list[tuple[Record, list[np.ndarray]] | UserError] = []
        for n in self._numbers:
            try:
                record = self._records[n]
                read.append((record, decode_all(pictures(self._c, self._template, record))))
            except UserError as error:
                read.append(error)
        whole = [one for one in read if not isinstance(one, UserError)]
        made = iter(coded(self._trained, [p for _, shown in whole for p in shown]))
        return [one if isinstance(one, UserError) else with_codes(one[0], made) for one in read]


def with_codes(record: Record, made: Iterator[Coded]) -> Record:
    """A record whose pictures are their codes, the next of `made`."""
    document = tuple(
        dataclasses.replace(p, data=b"", coded=next(made)) if isinstance(p, Image) else p
        for p in record.document
    )
    return dataclasses.replace(record, document=document)


def pictures(c: DataConfig, template: str, record: Record) -> list[Encoded]:
    """A record's pictures, those of prompts by the mode for prompts, if there is one."""
    shown = record.images
    read = reads(template, record) if c.resize_prompt else [False] * len(shown)
    return [Encoded(p, c.image, c.resizes(not r)) for p, r in zip(shown, read, strict=True)]


def items(trained: Trained, path: Path, c: DataConfig, template: str) -> Iterator[Item]:
    """All documents of a data set, coded, split by split in order."""
    for split in pipeline.splits(path):
        records = pipeline.open_split(path, split)
        for first in range(0, len(records), AHEAD):
            numbers = range(first, min(first + AHEAD, len(records)))
            block = Block(trained, records, numbers, c, template)
            for n in numbers:
                yield Item(f"{split} {n}", partial(block.read, n), split)


def whole(path: Path) -> int:
    """Opens all of a data set's files -> how many records they hold.

    Raises:
        UserError: if one, or the tokenizer, is missing or cut. Read record by record, all that
            lies in it would be taken for damaged.
    """
    if not (path / store.TOKENIZER).is_file():
        raise UserError(f"{path / store.TOKENIZER} is missing; remove {path}, make it again")
    integrity.summary(path)  # complains of a file that is not the one that was written
    splits = [pipeline.open_split(path, split) for split in pipeline.splits(path)]
    for one in splits:
        if isinstance(one, store.Source):
            one.open()
    return sum(map(len, splits))


def check_prompts(c: DataConfig) -> None:
    """Checks that a picture has one place, in a prompt or not, if those of prompts have a mode.

    Raises:
        UserError: where two sources read one path by different templates, or one shows its pictures
            and asks for them.
    """
    found: dict[Path, str] = {}
    for name, source in c.sources.items() if c.resize_prompt else ():
        other = found.setdefault(paths.absolute(paths.of(source.path)), source.template)
        what = f"data.sources.{name}.template={source.template!r}"
        if source.template == "reconstruct":
            raise UserError(
                f"{what} shows the pictures it asks for, which data.resize_prompt="
                f"{c.resize_prompt!r} reads in two ways; give data.coded=False"
            )
        if other != source.template:
            raise UserError(
                f"{what}, but another source reads {source.path} by {other!r}, and data."
                f"resize_prompt={c.resize_prompt!r} depends on it; give each a copy of the data"
            )


def tokenize(c: DataConfig, trained: Trained) -> list[Path]:
    """Writes the codes or latents of every source of a configuration.

    Returns:
        The directories, one a source.

    Raises:
        UserError: if there is no codec, for pictures of another size, or a source whose files are
            not whole; see also `data.write`.
    """
    e = trained.run.experiment
    codec = getattr(e.model, "codec", None)
    if codec is None:
        raise UserError(
            f"--workdir holds a {e.family} without a codec; give that of a codec's training, or of "
            f"a model that has one"
        )
    if c.image != codec.image:
        raise UserError(
            f"config.data.image={c.image}, but the codec was trained at {codec.image}; give both "
            f"one size"
        )
    about = {"codec": start.digest(trained.params["codec"]), "image": c.image, "resize": c.resize}
    if c.resize_prompt:
        about |= {"resize_prompt": c.resize_prompt}
    if codec.codes:
        about |= {"dtype": "int32", "shape": [codec.tokens]}
    else:
        about |= {"dtype": "float16", "shape": [codec.side, codec.side, codec.quantiser.width]}
    check_prompts(c)
    made = []
    for source in c.sources.values():
        src = paths.of(source.path)
        dst, known, total = store.coded(src), pipeline.digest(src), whole(src)
        origin = {"coded": about, "of": known}
        if c.resize_prompt:
            origin |= {"template": source.template}
        if not (dst / store.INFO).is_file():
            with paths.made(dst, (store.INFO,), flag="source") as place, held(place / LOCK):
                write(items(trained, src, c, source.template), place, origin, {}, total)
                (place / store.TOKENIZER).write_bytes((src / store.TOKENIZER).read_bytes())
        elif store.info(dst)["source"] != origin:
            raise UserError(
                f"{dst} was made by another codec, of other data, or from pictures of another size "
                f"or mode; remove it first"
            )
        else:
            (dst / store.TOKENIZER).write_bytes((src / store.TOKENIZER).read_bytes())
        made.append(dst)
    return made
