"""Directories as Hugging Face has them: config.json, and weights in one or several safetensors."""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmjax.data.store import TOKENIZER
from mmjax.error import UserError

CONFIG = "config.json"
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
GENERATION = "generation_config.json"
BESIDE = (
    TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.json",
    "chat_template.jinja", GENERATION, PREPROCESSOR, PROCESSOR,
)  # fmt: skip
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PLAIN = re.compile(r"[^/\\\0]+\.safetensors")  # of files that lie in the directory itself
SHARDS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
SHARD = 2**27  # bytes of a file at most, unless one tensor is larger


class Hub(NamedTuple):
    """A directory's content; no tensor is read yet.

    Attributes:
        path: where it lies. config: its config.json. files: tensor's name -> file. shapes: name ->
            shape. there: name -> what the file calls it.
    """

    path: Path
    config: dict
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    there: dict[str, str]

    def tensor(self, name: str) -> np.ndarray:
        """One tensor, as f32.

        Raises:
            UserError: if its file is damaged.
        """
        try:
            with safe_open(self.files[name], framework="np") as file:
                kind = file.get_slice(self.there[name]).get_dtype()
                if kind not in DTYPES:
                    raise UserError(
                        f"{self.files[name]}, tensor {name} is {kind}; save the model as one of "
                        f"{', '.join(DTYPES)}"
                    )
                if kind != "BF16":
                    return np.asarray(file.get_tensor(self.there[name]), np.float32)
            # The reader of the kind "np" does not know bfloat16; the other holds it twice.
            with safe_open(self.files[name], framework="flax") as file:
                return np.asarray(file.get_tensor(self.there[name]), np.float32)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{self.files[name]}, tensor {name}: {error}; fetch it anew") from error

    def renamed(self, rules: Iterable[tuple[str, str]]) -> "Hub":
        """The same with tensors called otherwise: (pattern, replacement) one after the other.

        Raises:
            UserError: if two are then called the same.
        """
        new: dict[str, str] = {}
        for name in self.files:
            told = name
            for pattern, replacement in rules:
                told = re.sub(pattern, replacement, told)
            if told in new:
                raise UserError(
                    f"{self.path} has {new[told]} and {name}, two spellings of one tensor; remove "
                    f"one, or fetch the model anew"
                )
            new[told] = name
        return self._replace(
            files={told: self.files[name] for told, name in new.items()},
            shapes={told: self.shapes[name] for told, name in new.items()},
            there={told: self.there.get(name, name) for told, name in new.items()},
        )

    @property
    def beside(self) -> dict[str, bytes]:
        """Further files that belong to the model, name -> content."""
        found = (self.path / name for name in BESIDE)
        return {file.name: file.read_bytes() for file in found if file.is_file()}

    @property
    def fingerprint(self) -> dict:
        """What tells that the directory is still the same."""
        return stamps({*self.files.values(), self.path / CONFIG})


