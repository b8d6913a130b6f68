"""WebDataset: tar files in which members of one name up to the first dot are one record."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mmjax.batch import Image, Text
from mmjax.data.formats import picture
from mmjax.data.formats.caption import parsed, worded, writable
from mmjax.data.formats.files import damaged, label, listed, split_of, utf8
from mmjax.data.formats.picture import checked
from mmjax.data.record import Item, Record

ENDINGS = (".tar", ".tar.gz", ".tgz")
WORDS = ("txt", "caption")
_DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)


class Member(NamedTuple):
    """A file in a shard.

    key: of its record. ending: what follows the first dot. read: its bytes.
    """

    key: str
    ending: str
    read: Callable[[], bytes]


def items(path: Path) -> Iterator[Item]:
    """The records of a shard, or of every .tar, .tar.gz and .tgz below a folder.

    A record is one or more pictures and a caption in .txt, .caption or .json ("caption" or
    "text"); other members are left out. First-level folders train, validation and test are splits.
    Of a shard that breaks off, the records before that are kept.

    Raises:
        UserError: if there are none.
    """
    root, files = listed(path, ENDINGS)
    return (item for file in files for item in _shard(file, root))


def _shard(file: Path, root: Path) -> Iterator[Item]:
    name, split = label(file, root), split_of(file, root)
    group: list[Member] = []
    try:
        for member in _members(file):
            if group and member.key != group[0].key:
                yield _item(name, group, split)
                group = []
            group.append(member)
    except _Cut as cut:
        # Between two members: what came is whole.
        if group:
            yield _item(name, group, split)
        yield damaged(name, str(cut))
    except _DAMAGE as error:
        # Within a member of the record begun.
        where = f" in record {group[0].key}" if group else ""
        yield damaged(name, f"breaks off{where}: {error}")
    else:
        if group:
            yield _item(name, group, split)


class _Cut(Exception):
    """A shard ends between two members without tar's end mark, or goes on behind one."""


def _members(file: Path) -> Iterator[Member]:
    """The files in a shard, in order.

    Raises:
        _Cut: if it is not whole. TarError, OSError, EOFError, zlib.error: if it is damaged.
    """
    packed = not file.name.lower().endswith(".tar")
    with gzip.open(file) if packed else file.open("rb") as raw:
        with tarfile.open(fileobj=raw, mode="r|" if packed else "r:") as tar:  # type: ignore
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it remembers every member
                path = PurePosixPath(info.name)
                stem, _, ending = path.name.partition(".")
                if not info.isreg() or not stem or not ending:
                    continue
                key, ending = str(path.with_name(stem)), ending.lower()
                if not _wanted(ending):
                    continue
                if packed:  # cannot be gone back in
                    try:
                        stream = tar.extractfile(info)
                        data = stream.read() if stream else b""
                    except _DAMAGE:
                        yield Member(key, ending, bytes)  # so the record before it is complete
                        raise
                    yield Member(key, ending, partial(bytes, data))
                else:
                    yield Member(key, ending, partial(_slice, file, info.offset_data, info.size))
            if not _ends(tar):
                raise _Cut(f"does not end where it should, at byte {tar.offset:,}")


def _wanted(ending: str) -> bool:
    return ending in (*WORDS, "json") or f".{ending}".endswith(picture.ENDINGS)


def _slice(file: Path, start: int, size: int) -> bytes:
    with file.open("rb") as raw:
        raw.seek(start)
        return raw.read(size)


def _ends(tar: tarfile.TarFile) -> bool:
    """Whether the last header read was the end mark, two empty blocks and nothing behind.

    tarfile itself takes a damaged header for the end.
    """
    stream = tar.fileobj
    assert stream is not None
    stream.seek(tar.offset + tarfile.BLOCKSIZE)
    found = False
    while chunk := stream.read(1 << 20):
        if chunk.strip(b"\0"):
            return False
        found = True
    return found


def _item(shard: str, group: list[Member], split: str | None) -> Item:
    source = f"{shard}:{group[0].key}"
    return Item(source, partial(_record, source, group), split)


def _record(id: str, group: list[Member]) -> Record:
    """A record's members -> caption, then pictures.

    Raises:
        ValueError: if something is missing, twice there, or damaged.
    """
    endings = [member.ending for member in group]
    twice = [ending for ending in endings if endings.count(ending) > 1]
    if twice:
        raise ValueError(f"two members end in .{twice[0]}")
    pictures = [m for m in group if f".{m.ending}".endswith(picture.ENDINGS)]
    if not pictures:
        raise ValueError(f"no picture among .{', .'.join(endings)}")
    caption = _caption({m.ending: m for m in group})
    images = [Image(checked(m.read())) for m in pictures]
    return Record(writable(id, "member name"), (Text(caption), *images))


def _caption(members: dict[str, Member]) -> str:
    for ending in WORDS:
        if ending in members:
            return worded(utf8(members[ending].read()))
    if "json" not in members:
        raise ValueError("no caption: neither .txt, .caption nor .json")
    found = parsed(members["json"].read())
    if not isinstance(found, dict):
        raise ValueError(".json is not an object")
    return worded(found.get("caption", found.get("text")))
