"""What the train step, the sampler and the evaluations see of any family: a few functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mmjax.batch import Batch, Vocabulary
from mmjax.losses import Terms
from mmjax.models.decoder import DecoderConfig

Params = Any  # nested dict of arrays


class Model(NamedTuple):
    """A family with its configuration applied; every entry is a pure function or a plain value.

    Attributes:
        init: key -> params.
        specs: params-shaped tree of PartitionSpecs.
        loss: (params, batch, keys [b] or None) -> {term: (sum, count)}. Keys drive noise and
            dropout, one a row, so that rows may be grouped into microbatches in any way. Terms
            that are no scalars are statistics for `after`.
        flops: host batch -> multiply-adds times two of one forward pass over it.
        weights: what each term's mean weighs in the total; a term not named is only logged.
        parts: the family's own pieces for sampling, see its module.
        frozen: paths "a/b" in params of what is not trained: it has no gradient and no moments.
        after: (params before, params after the optimizer, terms) -> params; for what a step
            changes otherwise than by gradient (codebooks that are moving averages).
        watch: gradient of params -> {name: scalar} to log.
        rates: paths "a/b" in params of what is trained at another rate -> its share of the rate.
    """

    init: Callable[[jax.Array], Params]
    specs: Params
    loss: Callable[[Params, Batch, jax.Array], Terms]
    flops: Callable[[Batch], float]
    weights: Mapping[str, float]
    parts: Any
    frozen: tuple[str, ...] = ()
    after: Callable[[Params, Params, Terms], Params] | None = None
    watch: Callable[[Params], Mapping[str, jax.Array]] | None = None
    rates: Mapping[str, float] = MappingProxyType({})


# Groups of names of evaluations, for `Abilities.evals`.
READS = ("likelihood", "caption", "answers", "passages")  # writes text behind text and images
DRAWS = ("drawing", "frechet", "scenes")  # draws an image behind text
# Options of `generate`: of images that are denoised, and how one token is chosen.
DENOISING = ("solver", "steps", "shift", "guidance_start", "guidance_stop", "guidance_least")
CHOICE = ("temperature", "top_k", "top_p", "min_p", "repetition")


@dataclass(frozen=True)
class Abilities:
    """What can be done with a family's trained model besides measuring its loss.

    A family's module says it in `abilities(config) -> Abilities`; without that function it has
    none of them. Functions are pure, but for `generate` and evaluations, which run on the host.

    Attributes:
        generate: "engine" (`sample.engine`, for parts that are a `Reader`), "insertion" or "span"
            for the samplers of OneFlow and the dial, or a function as `sample.talk.talk` but with
            a SampleConfig for its options; None for a family that does not generate.
        options: names of `generate`'s options besides `text`.
        draws: whether it generates images too. stops: whether it can go on, or stop, behind one.
        log_likelihood: (parts, params, batch, opens [b] bool) -> [b, l] as `sample.decode`'s
            `text_log_likelihood`, or "decoder" for that function; None without left-to-right
            likelihood.
        vectors: (parts, params, batch) -> [b, d] of unit length, or "decoder" for
            `sample.decode.embedding`; None for a family that does not embed.
        compares: whether vectors of a text and an image lie in one space.
        reads: whether texts are read; a codec reads images alone.
        evals: names of evaluations in `mmjax.evals.EVALS`. own: further ones, by name: functions
            (trained, seed, out) -> {name: Value}.
    """

    generate: str | Callable | None = None
    options: tuple[str, ...] = ()
    draws: bool = False
    stops: bool = False
    log_likelihood: str | Callable | None = None
    vectors: str | Callable | None = None
    compares: bool = False
    reads: bool = True
    evals: tuple[str, ...] = ()
    own: Mapping[str, Callable] = field(default_factory=dict)


class Reader(Protocol):
    """What sampling and scoring need of a family's parts, whatever else it has."""

    @property
    def config(self) -> Any:
        """The family's configuration; has `tokens`, positions a picture takes."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The id space."""

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's shape."""

    @property
    def embed(self) -> Callable:
        """(params, tokens [b, l]) -> [b, l, d]."""

    @property
    def run(self) -> Callable:
        """(params, x [b, l, d], mask, position, cache, ...) -> ([b, l, d], cache); see Decoder."""

    @property
    def head(self) -> Callable:
        """Params -> [d, v], what maps decoder outputs to logits."""

    @property
    def coded(self) -> Callable:
        """(params, batch) -> the batch with pictures' codes as tokens, where it has codes."""

    @property
    def clean(self) -> Callable:
        """(params, batch) -> [b, l, d], what the decoder reads, pictures given as they are."""

    @property
    def mask(self) -> Callable:
        """Batch -> [b, l, l] bool."""


def lies_in(path: str, part: str) -> bool:
    """Whether a leaf's path is a part of params, or lies in it."""
    return path == part or path.startswith(f"{part}/")


def split(params: Params, frozen: tuple[str, ...]) -> tuple[Params, Params]:
    """Params -> (what is trained, what is frozen); see Model.frozen."""
    if not frozen:
        return params, {}
    flat = flatten_dict(params, sep="/")
    held = {k for k in flat if any(lies_in(k, f) for f in frozen)}
    return tuple(
        unflatten_dict({k: x for k, x in flat.items() if (k in held) is side}, sep="/")
        for side in (False, True)
    )


def merge(trained: Params, held: Params) -> Params:
    """The inverse of `split`."""
    if not held:
        return trained
    flat = flatten_dict(trained, sep="/") | flatten_dict(held, sep="/")
    return unflatten_dict(flat, sep="/")
