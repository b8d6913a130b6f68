"""What a run begins with: parts of the weights of other runs (`config.start`)."""

import hashlib
from collections.abc import Collection

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mmjax import paths, values
from mmjax.config import Experiment
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.data.store import TOKENIZER
from mmjax.error import UserError
from mmjax.layers.tower import dense_name
from mmjax.models import Params, abilities_of
from mmjax.models.decoder import DecoderConfig
from mmjax.models.family import lies_in, split
from mmjax.run import VOCABULARY, Run, read_config, read_vocabulary
from mmjax.step import State
from mmjax.trained import load

# Names in `config.start` that stand for more than one part of the weights.
ALL = "all"  # all weights
LANGUAGE = "language"  # all that a text model has; towers of other modalities begin as copies
HOW = ("dtype", "remat", "unroll")  # fields that say how weights are used, not which they are
# Fields of a decoder that another run may have otherwise; towers begin as copies of one.
FREE = (*HOW, "dropout", "towers", "untie", "untied_layers", "grouped")
VOCABULARY_AXIS = {"embed/table": 0, "head/w": 1}  # of weights that have a slice an id


def check(e: Experiment) -> None:
    """Checks what `begin` would load, before anything is built.

    Raises:
        UserError: for a workdir that is none, or whose part was made otherwise.
    """
    for name, workdir in e.start.items():
        other = read_config(workdir)
        # What runs the weights says more of them than their shapes do.
        part, free = ("decoder", FREE) if name in (ALL, LANGUAGE) else (name, HOW)
        mine, theirs = getattr(e.model, part, None), getattr(other.model, part, None)
        if mine is None or theirs is None:
            continue
        lines = values.difference(values.to_dict(theirs), values.to_dict(mine))
        lines = [line for line in lines if not line.split(":")[0].endswith(free)]
        if lines:
            raise UserError(
                f"config.model.{part} differs from that of config.start.{name}={workdir}: "
                f"{'; '.join(lines)}"
            )


def begin(run: Run, state: State) -> State:
    """A fresh state with the parts that `config.start` names taken from other runs.

    Raises:
        UserError: naming a weight that is not there or has another shape.
    """
    params = flatten_dict(state.params, sep="/")
    for name, workdir in run.experiment.start.items():
        new = new_ids(run, workdir) if name in (ALL, LANGUAGE) else ()
        held = flatten_dict(load(workdir).params, sep="/")
        if name in (ALL, LANGUAGE):
            theirs = getattr(read_config(workdir).model, "decoder", None)
            held = in_runs(held, theirs, getattr(run.experiment.model, "decoder", None))
        found = {k: _with_slices(k, x, params.get(k), new) for k, x in held.items()}
        wanted = origins(name, list(params), found)
        if not wanted:
            raise UserError(f"config.start names {name!r}, of which this model has no weights")
        for key, origin in wanted.items():
            if origin not in found or found[origin].shape != params[key].shape:
                what = found[origin].shape if origin in found else "absent"
                raise UserError(
                    f"config.start.{name}={workdir}: weight {origin} is {what} there and of shape "
                    f"{params[key].shape} here"
                )
            params[key] = jax.device_put(np.asarray(found[origin]), params[key].sharding)
    whole = unflatten_dict(params, sep="/")
    average = state.ema
    if average is not None:
        average = jax.tree.map(lambda x: x.copy(), split(whole, run.model.frozen)[0])
    return state._replace(params=whole, ema=average)


def in_runs(held: Params, theirs: DecoderConfig | None, mine: DecoderConfig | None) -> Params:
    """Weights by path, with the layers of a decoder stacked as `mine` has them.

    Where some layers are untied there are several stacks, "blocks_0", "blocks_1", ...
    """
    if theirs is None or mine is None or theirs.runs == mine.runs:
        return held
    layers: dict[str, dict[int, np.ndarray]] = {}
    found = dict(held)
    for stack, numbers, _ in theirs.runs:
        for key in [k for k in held if k.startswith(f"decoder/{stack}/")]:
            rows = layers.setdefault(key.removeprefix(f"decoder/{stack}/"), {})
            rows.update(zip(numbers, np.asarray(found.pop(key)), strict=True))
    for stack, numbers, _ in mine.runs:
        for key, rows in layers.items():
            if rows.keys() >= set(numbers):
                found[f"decoder/{stack}/{key}"] = np.stack([rows[n] for n in numbers])
    return found


