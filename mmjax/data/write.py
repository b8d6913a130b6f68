"""Items -> a data set on disk: streamed, resumable after a kill, damaged records set aside."""

import dataclasses
import errno
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mmjax.data import store
from mmjax.data.record import Item, pack
from mmjax.data.split import DAMAGE, Shares, key_of, split_of
from mmjax.data.store import INFO, REJECTS
from mmjax.error import UserError
from mmjax.failure import REMEDIES
from mmjax.lock import LOCK

DRAFT = "progress.json"
# What is written becomes part of the set at the latest after so many items, bytes and seconds; a
# kill costs what came since.
ITEMS, BYTES, SECONDS = 5000, 256 << 20, 30.0
FILES = 128  # open at a time, one a split; a set with more splits gets more and smaller files
NAMED = 3  # files of each ending that are ignored, by name


@dataclass
class Draft:
    """How far a build has come; what progress.json holds.

    Attributes:
        source: what is being read; another source starts over.
        items: read so far, damaged ones included. rejected: damaged ones.
        ignored: kind of what was no record -> [how many, the first names].
        rejects: bytes of rejects.jsonl that count.
        shards: split -> [file, documents], in order.
        sums: split -> SHA-256 of the sum before and the record, from record to record.
        drawn: splits with records whose source does not tell it.
    """

    source: dict
    items: int = 0
    rejected: int = 0
    rejects: int = 0
    ignored: dict[str, list] = field(default_factory=dict)
    shards: dict[str, list[list]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    drawn: list[str] = field(default_factory=list)

    def documents(self, split: str) -> int:
        """How many a split has."""
        return sum(count for _, count in self.shards.get(split, ()))


def write(
    items: Iterable[Item],
    dst: str | Path,
    source: dict,
    shares: Shares,
    total: int | None = None,
    chosen: Mapping[str, str] | None = None,
) -> dict:
    """Writes items into the directory dst; the same call again goes on where a kill stopped it.

    Args:
        items: in an order that is the same every time.
        dst: new, empty, or left behind by such a call.
        source: JSON-able, says what is read; stored, and compared by the next call.
        shares: see `split.split_of`. total: number of items for the progress bar, where known.
        chosen: see `split.choose`; what is not there is drawn by shares.

    Returns:
        What dataset.json holds.

    Raises:
        UserError: if dst holds something else, no record could be read, or the disk is full.
    """
    dst = Path(dst)
    draft = _begin(dst, source)
    fresh = itertools.islice(iter(items), draft.items, None)
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"writing {dst}", total=total, completed=draft.items)
            for part in _parts(fresh, dst, draft, shares, chosen or {}):
                bar.update(task, completed=part.items, description=_title(dst, part))
    except OSError as error:
        why = str(error.strerror or error)
        handles = os.strerror(errno.EMFILE) in why  # ArrayRecord tells it in words alone
        remedy = REMEDIES[errno.EMFILE] if handles else "make room there"
        raise UserError(
            f"cannot write {dst}: {why}; {remedy}, and the same command goes on; or choose another "
            f"place"
        ) from error
    if not draft.shards:
        first = (dst / REJECTS).read_text().split("\n")[0] if draft.rejected else "no items"
        (dst / DRAFT).unlink()
        raise UserError(f"no record could be read ({first}); see {dst / REJECTS}, then build again")
    return _finish(dst, draft)


def _title(dst: Path, draft: Draft) -> str:
    return f"writing {dst}" + (f", {draft.rejected:,} damaged" if draft.rejected else "")


