"""Imported models against arrays that another library made of the same inputs."""

import zipfile
import zlib
from collections.abc import Container, Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mmjax import paths
from mmjax.conversion import Held, Report, hold, kind_of
from mmjax.convert import chameleon, clip, idefics, llava
from mmjax.error import UserError, some

# How many axes inputs of `transformers` have.
AXES = {
    "input_ids": 2, "attention_mask": 2, "labels": 2, "pixel_values": 4, "image_attention_mask": 3,
}  # fmt: skip


# What outputs need beside input_ids, by the beginning of their names.
NEEDS = {
    "loss": "labels", "vision_hidden": "pixel_values", "image_": "pixel_values",
    "vq_indices": "pixel_values", "logits_per": "pixel_values", "text_": "input_ids",
    "hidden": "input_ids", "logits": "input_ids",
}  # fmt: skip


def verify(workdir: str | Path, place: str | Path, said: Report = print) -> float:
    """Runs a workdir's model on `place`/inputs.npz and holds it against `place`/outputs.npz.

    Prints the largest absolute difference of every array it can make, and names the others. What
    stands under padding, where attention_mask is 0, means nothing and is not compared.

    Returns:
        The largest of them all; infinite where one is no number.

    Raises:
        UserError: for files that are missing, or without anything to compare.
    """
    inputs, wanted = (
        arrays(paths.near(paths.of(place) / name)) for name in ("inputs.npz", "outputs.npz")
    )
    kind = kind_of(workdir)
    held = hold(workdir)
    axes = AXES | ({"pixel_values": 5} if kind is idefics else {})
    alone = kind in (clip, chameleon) and "pixel_values" in inputs
    check_inputs(f"{place}/inputs.npz", inputs, axes, needs_words=not alone and kind is not clip)
    if unread := sorted(set(inputs) - set(AXES)):
        said(f"not read: {', '.join(unread)}")
    check_sizes(f"{place}/inputs.npz", inputs, held)
    with jax.default_matmul_precision("highest"):
        given = held.given or kind.given(held.experiment.model, held.vocabulary)
        params = unflatten_dict(held.read(*held.like), sep="/")
        made = in_one(kind.outputs(held.model.parts, params, inputs, given), wanted)
    known = [name for name in wanted if name in made]
    left = [absent(name, made, inputs) for name in sorted(set(wanted) - set(known))]
    if not known:
        raise UserError(
            f"{place}/outputs.npz has nothing to compare: {some(left) or 'it is empty'}; of these "
            f"inputs a {held.experiment.family} makes {ranges(made)}"
        )
    worst = 0.0
    for name in known:
        off = difference(f"{place}/outputs.npz", name, made, wanted[name], inputs)
        worst = max(worst, off)
        said(f"{name:24s} {off:.3g}")
    if left:
        said(f"not compared: {', '.join(left)}; names known are {ranges(made)}")
    return worst


def in_one(made: Mapping, wanted: Container[str]) -> dict:
    """Outputs, and of those wanted what `transformers` gives in one.

    `hidden_states`, `text_hidden_states` and `vision_hidden_states` are all layers, one behind the
    other on axis 0, `last_hidden_state` the last; `image_hidden_states` are image_features.
    """
    found = dict(made)
    for name in ("hidden", "text_hidden", "vision_hidden"):
        layers = [made[f"{name}_{n}"] for n in range(len(made)) if f"{name}_{n}" in made]
        if layers and f"{name}_states" in wanted:
            found[f"{name}_states"] = np.stack([np.asarray(x) for x in layers])
        if layers and name == "hidden" and "last_hidden_state" in wanted:
            found["last_hidden_state"] = layers[-1]
    for end in ("", "/pooled"):
        if f"image_features{end}" in made and "image_hidden_states" in wanted:
            found[f"image_hidden_states{end}"] = made[f"image_features{end}"]
    return found


def absent(name: str, made: Mapping, inputs: Mapping) -> str:
    """Why an array of outputs is not compared: inputs lack what it needs, or nobody knows it."""
    if name == "loss" and {"image_embeds", "text_embeds"} & set(made):
        return "loss (inputs.npz has not as many pictures as texts)"
    for begin, what in NEEDS.items():
        if name.startswith(begin) and what not in inputs:
            return f"{name} (inputs.npz lacks {what})"
    return f"{name} (unknown)"


def ranges(made: Mapping) -> str:
    """Names of outputs, numbered ones as hidden_0 ... hidden_4."""
    groups: dict[str, list[str]] = {}
    for name in made:
        if not name.endswith("/pooled"):
            groups.setdefault(name.rstrip("0123456789"), []).append(name)
    return ", ".join(g[0] if len(g) == 1 else f"{g[0]} ... {g[-1]}" for g in groups.values())