def stamps(files: Iterable[Path]) -> dict:
    """What tells that files are still the same."""
    return {str(f): [f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(files)}


def tokens(given: Mapping, name: str) -> list[int]:
    """Ids of a config.json, one or several under one name."""
    found = given.get(name)
    return [x for x in (found if isinstance(found, list) else [found]) if isinstance(x, int)]


def token(given: Mapping, name: str) -> int:
    """An id of a config.json; of several the first, of none -1."""
    return next(iter(tokens(given, name)), -1)


def read_json(path: Path) -> dict:
    """A file's content.

    Raises:
        UserError: if it is absent or no JSON.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give a directory that has it") from error
    except NotADirectoryError as error:
        raise UserError(
            f"{path.parent} is a file; give the directory that it and {path.name} lie in"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return parsed(content, path)


def parsed(content: bytes, path: Path) -> dict:
    """JSON of a group of fields; path: of its file, for messages.

    Raises:
        UserError: if it is none.
    """
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise UserError(f"{path} is damaged: groups lie too deep in it; fetch it anew") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; fetch it anew") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds a {type(found).__name__}; fetch it anew")
    return found


def content(beside: Mapping[str, bytes], name: str, path: Path) -> dict:
    """The fields of one of a directory's files, empty if it has none.

    Raises:
        UserError: if it is damaged.
    """
    return parsed(beside[name], path / name) if name in beside else {}


def read(path: str | Path) -> Hub:
    """Opens a directory.

    Raises:
        UserError: for files that are missing or damaged.
    """
    path = Path(path)
    config = read_json(path / CONFIG)
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sorted(weight_files(path)):
        file = path / name
        if not file.is_file():
            raise UserError(f"{file} does not exist; fetch it")
        try:
            with safe_open(file, framework="flax") as held:
                for tensor in held.keys():
                    if tensor in files:
                        raise UserError(
                            f"{path} has {tensor} in {files[tensor].name} and in {name}; fetch it "
                            f"anew"
                        )
                    files[tensor] = file
                    shapes[tensor] = tuple(held.get_slice(tensor).get_shape())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged: {error}; fetch it anew") from error
    return Hub(path, config, files, shapes, {name: name for name in files})


def weight_files(path: Path) -> set[str]:
    """Names of the files that a directory's weights lie in: one, or those of its index.

    Raises:
        UserError: for a directory without safetensors, or an index that is none.
    """
    if (path / WHOLE).is_file():
        return {WHOLE}
    if (path / INDEX).is_file():
        places = read_json(path / INDEX).get("weight_map")
        if not places or not isinstance(places, dict):
            raise UserError(f"{path / INDEX} has no weight_map; fetch it anew")
        for name in places.values():
            if not isinstance(name, str) or not PLAIN.fullmatch(name):
                raise UserError(
                    f"{path / INDEX}: weight_map names {reprlib.repr(name)}, which is no "
                    f"safetensors beside it; fetch it anew"
                )
        return set(places.values())
    pickles = sorted(file.name for file in path.glob("*.bin"))
    found = f" but has {', '.join(pickles[:3])}; save" if pickles else "; fetch"
    raise UserError(
        f"{path} has neither {WHOLE} nor {INDEX}{found} the model as safetensors, as "
        f"`save_pretrained` writes them"
    )


def write(path: Path, config: Mapping, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Fills a directory, holding one file's tensors at a time; those already there are left out."""
    (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    done = [part.names for part in parts(path)]
    there, count = {name for names in done for name in names}, len(done)
    held: dict[str, np.ndarray] = {}

    def close() -> None:
        nonlocal count
        save_file(held, path / "writing", metadata={"format": "pt"})
        (path / "writing").rename(path / f"{count}.part")
        held.clear()
        count += 1

    for name, x in tensors:
        if name not in there:
            if held and sum(y.nbytes for y in held.values()) + x.nbytes > SHARD:
                close()
            held[name] = np.asarray(x, order="C")  # safetensors writes memory as it lies
        del x  # it may be part of a stack, which then lives on while the next is read
    if held:
        close()
    found = parts(path)
    if len(found) == 1:
        found[0].file.rename(path / WHOLE)
        return
    places: dict[str, str] = {}
    for n, part in enumerate(found):
        file = f"model-{n + 1:05d}-of-{len(found):05d}.safetensors"
        part.file.rename(path / file)
        places |= dict.fromkeys(part.names, file)
    index = {"metadata": {"total_size": sum(part.size for part in found)}, "weight_map": places}
    (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")


class Part(NamedTuple):
    """A file of weights that `write` has finished. size: bytes of its tensors, all f32."""

    file: Path
    names: list[str]
    size: int


def parts(path: Path) -> list[Part]:
    """What `write` has finished of a directory; a stopped command goes on behind it."""
    found: list[Part] = []
    while (file := path / f"{len(found)}.part").is_file():
        with safe_open(file, framework="np") as held:
            names = list(held.keys())
            shapes = [held.get_slice(name).get_shape() for name in names]
        found.append(Part(file, names, sum(4 * math.prod(shape) for shape in shapes)))
    return found