def _begin(dst: Path, source: dict) -> Draft:
    """The draft to go on with; removes what a kill left half-written.

    Raises:
        UserError: if dst is not ours to write into.
    """
    dst.mkdir(parents=True, exist_ok=True)
    draft = Draft(source)
    file = dst / DRAFT
    names = set(os.listdir(dst))
    if file.is_file():
        try:
            found = Draft(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise UserError(f"{file} is damaged ({error}); remove {dst}, begin again") from error
        if found.source == source:
            draft = found
    elif names - {REJECTS, LOCK}:
        raise UserError(f"{dst} holds something else; remove it, or name another place")
    kept = {name for shards in draft.shards.values() for name, _ in shards}
    for name in names:
        if name.split(".", 1)[-1].startswith("array_record") and name not in kept:
            (dst / name).unlink()
    with (dst / REJECTS).open("ab") as rejects:
        rejects.truncate(draft.rejects)
    _save(dst / DRAFT, dataclasses.asdict(draft))
    return draft


def _save(path: Path, values: dict) -> None:
    """Writes JSON so that a reader finds the old or the new file, whole."""
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w") as file:
        file.write(json.dumps(values, indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _parts(items: Iterator[Item], dst: Path, draft: Draft, shares, chosen) -> Iterator[Draft]:
    """Writes and commits part after part, yielding the draft now and then and after each."""
    while True:
        part = Part(dst, draft)
        done = True
        for item in items:
            part.add(item, shares, chosen)
            if part.count % 100 == 0:
                yield dataclasses.replace(draft, items=draft.items + part.count)
            if part.full():
                done = False
                break
        part.commit()
        yield draft
        if done:
            return


class Part:
    """Records between two commits: an open file a split, and damaged records in memory."""

    def __init__(self, dst: Path, draft: Draft):
        self._dst, self._draft = dst, draft
        self._files: dict[str, ArrayRecordWriter] = {}
        self._counts: dict[str, int] = {}
        self._sums = dict(draft.sums)
        self._rejects: list[str] = []
        self._drawn = {*draft.drawn}
        self._ignored = {kind: [n, [*names]] for kind, (n, names) in draft.ignored.items()}
        self._bytes, self._start = 0, time.monotonic()
        self.count = 0

    def full(self) -> bool:
        """Whether it is time to commit."""
        late = time.monotonic() - self._start > SECONDS
        many = len(self._files) >= FILES
        return self.count >= ITEMS or self._bytes >= BYTES or late or many

    def _name(self, split: str) -> str:
        return f"{split}-{self._draft.items:09d}.array_record"  # after the item it begins with

    def add(self, item: Item, shares: Shares, chosen: Mapping[str, str]) -> None:
        """Reads an item and writes it, or notes why it cannot be read."""
        self.count += 1
        if item.ignored:
            known = self._ignored.setdefault(item.ignored, [0, []])
            known[0] += 1
            known[1] += [item.source] if len(known[1]) < NAMED else []
            return
        try:
            record = item.read()
        except DAMAGE as error:
            reason = f"{error.args[0] if isinstance(error, KeyError) else error}"
            self._rejects.append(json.dumps({"source": item.source, "reason": reason}))
            return
        split = item.split
        if split is None:
            split = chosen.get(key_of(record)) or split_of(record, shares)
            self._drawn.add(split)
        data = pack(record)
        if split not in self._files:
            path = str(self._dst / self._name(split))
            self._files[split] = ArrayRecordWriter(path, "group_size:1")
            self._counts[split] = 0
        _or_os_error(self._files[split].write, data)
        self._counts[split] += 1
        self._sums[split] = store.chained(self._sums.get(split, ""), data)
        self._bytes += len(data)

    def commit(self) -> None:
        """Makes all of it part of the set."""
        for split, file in self._files.items():
            _or_os_error(file.close)
            entry = [self._name(split), self._counts[split]]
            self._draft.shards.setdefault(split, []).append(entry)
        self._draft.sums, self._draft.ignored = self._sums, self._ignored
        self._draft.drawn = sorted(self._drawn)
        with (self._dst / REJECTS).open("a") as file:
            file.writelines(line + "\n" for line in self._rejects)
            file.flush()
            os.fsync(file.fileno())
            self._draft.rejects = file.tell()
        self._draft.items += self.count
        self._draft.rejected += len(self._rejects)
        _save(self._dst / DRAFT, dataclasses.asdict(self._draft))


def _or_os_error(function, *args) -> None:
    """Calls into the ArrayRecord library, whose I/O errors are RuntimeErrors."""
    try:
        function(*args)
    except RuntimeError as error:
        raise OSError(str(error).split(";")[0][:200]) from error


def _rank(split: str) -> tuple[int, str]:
    """The usual splits in their usual order, then the others by name."""
    usual = ("train", "validation", "test")
    return (usual.index(split) if split in usual else len(usual), split)


def _finish(dst: Path, draft: Draft) -> dict:
    """Writes dataset.json and removes the draft."""
    if "train" not in draft.shards and draft.drawn:
        # All records share a key, or nearly: the largest split of those that were drawn trains.
        largest = max(draft.drawn, key=draft.documents)
        draft.shards["train"] = draft.shards.pop(largest)
        draft.sums["train"] = draft.sums.pop(largest)
    names = [name for shards in draft.shards.values() for name, _ in shards]
    found = {
        "source": draft.source,
        "documents": sum(map(draft.documents, draft.shards)),
        "rejected": draft.rejected,
        "ignored": {
            kind: {"count": count, "names": names}
            for kind, (count, names) in sorted(draft.ignored.items())
        },
        "splits": {
            split: {"documents": draft.documents(split), "files": [name for name, _ in shards]}
            for split, shards in sorted(draft.shards.items(), key=lambda kv: _rank(kv[0]))
        },
        "files": {name: store.outline(dst / name) for name in sorted(names)},
        "digest": store.combined(draft.sums),
    }
    _save(dst / INFO, found)
    (dst / DRAFT).unlink()
    return found
