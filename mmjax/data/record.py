"""What data sets are made of: a document with a name and what is known about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgpack

from mmjax.batch import Coded, Document, Image, Text


@dataclass(frozen=True)
class Record:
    """One document of a data set.

    Attributes:
        id: names it within the data set.
        document: its parts in order, pictures still encoded.
        facts: what else is known, of JSON's types: `concept` (documents of one concept never
            straddle two splits), `label`, `boxes`, `questions`, `language`, ...
        place: where it stands, for errors; it is no part of what is written.
    """

    id: str
    document: Document
    facts: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)

    @property
    def caption(self) -> str:
        """All its text, parts joined by a space."""
        return " ".join(part.text for part in self.document if isinstance(part, Text))

    @property
    def images(self) -> list[bytes]:
        """Its encoded pictures."""
        return [part.data for part in self.document if isinstance(part, Image)]


class Records(Protocol):
    """Records by number, from 0 on."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class Item(NamedTuple):
    """A record that may turn out to be damaged when it is read.

    Attributes:
        source: where it comes from, as a person would name it: "birds/owl.png", "a.jsonl:17".
        read: makes the record; raises OSError, ValueError or KeyError, saying what is wrong, for
            damaged data. Called at most once, before the next item is asked for.
        split: "train", "validation", "test", ... where the source itself tells; else None.
        ignored: of what is no record but lies among them, what kind that is: ".xmp", "hidden".
    """

    source: str
    read: Callable[[], Record]
    split: str | None = None
    ignored: str = ""


def pack(record: Record) -> bytes:
    """Record -> bytes (MessagePack)."""
    parts: list[dict[str, Any]] = []
    for p in record.document:
        if isinstance(p, Text):
            parts.append({"text": p.text, "loss": p.loss})
        elif not isinstance(p, Image):
            raise TypeError(f"a record holds Text and Image, not {type(p).__name__}")
        else:
            parts.append({"image": p.data, "loss": p.loss})
            if p.coded is not None:
                parts[-1]["coded"] = [p.coded.data, p.coded.dtype, list(p.coded.shape)]
    return msgpack.packb({"id": record.id, "parts": parts, "facts": dict(record.facts)})


def unpack(data: bytes) -> Record:
    """The inverse of `pack`.

    Raises:
        ValueError: if the bytes are not a record.
    """
    try:
        raw = msgpack.unpackb(data)
        parts = [
            Text(p["text"], p["loss"])
            if "text" in p
            else Image(p["image"], p["loss"], _coded(p.get("coded")))
            for p in raw["parts"]
        ]
        return Record(raw["id"], tuple(parts), raw["facts"])
    except (msgpack.UnpackException, KeyError, TypeError) as error:
        raise ValueError(f"not a record: {error!r}") from error


def _coded(raw) -> Coded | None:
    return None if raw is None else Coded(raw[0], raw[1], tuple(raw[2]))
