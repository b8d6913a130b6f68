"""WebDataset: tar files in which members of one name up to the first dot are one record."""

import collections
import gzip
import itertools
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from mmjax.batch import Image, Text
from mmjax.data.formats import picture
from mmjax.data.formats.caption import parsed, worded, writable
from mmjax.data.formats.files import (
    HIDDEN,
    composed,
    damaged,
    ignored,
    label,
    listed,
    rest,
    split_of,
    utf8,
)
from mmjax.data.formats.picture import checked
from mmjax.data.record import Item, Record
from mmjax.data.source import BYTES, opened

ENDINGS = (".tar", ".tar.gz", ".tgz")
IMAGES = (*picture.ENDINGS, *picture.UNREAD)
WORDS = (".txt", ".caption", ".json")
HEADERS = 1 << 20  # most bytes of headers before a member
MEMBERS = 1000  # most of one name
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)


class Member(NamedTuple):
    """A file in a shard.

    path: within it. read: its bytes.
    """

    path: PurePosixPath
    read: Callable[[], bytes]

    @property
    def key(self) -> str:
        """Its path up to the first dot of its name, which the members of a record share."""
        return composed(self.path.with_name(self.path.name.partition(".")[0]))

    @property
    def stem(self) -> str:
        """Its path up to the last dot of its name."""
        return composed(self.path.with_suffix(""))

    @property
    def ending(self) -> str:
        """What follows from the last dot on."""
        return self.path.suffix.lower()


Run = list[Member]  # that follow one another and share their key


def items(path: Path, follow_links: bool = False) -> Iterator[Item]:
    """The records of a shard, or of every .tar, .tar.gz and .tgz below a folder.

    A record is one or more images and a caption in .txt, .caption or .json ("caption" or "text").
    Its members share their name up to the first dot or, where that gives no whole records and the
    last dot does (22.05.png, 22.05.txt), up to that. They follow one another; in a shard that is
    not packed they need not. Other members are left out and counted. First-level folders train,
    validation and test are splits. Of a shard that breaks off, the records before that are kept.
    What else lies in the folder comes last.

    Raises:
        UserError: if there are none.
    """
    tree, files = listed(path, ENDINGS, follow_links)
    found = (item for file in files for item in _shard(file, tree.root))
    return itertools.chain(found, rest(tree, {*files}))


def _is_packed(file: Path) -> bool:
    return not file.name.lower().endswith(".tar")


def _shard(file: Path, root: Path) -> Iterator[Item]:
    name, split, packed = label(file, root), split_of(file, root), _is_packed(file)
    known: collections.Counter = collections.Counter()
    runs = _runs(file, name)
    for found in runs if packed else _gathered(runs):
        if isinstance(found, Item):
            yield found
            continue
        for key, group in _records(found):
            known[key] += 1
            source = f"{name}:{key}" + (f":{known[key]}" if known[key] > 1 else "")
            yield Item(source, partial(_record, source, key, group, packed), split)


def _runs(file: Path, name: str) -> Iterator[Run | Item]:
    """A shard's members in runs, and items for all else: what is ignored, and where it breaks."""
    run: Run = []
    try:
        for found in _members(file, name):
            if isinstance(found, Item):
                yield found
                continue
            if run and found.key != run[0].key:
                yield run
                run = []
            if len(run) < MEMBERS:
                run.append(found)
            else:
                yield damaged(f"{name}:{found.path}", f"more than {MEMBERS:,} members of one name")
    except _Cut as cut:
        # Between two members: what came is whole.
        if run:
            yield run
        yield damaged(name, str(cut))
    except _DAMAGE as error:
        # Within a member of the record begun.
        where = f" in record {run[0].key}" if run else ""
        yield damaged(name, f"breaks off{where}: {error}")
    else:
        if run:
            yield run


def _gathered(runs: Iterable[Run | Item]) -> Iterator[Run | Item]:
    """Runs with those of one key together, in place of the first, that lack something alone."""
    known, parts = list(runs), collections.defaultdict(list)
    for found in known:
        if not isinstance(found, Item) and not _is_whole(found):
            parts[found[0].key].append(found)
    for found in known:
        if isinstance(found, Item) or _is_whole(found):
            yield found
        elif some := parts.pop(found[0].key, None):
            yield [member for run in some for member in run]


def _is_whole(group: Sequence[Member]) -> bool:
    endings = {member.ending for member in group}
    return not endings.isdisjoint(IMAGES) and not endings.isdisjoint(WORDS)


def _records(run: Run) -> Iterator[tuple[str, Run]]:
    """A run's records, by name: all of it, unless names up to the last dot give whole ones."""
    groups: dict[str, Run] = {}
    for member in run:
        groups.setdefault(member.stem, []).append(member)
    captioned = any(member.ending in WORDS and member.stem == member.key for member in run)
    if all(map(_is_whole, groups.values())) or not captioned:
        yield from groups.items()
    else:
        yield run[0].key, run


