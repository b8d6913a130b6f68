"""A measured number with its size of sample, seed and 95 % interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
SMALL = 30  # units; of fewer, resampling alone gives too narrow an interval


class Value(NamedTuple):
    """A number and what it rests on.

    Attributes:
        value: the estimate. n: units it averages. seed: of the draw of units and of all noise.
        low, high: 95 % interval.
    """

    value: float
    n: int
    seed: int
    low: float
    high: float

    def as_dict(self) -> dict:
        """The form in summary.json."""
        return {
            "value": self.value,
            "n": self.n,
            "seed": self.seed,
            "ci95": [self.low, self.high],
        }


def proportion(hits: Sequence[bool] | np.ndarray, seed: int) -> Value:
    """A share of successes with Wilson's interval."""
    n, k = len(hits), int(np.sum(hits))
    from scipy import stats

    interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    return Value(k / n, n, seed, float(interval.low), float(interval.high))


def ratio(
    sums: Sequence[float] | np.ndarray, counts: Sequence[float] | np.ndarray, seed: int
) -> Value:
    """sum(sums) / sum(counts) with a bootstrap interval over units (documents, pictures).

    Of fewer than SMALL units, the interval is as much wider as Student's is than the normal one.
    """
    a, b = np.asarray(sums, float), np.asarray(counts, float)
    n = len(a)
    draws = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    spread = a[draws].sum(1) / np.maximum(b[draws].sum(1), 1e-9)
    low, high = np.quantile(spread, [0.025, 0.975])
    value = a.sum() / b.sum()
    if 1 < n < SMALL:
        from scipy import stats

        wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * np.sqrt(n / (n - 1))
        low, high = value - wider * (value - low), value + wider * (high - value)
    return Value(float(value), n, seed, float(low), float(high))
