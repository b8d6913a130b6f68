"""Which split a record comes to, where its source does not tell."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from mmjax.data.record import Item, Record
from mmjax.error import UserError

FEW = 1000  # items; of so many at most, splits are counted out rather than drawn
SHARE = 0.05  # of a split for which no share is given
LEAST = 10  # documents of `test` then, where they are at most a fifth of all
# What damaged data raises, in our readers and in the libraries below them.
DAMAGE = (OSError, ValueError, KeyError, SyntaxError)

Shares = Mapping[str, float | None]  # split -> share of all records; what is left is "train"


def check_shares(shares: Shares) -> None:
    """Checks that shares leave some records for training.

    Raises:
        UserError: if they do not, or are no shares.
    """
    given = {name: share for name, share in shares.items() if share is not None}
    for name, share in given.items():
        if not 0 <= share < 1:
            raise UserError(f"--{name}={share} must be a share from 0 up to, but not, 1")
    if sum(given.values()) >= 1:
        told = " and ".join(f"--{name}={share}" for name, share in given.items())
        raise UserError(f"{told} leave nothing for training; let them come to less than 1")


def key_of(record: Record) -> str:
    """SHA-256 of what a record shows: its concept, or its images, or else its text."""
    key = record.facts.get("concept") or b"".join(record.images) or record.caption
    return hashlib.sha256(key if isinstance(key, bytes) else str(key).encode()).hexdigest()


def split_of(record: Record, shares: Shares) -> str:
    """The split of a record, drawn by its key: records with the same come to the same split."""
    draw = int(key_of(record)[:16], 16) / 2**64
    for split, share in shares.items():
        share = SHARE if share is None else share
        if draw < share:
            return split
        draw -= share
    return "train"


def choose(make: Callable[[], Iterator[Item]], shares: Shares) -> dict[str, str]:
    """Key -> split of the records of a small source; {} for one of more than FEW items.

    Drawn one by one, the splits of few records would be of any size, none at all too; these are of
    the size that is asked for, as far as records of one key stay together.

    Args:
        make: begins the items anew; they are read once.
    """
    items = sum(1 for _ in itertools.islice(make(), FEW + 1))
    if items > FEW:
        return {}
    sizes: dict[str, int] = {}
    for item in make():
        if item.split is None and not item.ignored:
            try:
                key = key_of(item.read())
            except DAMAGE:
                continue
            sizes[key] = sizes.get(key, 0) + 1
    return assign(sizes, wanted(sum(sizes.values()), shares))


def wanted(documents: int, shares: Shares) -> dict[str, int]:
    """Documents of each split; one at least of all is left for training.

    Where no share is given, `test` has LEAST if that is no more than a fifth, else a fifth, and
    any other split one of ten at least.
    """
    found = {}
    for split, share in shares.items():
        count = math.floor(documents * (SHARE if share is None else share) + 0.5)
        least = int(share is not None and share > 0)
        if share is None:
            least = min(LEAST, documents // 5) if split == "test" else min(1, documents // 10)
        found[split] = max(count, least)
    while sum(found.values()) > max(documents - 1, 0):
        found[max(found, key=lambda split: found[split])] -= 1
    return found


def assign(sizes: Mapping[str, int], wanted: Mapping[str, int]) -> dict[str, str]:
    """Key -> split, in the order of keys, which are hashes: no split larger than is wanted.

    sizes: key -> documents of it. Where no key is small enough, the smallest is taken if training
    keeps as many.
    """
    free, found = sorted(sizes), dict[str, str]()
    for split, count in wanted.items():
        taken: list[str] = []
        for key in free:
            rest = len(free) - len(taken) - 1  # keys that are left for training
            if rest and sizes[key] <= count - sum(sizes[k] for k in taken):
                taken.append(key)
        if count and not taken and free:
            least = min(free, key=lambda key: sizes[key])
            if 2 * sizes[least] <= sum(sizes[key] for key in free):
                taken = [least]
        found |= dict.fromkeys(taken, split)
        free = [key for key in free if key not in found]
    return found | dict.fromkeys(free, "train")
