"""Records that say where they stand, so that an error of a reader names file and record."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from mmjax.data.record import Record, Records
from mmjax.error import UserError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Labelled:
    """Records by number that say where they stand.

    place: of all of them: directory and split.
    """

    records: Records
    place: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        record = self.records[index]
        return replace(record, place=f"{self.place}, record {index} ({record.id})")


@contextlib.contextmanager
def naming(where: str) -> Iterator[None]:
    """Puts `where` before what a UserError says; to another error it adds a note.

    Those are faults of the code, whose traceback is to tell of which record it stumbled over.
    """
    try:
        yield
    except UserError as error:
        if not where:
            raise
        raise UserError(f"{where}: {error}") from error
    except Exception as error:
        error.add_note(f"(while reading {where})")
        raise


def one_by_one(
    function: Callable[[Sequence[T], Sequence[str]], R], some: Sequence[T], places: Sequence[str]
) -> R:
    """What a function makes of several things at once; if it fails, of which is found out."""
    try:
        return function(some, places)
    except Exception:
        for one, where in zip(some, places, strict=True):
            with naming(where):
                function([one], [where])
        raise