def difference(path: str, name: str, made: Mapping, theirs: np.ndarray, inputs: Mapping) -> float:
    """The largest absolute difference of an output; infinite where one is no number.

    Raises:
        UserError: for an array of another shape, or of no numbers.
    """
    if theirs.dtype.kind not in "biuf":
        raise UserError(f"{path}: {name} holds {theirs.dtype}, which are no numbers")
    fits = made[name].size == theirs.size
    mine = np.asarray(made[name] if fits else made.get(f"{name}/pooled", made[name]))
    mine = mine.reshape(theirs.shape) if mine.size == theirs.size else mine
    if mine.shape != theirs.shape:
        raise UserError(f"{path}: {name} is {theirs.shape} there, {mine.shape} here")
    read = inputs.get("attention_mask")
    words = name.startswith(("hidden", "last_hidden", "text_hidden", "logits"))
    first = mine.ndim - 3  # behind the axis of layers, where there is one
    if read is not None and words and first in (0, 1) and mine.shape[first:-1] == read.shape:
        kept = np.broadcast_to(read > 0, mine.shape[:-1])
        mine, theirs = mine[kept], theirs[kept]
    if not mine.size:
        return 0.0
    off = float(np.abs(mine.astype(np.float64) - theirs).max())
    return off if off == off else float("inf")


def check_inputs(
    path: str, inputs: Mapping[str, np.ndarray], axes: Mapping[str, int], needs_words: bool
) -> None:
    """Holds inputs of `transformers` against each other, and against how many axes they have.

    Raises:
        UserError: for words that are missing, and arrays of other axes or kinds than theirs.
    """
    if needs_words and "input_ids" not in inputs:
        raise UserError(f"{path} lacks input_ids; it has: {', '.join(inputs) or 'nothing'}")
    for name, count in axes.items():
        if name in inputs and (inputs[name].ndim != count or not inputs[name].size):
            raise UserError(
                f"{path}: {name} has shape {inputs[name].shape}; it must have {count} axes, none "
                f"empty"
            )
        if name in inputs and inputs[name].dtype.kind not in ("biuf" if "pixel" in name else "biu"):
            raise UserError(
                f"{path}: {name} holds {inputs[name].dtype}; it must hold numbers"
                + ("" if "pixel" in name else " that are whole")
            )
    if "image_attention_mask" in inputs and {"input_ids", "pixel_values"} <= set(inputs):
        want = (*inputs["input_ids"].shape, inputs["pixel_values"].shape[1])
        if inputs["image_attention_mask"].shape != want:
            raise UserError(
                f"{path}: image_attention_mask has shape {inputs['image_attention_mask'].shape}; "
                f"with these input_ids and pixel_values it must be {want}"
            )
    for name in ("attention_mask", "labels"):
        both = [inputs[n].shape for n in (name, "input_ids") if n in inputs]
        if len(set(both)) > 1:
            raise UserError(f"{path}: {name} has shape {both[0]}, input_ids {both[1]}")


def check_sizes(path: str, inputs: Mapping[str, np.ndarray], held: Held) -> None:
    """Holds inputs against the model's vocabulary, pictures and length.

    Raises:
        UserError: for ids it does not have, and pictures or texts that it does not read.
    """
    c, given = held.experiment.model, held.given or {}
    if (ids := inputs.get("input_ids")) is not None:
        place = given.get("image_token_id", given.get("image_token_index"))  # no word of the table
        if given.get("model_type") == "llava":
            place = llava.whole(given)["image_token_index"]
        words, size = ids[ids != place], held.vocabulary.size
        if wrong := sorted({int(i) for i in words.flat if not 0 <= i < size}):
            raise UserError(f"{path}: input_ids has {wrong[0]}; the model has {size} ids")
        longest = c.text.length if hasattr(c, "text") else ids.shape[1]
        if ids.shape[1] > longest:
            raise UserError(
                f"{path}: input_ids has {ids.shape[1]} columns; the model has {longest} positions"
            )
    pixels = inputs.get("pixel_values")
    if pixels is not None and hasattr(c, "image"):
        if pixels.shape[-3:] != (want := pixel_shape(c, pixels)):
            raise UserError(f"{path}: pixel_values has shape {pixels.shape}; it must end in {want}")


def pixel_shape(c, pixels: np.ndarray) -> tuple[int, int, int]:
    """What pictures [..., 3, h, w] must end in: sides that patches divide.

    Vision towers and codecs take other sides than they were made for. A tower leaves out what is
    no whole patch.
    """
    high, wide = pixels.shape[-2:]
    if (tower := getattr(c, "vision", None)) is not None:
        return (3, max(high, tower.patch), max(wide, tower.patch))
    side = c.codec.factor
    return (3, max(high // side, 1) * side, max(wide // side, 1) * side)


# What NumPy and the libraries below it raise for damaged files.
DAMAGE = (ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, RuntimeError,
          zipfile.BadZipFile, zlib.error)  # fmt: skip


def arrays(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays of a .npz.

    Raises:
        UserError: if it is absent or damaged.
    """
    try:
        found = {}
        with path.open("rb") as raw, np.load(raw) as file:
            for name in file.files:
                try:
                    found[name] = file[name]
                except ValueError:  # an object: nothing that a model reads or makes
                    found[name] = np.zeros(0)
        return found
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; --verify names a directory that has it") from error
    except (*DAMAGE, MemoryError) as error:  # of a header that names more than there can be
        raise UserError(f"{path} is damaged: {error}; write it again") from error
