"""Source -> document -> tokens -> packed rows -> batches: one iterator, exact on resume."""

import contextlib
import hashlib
import importlib.metadata
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import grain
import numpy as np
from tokenizers import Tokenizer

from mmjax import paths
from mmjax.batch import Batch, Document, Image, Vocabulary
from mmjax.config import DataConfig
from mmjax.data import integrity, steps, store
from mmjax.data import tokenizer as bpe
from mmjax.data.kinds import encoded, with_kinds
from mmjax.data.mixture import mix, stream
from mmjax.data.naming import Labelled, naming, one_by_one
from mmjax.data.pack import BatchIterDataset, Piece, Place, Shape, join, join_pictures
from mmjax.data.pixels import decode_all, start_worker
from mmjax.data.record import Records
from mmjax.data.sets import prepared
from mmjax.data.spans import move_spans
from mmjax.data.transform import TEMPLATES, to_document
from mmjax.error import UserError, near, unknown

# Data sets whose directories lie in TFDS's own form; all others are read by `store`.
OPENMOJI = "dataset_info.json"
BOTTLENECKS = ("none", "lowres", "registers")


def check(c: DataConfig) -> None:
    """Checks names that only the data engine knows.

    Raises:
        UserError: for an unknown way of resizing, template or bottleneck, or a bottleneck that
            does not go with the rest.
    """
    for size in c.sizes:
        steps.check(c.resize, size)
        steps.check(c.resize_prompt or c.resize, size, "data.resize_prompt")
    if c.bottleneck not in BOTTLENECKS:
        raise UserError(f"data.bottleneck={c.bottleneck!r} {unknown(c.bottleneck, BOTTLENECKS)}")
    if c.bottleneck == "lowres" and c.coded:
        raise UserError(
            "data.bottleneck='lowres' shrinks pictures before they are coded; give data.coded=False"
        )
    if c.bottleneck == "lowres" and (c.shrink < 2 or c.image % c.shrink):
        raise UserError(
            f"data.shrink={c.shrink} must be at least 2 and divide data.image={c.image}; try 2 or 4"
        )
    if c.resize_prompt and c.spans:
        raise UserError(
            f"data.resize_prompt={c.resize_prompt!r} is for conversations, whose prompts are told "
            f"from answers; data.spans={c.spans} moves both: give 0, or resize_prompt=''"
        )
    if c.bottleneck == "registers" and c.spans:
        raise UserError(
            f"data.bottleneck='registers' has an order that data.spans={c.spans} breaks; give 0"
        )
    for name, source in c.sources.items():
        if source.template not in ("", *TEMPLATES):
            raise UserError(
                f"data.sources.{name}.template={source.template!r} is unknown"
                f"{near(source.template, TEMPLATES)}; have: '' (documents as they are), "
                f"{', '.join(TEMPLATES)}"
            )


def tokenizer_of(c: DataConfig) -> Tokenizer:
    """The run's tokenizer: the one named, or that of the first data set; registers if it needs."""
    first = next(iter(c.sources))
    if not c.tokenizer:
        records(c, first, "train")  # says which command builds a missing data set
    found = bpe.load(c.tokenizer or path_of(c, first) / store.TOKENIZER)
    return bpe.with_registers(found) if c.bottleneck == "registers" else found


def path_of(c: DataConfig, name: str) -> Path:
    """Where a source lies: with `coded`, beside its pictures, where `mmjax tokenize` put it."""
    path = paths.of(c.sources[name].path)
    return store.coded(path) if c.coded else path


def records(c: DataConfig, name: str, split: str) -> Records:
    """One source's records of one split.

    Raises:
        UserError: for data that is not there (naming what builds it).
    """
    path = path_of(c, name)
    if c.coded and not path.is_dir():
        raise UserError(
            f"data.coded=True, but there is no {path}; make it with `mmjax tokenize --config=... "
            f"--workdir=...` of the codec, or give data.coded=False"
        )
    if not path.is_dir():
        known = ("openmoji", "scenes", "digits", "prose")
        src = name if name in known else "FOLDER --format=folder"
        how = ", with the options at the head of the experiment" if name == "scenes" else ""
        raise UserError(
            f"no data set in {path}; make it with `mmjax data build --src={src} --dst={path}`{how}"
        )
    return open_split(path, split)


def open_split(path: str | Path, split: str) -> Records:
    """The records of one split of a data set's directory.

    Raises:
        UserError: if there is no such data set or split.
    """
    if (paths.of(path) / OPENMOJI).is_file():
        return prepared.read(path, split)
    return store.read(path, split)


def splits(path: str | Path) -> list[str]:
    """The names of a data set's splits, train first.

    Raises:
        UserError: if there is no such data set.
    """
    if (paths.of(path) / OPENMOJI).is_file():
        return list(prepared.SPLITS)
    return list(store.info(path)["splits"])