def origins(name: str, keys: list[str], there: Collection[str]) -> dict[str, str]:
    """Which weight, "a/b", begins as which of the other run's, for a name in `config.start`.

    there: what that run has. A tower it does not have begins as a copy of the one it has.

    Raises:
        UserError: if it has towers that this model does not have.
    """
    if name == ALL:
        apart = [k for k in there if dense_name(k) != k and lies_in(k, "decoder")]
        if lost := sorted(set(apart) - set(keys)):
            raise UserError(
                f"config.start.all: this model has no {lost[0]}, a tower's own weight there; give "
                f"model.decoder the towers, untie and untied_layers that it has"
            )
        return {k: k if k in there or not lies_in(k, "decoder") else dense_name(k) for k in keys}
    if name == LANGUAGE:
        text = [k for k in keys if lies_in(k, "embed") or lies_in(k, "head")]
        decoder = {k: dense_name(k) for k in keys if lies_in(k, "decoder")}
        return {k: k for k in text} | decoder
    return {k: k for k in keys if lies_in(k, name)}


def new_ids(run: Run, workdir: str) -> tuple[int, ...]:
    """Ids that a run has and the one it begins as has not: registers, if any.

    Of imported weights also the sentinels that their tokenizer had not.

    Raises:
        UserError: if their tokenizers differ otherwise.
    """
    path = paths.of(workdir) / TOKENIZER
    mine, theirs = run.tokenizer, bpe.load(path)
    new = () if bpe.vocabulary(theirs).registers else bpe.vocabulary(mine).registers
    imported = (paths.of(workdir) / VOCABULARY).is_file()
    if imported and run.vocabulary == read_vocabulary(workdir, 0):
        new = ()  # its ids are the run's
    elif imported:
        size = run.vocabulary.size - run.vocabulary.code_count
        new = tuple(range(read_vocabulary(workdir, 0).size, size))
        theirs = bpe.with_registers(theirs) if bpe.vocabulary(mine).registers else theirs
        if mine.to_str() == theirs.to_str():
            return new
    if mine.to_str() != (bpe.with_registers(theirs) if new else theirs).to_str():
        raise UserError(
            f"config.start begins as {workdir}, whose tokenizer is another; give "
            f"data.tokenizer={path}"
        )
    return new


def _with_slices(key: str, found, fresh, new: tuple[int, ...]):
    """A weight of another run with slices of new ids, if it has one an id, from the fresh one."""
    if not new or key not in VOCABULARY_AXIS or fresh is None or found.shape == fresh.shape:
        return found  # also where new ids have weights apart, as Flamingo's
    axis, places = VOCABULARY_AXIS[key], np.array(new) - np.arange(len(new))
    return np.insert(np.asarray(found), places, np.take(np.asarray(fresh), new, axis), axis)


def digest(codec: Params) -> str:
    """SHA-256 of a codec's weights, by name."""
    total = hashlib.sha256()
    for name, x in sorted(flatten_dict(codec, sep="/").items()):
        total.update(name.encode() + np.asarray(x).tobytes())
    return total.hexdigest()


def check_codes(run: Run, state: State) -> None:
    """Checks that coded data are what the family reads, and made by this very codec.

    Raises:
        UserError: if not.
    """
    e, data = run.experiment, run.experiment.data
    if not data.coded:
        return
    kinds = {pipeline.coding(data, name)["dtype"] for name in data.sources}
    reads = "int32" if getattr(e.model, "codes", 0) else "float16"
    codec = getattr(e.model, "codec", None)
    if not abilities_of(e.family, e.model).reads or codec is None or kinds != {reads}:
        held = "codes" if kinds == {"int32"} else "latents"
        raise UserError(
            f"config.data.coded=True, but this {e.family} does not read the {held} that the "
            f"sources hold; give False"
        )
    mine = digest(state.params["codec"])
    for name in data.sources:
        theirs = pipeline.coding(data, name)["codec"]
        if theirs != mine:
            raise UserError(
                f"{pipeline.path_of(data, name)} was coded by another codec ({theirs[:12]}) than "
                f"the one this run has ({mine[:12]}); tokenize it with the workdir that "
                f"config.start.codec names"
            )
