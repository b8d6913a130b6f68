"""Data sets on disk: ArrayRecord files of packed records, with one JSON file that names them.

DIR/dataset.json            what it holds; written last, so where it lies the records are whole
DIR/train-000000000.array_record ...
DIR/rejects.jsonl           damaged records: {"source", "reason"}
DIR/tokenizer.json
DIR/built.json              by which flags the tokenizer was made
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import grain

from mmjax import paths
from mmjax.data.record import Record, unpack
from mmjax.error import UserError, near

INFO = "dataset.json"
TOKENIZER = "tokenizer.json"
BUILT = "built.json"
REJECTS = "rejects.jsonl"
RECORDS = ".array_record"  # in the names of files of records
CODED = ".coded"  # behind the directory of the set the codes or latents are of


def info(path: str | Path) -> dict:
    """The contents of a data set's dataset.json.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    file = paths.of(path) / INFO
    try:
        found = json.loads(file.read_bytes())
        if isinstance(found["splits"], dict):
            return found
        raise ValueError("no table of splits")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} holds no data set; `mmjax data build` makes one") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); remove {path}, make it again") from error


def built(path: str | Path) -> dict:
    """By which flags a data set's tokenizer was made: `vocabulary`, `tokenizer`, its `digest`.

    {} for a set of an older version, which noted none.

    Raises:
        UserError: if they cannot be read.
    """
    file = paths.of(path) / BUILT
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
        if isinstance(found, dict):
            return found
        raise ValueError("no object")
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); remove it") from error


# An outline is of the last END bytes, where the index lies (before up to 64 kB of zeros), and of
# BLOCKS of BLOCK bytes.
END, BLOCK, BLOCKS = 1 << 17, 1 << 12, 16
AGAIN = "bring the old files back, or remove the set and make it again"


def outline(file: Path, known: str | None = None) -> str:
    """SHA-256 of a file's size, of its end, and of blocks evenly spaced over it.

    Raises:
        UserError: if it cannot be read, or is not the `known` one.
    """
    found = hashlib.sha256()
    try:
        file = paths.near(file)
        size = file.stat().st_size
        found.update(str(size).encode())
        with file.open("rb") as raw:
            for number in range(BLOCKS):
                raw.seek(size * number // BLOCKS)
                found.update(raw.read(BLOCK))
            raw.seek(max(size - END, 0))
            found.update(raw.read())
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise UserError(f"{file} {why}; {AGAIN}") from error
    if known not in (None, found.hexdigest()):
        raise UserError(f"{file} is not the file that was written when the set was made; {AGAIN}")
    return found.hexdigest()


def digest_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def chained(before: str, data: bytes) -> str:
    """The sum over a split's records so far, and one more, packed."""
    return hashlib.sha256(before.encode() + data).hexdigest()


def combined(sums: Mapping[str, str]) -> str:
    """The digest of a data set: of the sums of its splits."""
    return digest_of("".join(sums[split] for split in sorted(sums)))


def coded(path: Path) -> Path:
    """Where the codes or latents of a data set's pictures lie, beside it."""
    return path.with_name(path.name + CODED)


def left_out(path: str | Path, found: Mapping[str, Any]) -> str:
    """Lines on what was damaged or ignored, behind what is said before them, or nothing.

    Args:
        found: what `info` tells of the set, or nothing for one that TFDS wrote.
    """
    said = ""
    if count := found.get("rejected"):
        again = "; mend the source, remove the set and make it again to have them"
        said = f"\ndamaged and left out: {count:,}, named in {path}/{REJECTS}{again}"
    kinds = [
        f"{kind}: {one['count']:,} ({', '.join(one['names'])}"
        + (", ...)" if one["count"] > len(one["names"]) else ")")
        for kind, one in found.get("ignored", {}).items()
    ]
    return said + (f"\nignored, as no document is made of it: {'; '.join(kinds)}" if kinds else "")


@dataclass(frozen=True)
class Source:
    """Records of one split by number; picklable, and opens its files when first asked.

    A damaged record raises UserError when it is asked for.
    """

    path: Path
    split: str
    files: tuple[str, ...]
    length: int

    def __len__(self) -> int:
        return self.length

    def open(self) -> None:
        """Opens the files now.

        Raises:
            UserError: if one is missing or cut; else reading any record would.
        """
        self._raw  # noqa: B018

    @cached_property
    def _raw(self) -> Sequence[bytes]:
        files = [paths.near(self.path / name) for name in self.files]
        for name, file in zip(self.files, files, strict=True):
            if not file.is_file():
                missing = self.path / name
                raise UserError(f"{missing} is missing; remove {self.path}, make it again")
        try:
            found = grain.sources.ArrayRecordDataSource([*map(str, files)])
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.path}, {self.split}: a file is damaged ({error}); remove the set, make it "
                f"again"
            ) from error
        if len(found) != self.length:
            raise UserError(
                f"{self.path}, {self.split} holds {len(found):,} records, but {INFO} tells of "
                f"{self.length:,}; {AGAIN}"
            )
        return found

    def __getitem__(self, index) -> Record:
        index = range(self.length)[index]  # IndexError past the end, as iteration needs
        with self._damage(index):
            return unpack(self._raw[index])

    def packed(self) -> Iterator[bytes]:
        """Its records in order, as they lie there.

        Raises:
            UserError: if one is damaged.
        """
        for index in range(self.length):
            with self._damage(index):
                data = self._raw[index]
            yield data

    @contextlib.contextmanager
    def _damage(self, index: int) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.path}, {self.split}, record {index} is damaged; remove the set, make it "
                f"again: {error}"
            ) from error

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k != "_raw"}


def read(path: str | Path, split: str) -> Source:
    """The records of one split.

    Raises:
        UserError: if there is no such data set or split.
    """
    splits = info(path)["splits"]
    if split not in splits:
        hint = near(split, splits)
        raise UserError(f"{path} has no split {split!r}{hint}; have: {', '.join(splits)}")
    entry = splits[split]
    return Source(paths.of(path), split, tuple(entry["files"]), entry["documents"])
