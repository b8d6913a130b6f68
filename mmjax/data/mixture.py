"""Endless streams of a source's records, and mixtures of them."""

from collections.abc import Sequence

import grain

from mmjax.config import SourceConfig
from mmjax.data.naming import naming
from mmjax.data.record import Record, Records
from mmjax.data.transform import kind, templated


class Subset:
    """Some of the records, by number."""

    def __init__(self, whole: Records, numbers: Sequence[int]):
        self._whole, self._numbers = whole, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        return self._whole[self._numbers[index]]


def stream(source: SourceConfig, known: Records, seed: int, name: str = ""):
    """One source's endless stream of (its name, record), as a grain MapDataset.

    It goes in epochs: every record once, in an order of the epoch's own.
    """

    def endless(part: Records):
        shuffled = grain.MapDataset.source(part).seed(seed).shuffle()
        return shuffled.map(lambda record: (name, record)).repeat()

    if not source.balance:
        return endless(known)
    kinds: dict[str, list[int]] = {}
    for number in range(len(known)):
        record = known[number]
        with naming(record.place):
            of = kind(templated(source.template, record))
        kinds.setdefault(of, []).append(number)
    return mix([endless(Subset(known, kinds[k])) for k in sorted(kinds)], [1.0] * len(kinds))


def mix(parts: Sequence, weights: Sequence[float]):
    """Endless streams -> one that takes from each by its weight; those of weight 0 are left out."""
    taken = [(part, w) for part, w in zip(parts, weights, strict=True) if w > 0]
    return grain.MapDataset.mix([part for part, _ in taken], weights=[w for _, w in taken])