def digest(path: str | Path) -> str:
    """What a data set's content follows from: the same records have the same."""
    if (paths.of(path) / OPENMOJI).is_file():
        return hashlib.sha256((paths.of(path) / OPENMOJI).read_bytes()).hexdigest()
    return store.info(path)["digest"]


def fingerprint(c: DataConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the order and content of batches follow from, besides configuration and seed.

    Raises:
        UserError: for files that are not those a data set was made with.
    """
    paths = {name: path_of(c, name) for name in c.sources}
    return {
        "sources": {name: digest(path) for name, path in paths.items()},
        "files": {name: integrity.summary(path) for name, path in paths.items()},
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "packages": {p: importlib.metadata.version(p) for p in ("grain", "numpy", "tokenizers")},
    }


def check_same_files(c: DataConfig, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Checks that the sources' records are those of before, where the `files` of theirs differ.

    Raises:
        UserError: if not; see `integrity.check_same`.
    """
    integrity.check_same({name: path_of(c, name) for name in c.sources}, old, new)


def to_pieces(
    c: DataConfig,
    tokenizer: Tokenizer,
    vocab: Vocabulary,
    rng: np.random.Generator,
    documents: Sequence[Document],
    places: Sequence[str] = (),
) -> list[Piece]:
    """Documents -> positions, pictures still encoded; `rng` draws CM3's spans.

    places: where the documents stand, for errors of their pictures.
    """
    how = c.counts, c.shared_position
    pieces = bpe.lay_out_all(documents, tokenizer, vocab, *how, ends=c.ends)
    where = places or [""] * len(documents)
    for piece, document, place in zip(pieces, documents, where, strict=True):
        pictures = [p for p in document if isinstance(p, Image)]
        piece["pictures"] = [encoded(c, p, place) for p in pictures]
        piece["kinds"] = [p.kind for p in pictures]
    if c.spans == 0.0:
        return pieces
    return [move_spans(p, rng, vocab, c.spans, c.spans_fixed, c.length) for p in pieces]


def stages(c: DataConfig, steps: int) -> list[tuple[int, dict[str, float]]]:
    """(first step, source -> weight) of each stage of the mixture, in order."""
    if not c.stages:
        return [(0, {name: s.weight for name, s in c.sources.items()})]
    ends = [0.0, *(s.until for s in c.stages.values())]
    return [
        (round(begin * steps), dict(s.weights))
        for begin, s in zip(ends, c.stages.values(), strict=False)
    ]


def shape_of(c: DataConfig) -> Shape:
    """The shape of a training row.

    Raises:
        UserError: if the sources were not coded alike.
    """
    if not c.coded:
        return plain_shape(c, c.length, c.images)
    alike = {name: coding(c, name) for name in c.sources}
    first, about = next(iter(alike.items()))
    for name, other in alike.items():
        if other != about:
            raise UserError(
                f"data sources {first} and {name} were coded by different codecs ({about} and "
                f"{other}); tokenize both with one"
            )
    for field in ("image", "resize", "resize_prompt"):
        was, wanted = about.get(field, ""), getattr(c, field)
        if was != wanted:
            raise UserError(
                f"{path_of(c, first)} was made with data.{field}={was!r}, not {wanted!r}; remove "
                f"it and tokenize again"
            )
    if c.resize_prompt:
        _check_prompts(c)
    if about["dtype"] == "int32":
        return Shape(c.length, c.images, 0)
    size, _, channels = about["shape"]
    return Shape(c.length, c.images, size, channels, about["dtype"])


def _check_prompts(c: DataConfig) -> None:
    """Checks that sources were coded by the templates they are read by, which tell prompts."""
    for name, source in c.sources.items():
        was = store.info(path_of(c, name))["source"]["template"]
        if was != source.template:
            raise UserError(
                f"{path_of(c, name)} was made with data.sources.{name}.template={was!r}, not "
                f"{source.template!r}, and data.resize_prompt depends on it; remove it and "
                f"tokenize again"
            )


def plain_shape(c: DataConfig, length: int, images: int) -> Shape:
    """The shape of a row whose pictures are pixels, on a canvas that holds every kind."""
    canvas = max(h for h, _ in c.sizes), max(w for _, w in c.sizes)
    return Shape(length, images, c.image, canvas=canvas if c.kinds else None)


def coding(c: DataConfig, name: str) -> dict[str, Any]:
    """How a source was coded: what `mmjax tokenize` noted."""
    return store.info(path_of(c, name))["source"]["coded"]


def documents(
    c: DataConfig,
    tokenizer: Tokenizer,
    vocab: Vocabulary,
    seed: int,
    stage: int,
    weights: Mapping,
):
    """A stage's stream: a function from a window of document numbers to laid-out documents."""
    parts = [
        stream(source, one, seed + number + 1000 * stage, name)
        for number, (name, source) in enumerate(c.sources.items())
        for one in [Labelled(records(c, name, "train"), f"{path_of(c, name)}, split train")]
    ]
    mixed = mix(parts, [weights[name] for name in c.sources])

    def read(numbers: range) -> list[Piece]:
        # One generator a window: one a document would take as long as reading it.
        rng = np.random.default_rng((seed, stage, numbers.start))
        places, drawn = [], []
        for name, record in (mixed[n] for n in numbers):
            with naming(record.place):
                document = to_document(c, c.sources[name].template, record, rng)
                drawn.append(with_kinds(c, document, name))
            places.append(record.place)
        return one_by_one(partial(to_pieces, c, tokenizer, vocab, rng), drawn, places)

    return read


class Batches:
    """An endless iterator of host batches; its state is four integers.

    The batch of a given number is the same whatever the number of processes and workers.
    """

    def __init__(self, make: Callable[..., BatchIterDataset], begin: Callable, workers: int):
        """`make`: the stream but for its last arguments. `begin`: see `begin_rows`.

        `workers`: processes that decode pictures; 0 leaves it to the thread that reads. They are
        started afresh ("spawn"), so a script that has some needs its `if __name__ == "__main__"`.
        """
        self._make, self._begin, self._workers = make, begin, workers
        self._place = Place()
        self._iterator: grain.DatasetIterator | None = None
        self._pool: ProcessPoolExecutor | None = None

    def _open(self) -> grain.DatasetIterator:
        if self._workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, context, start_worker)
        begin = partial(self._begin, pool=self._pool)
        source = self._make(build=begin, ahead=2 * self._workers, start=self._place)
        return iter(grain.experimental.ThreadPrefetchIterDataset(source, prefetch_buffer_size=2))

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = self._open()
        self._place, batch = next(self._iterator)
        return batch

    @property
    def left_out(self) -> int:
        """Documents left out so far because they are larger than a row."""
        return self._place.left_out

    def get_state(self) -> dict[str, int]:
        """JSON-able; where the next batch begins."""
        return self._place._asdict()

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes to where `state` was taken, by whatever number of processes and workers."""
        self.close()
        self._place = Place(**state)

    def close(self) -> None:
        """Stops threads and workers."""
        if self._iterator is not None:
            self._iterator.close()
        if self._pool is not None:
            if self._pool._broken and sys.version_info < (3, 11, 5):  # type: ignore[attr-defined]
                # A pool that lost a worker may wait for ever for someone to take its work (CPython
                # issue 94777); with no reader left it cannot. Later ones close it themselves.
                self._pool._call_queue._reader.close()  # type: ignore[attr-defined]
            self._pool.shutdown(cancel_futures=True)
        self._iterator, self._pool = None, None


def train_batches(
    c: DataConfig,
    tokenizer: Tokenizer,
    batch: int,
    steps: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    vocab: Vocabulary | None = None,
) -> Batches:
    """This process's share of an endless stream of batches.

    Args:
        c: what to read. tokenizer: see `tokenizer_of`.
        batch: rows over all processes; divides by `processes`. steps: of the run, for its stages.
        seed: of order and drop-out. process: number of this one. processes: how many.
        vocab: the model's ids; default the tokenizer's.
    """
    vocab = vocab or bpe.vocabulary(tokenizer)
    for name in c.sources:
        records(c, name, "train")  # complains now rather than in a thread
    shape = shape_of(c)
    streams = [
        (first, partial(documents, c, tokenizer, vocab, seed, stage, weights))
        for stage, (first, weights) in enumerate(stages(c, steps))
    ]
    share = batch // processes
    mine = slice(process * share, (process + 1) * share)
    make = partial(BatchIterDataset, streams, c.window, shape, rows=batch, share=mine)
    begin = partial(begin_rows, shape, vocab)
    return Batches(make, begin, c.workers)


def begin_rows(
    shape: Shape, vocab: Vocabulary, rows, pool: ProcessPoolExecutor | None = None
) -> Callable[[], Batch]:
    """Packed rows of pieces -> a function that returns their batch, pictures decoded.

    With a pool, decoding begins now and there.
    """
    pictures = [data for row in rows for piece in row for data in piece["pictures"]]
    batch = join(rows, shape, vocab.pad)
    if shape.size == 0:  # codes, which are tokens already
        return lambda: batch
    decode = partial(decode_all, pictures)
    with worker_lost_is_one_line():
        decoded = pool.submit(decode).result if pool else decode

    def finish() -> Batch:
        with worker_lost_is_one_line():
            return join_pictures(batch, rows, decoded())

    return finish


@contextlib.contextmanager
def worker_lost_is_one_line() -> Iterator[None]:
    """Turns the end of a worker process, killed for its memory perhaps, into a UserError."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(f"a data worker was killed ({error}); lower data.workers") from error