class _Cut(Exception):
    """A shard ends between two members without tar's end mark, goes on behind one, or too far."""


def _members(file: Path, name: str) -> Iterator[Member | Item]:
    """The files in a shard that make records, in order, and items for its other members.

    Raises:
        _Cut: if it is not whole. TarError, OSError, EOFError, zlib.error: if it is damaged.
    """
    packed = _is_packed(file)
    key, held = "", 0  # bytes of the members of a name, which a packed shard's record holds at once
    with opened(file) as under, gzip.open(under) if packed else under as raw:
        stream = _Stream(raw)
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it remembers every member
                stream.left = HEADERS
                path = PurePosixPath(info.name)
                if info.isdir():
                    continue
                if other := _other(info, path, name):
                    yield other
                    continue
                member = Member(path, partial(_slice, file, info.offset_data, info.size))
                held = info.size + (held if member.key == key else 0)
                key = member.key
                if (held if packed else info.size) > BYTES:
                    yield Member(path, _too_large)
                elif packed:  # cannot be gone back in
                    raw.seek(info.offset_data)
                    data, short = _read(raw, info.size)
                    yield Member(path, partial(bytes, data))
                    if short:  # told now, so that the record before it is complete
                        raise short
                else:
                    yield member
            if not _ends(tar.offset, raw):
                raise _Cut(f"does not end where it should, at byte {tar.offset:,}")


class _Stream:
    """A tar's bytes; between two members headers may take so many and no more."""

    def __init__(self, raw: BinaryIO | gzip.GzipFile):
        self._raw, self.left = raw, HEADERS
        self.seek, self.tell = raw.seek, raw.tell

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            _Cut: if they are too many.
        """
        self.left -= size
        if self.left < 0:
            raise _Cut(f"cannot be read from here on: a header has more than {HEADERS:,} bytes")
        return self._raw.read(size)


def _read(raw: BinaryIO | gzip.GzipFile, size: int) -> tuple[bytes, Exception | None]:
    """A member's bytes, or none and why."""
    try:
        data = raw.read(size)
    except _DAMAGE as error:
        return b"", error
    if len(data) < size:
        return b"", tarfile.ReadError("unexpected end of data")
    return data, None


def _too_large() -> bytes:
    raise ValueError(f"an image and its caption have more than {BYTES:,} bytes")


def _other(info: tarfile.TarInfo, path: PurePosixPath, name: str) -> Item | None:
    """The item of a member that can be no part of a record; None if it can."""
    if not info.isreg():
        return damaged(f"{name}:{path}", "a link, a pipe or a device, which is not read")
    if info.issparse():
        return damaged(f"{name}:{path}", "has holes (a sparse file), which are not read")
    if path.name.startswith("."):
        return ignored(f"{name}:{path}", HIDDEN)
    if path.suffix.lower() not in (*WORDS, *IMAGES):
        return ignored(f"{name}:{path}", path.suffix.lower() or "no ending")
    return None


def _slice(file: Path, start: int, size: int) -> bytes:
    with opened(file) as raw:
        raw.seek(start)
        return raw.read(size)


def _ends(at: int, raw: BinaryIO | gzip.GzipFile) -> bool:
    """Whether a header read at `at` was the end mark, two empty blocks and nothing behind.

    tarfile itself takes a damaged header for the end.
    """
    raw.seek(at + tarfile.BLOCKSIZE)
    found = False
    while chunk := raw.read(1 << 20):
        if chunk.strip(b"\0"):
            return False
        found = True
    return found


def _record(id: str, key: str, group: Run, packed: bool) -> Record:
    """A record's members -> caption, then images.

    Raises:
        ValueError: if something is missing, twice there, or damaged.
    """
    names = [member.path.name for member in group]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two members are called {twice[0]}")
    for what, endings in (("image", picture.ENDINGS), ("caption", WORDS)):
        if not any(member.ending in (IMAGES if what == "image" else WORDS) for member in group):
            raise ValueError(_lacks(what, endings, key, names, packed))
    caption = _caption({m.ending: m for m in group if m.ending in WORDS})
    images = [Image(checked(m.read())) for m in group if m.ending in IMAGES]
    return Record(writable(id, "member name"), (Text(caption), *images))


def _lacks(what: str, endings: Sequence[str], key: str, names: Sequence[str], packed: bool) -> str:
    base = PurePosixPath(key).name
    remedy = f"; call the {what} {base}{endings[0]}"
    if packed:
        remedy += ", and put it beside these, or unpack the shard, whose members then need no order"
    wanted = " ".join(f"{base}{ending}" for ending in endings)
    return f"no {what}: looked for {wanted}; there is {', '.join(names)}{remedy}"


def _caption(members: dict[str, Member]) -> str:
    for ending in WORDS[:-1]:
        if ending in members:
            return worded(utf8(members[ending].read()))
    found = parsed(members[WORDS[-1]].read())
    if not isinstance(found, dict):
        raise ValueError(".json is not an object")
    text = found.get("caption")
    return worded(found.get("text") if text is None else text)
