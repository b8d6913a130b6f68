"""What the train step, the sampler and the evaluations see of any family: a few functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mmjax.batch import Batch
from mmjax.losses import Terms

Params = Any  # nested dict of arrays


class Model(NamedTuple):
    """A family with its configuration applied; every entry is a pure function or a plain value.

    Attributes:
        init: key -> params.
        specs: params-shaped tree of PartitionSpecs.
        loss: (params, batch, keys [b] or None) -> {term: (sum, count)}. Keys drive noise and
            dropout, one a row, so that rows may be grouped into microbatches in any way.
        flops: host batch -> multiply-adds times two of one forward pass over it.
        weights: what each term's mean weighs in the total; a term not named is only logged.
        parts: the family's own pieces for sampling, see its module.
    """

    init: Callable[[jax.Array], Params]
    specs: Params
    loss: Callable[[Params, Batch, jax.Array], Terms]
    flops: Callable[[Batch], float]
    weights: Mapping[str, float]
    parts: Any
