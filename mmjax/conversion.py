"""Weights of others in and out: a directory of theirs -> a workdir, a workdir -> Hugging Face's.

On the way in every weight is written to a file of its own first, beside the destination, so that a
command that was stopped goes on where it was; the destination appears whole or not at all.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from rich.progress import Progress, track

from mmjax import checkpoint, leaf, paths, values
from mmjax.batch import Vocabulary
from mmjax.config import Experiment
from mmjax.convert import around, hub, incoming, original, processor, words
from mmjax.convert.decoder import one_device
from mmjax.convert.incoming import BY_FAMILY, OURS, apart, sized, untied, vocabulary_of
from mmjax.convert.rows import check, stacked, to_theirs
from mmjax.data import tokenizer as bpe
from mmjax.data.store import TOKENIZER
from mmjax.data.transform import ASKED
from mmjax.destination import MARK, check_apart, making, marked
from mmjax.error import UserError, some
from mmjax.lock import LOCK
from mmjax.models import Model, family_of
from mmjax.models.family import lies_in
from mmjax.run import (
    CONFIG,
    GIVEN,
    LEAVES,
    VOCABULARY,
    directory,
    families,
    is_workdir,
    read_config,
    read_vocabulary,
)

# What training, evaluation and conversion leave in a directory.
LEFT = {*LEAVES, LOCK, MARK, hub.INDEX, *hub.BESIDE}

Report = Callable[[str], None]


@dataclass(frozen=True)
class Held:
    """An imported or trained model without its tokenizer, on one device; its weights on disk.

    Attributes:
        given: the config.json it came with, if it was imported.
        directory, step: of its checkpoint. like: path -> its name there, its shape and place.
    """

    experiment: Experiment
    vocabulary: Vocabulary
    given: dict | None
    model: Model
    directory: Path
    step: int
    like: Mapping[str, tuple[str, jax.ShapeDtypeStruct]]

    def read(self, *paths: str) -> dict[str, jax.Array]:
        """Weights by path."""
        like = {name: spec for name, spec in (self.like[path] for path in paths)}
        found = checkpoint.restore(self.directory, like, self.step, part=True)
        assert found is not None  # the step is there
        return {path: found.state[self.like[path][0]] for path in paths}


def strange(path: Path) -> list[str]:
    """Names of what lies in a directory and no command of ours left there.

    A workdir is known by its configuration and checkpoints, all that is converted by its mark.
    """
    if not path.is_dir():
        return [path.name]
    names = sorted(file.name for file in path.iterdir())
    if not marked(path) and not is_workdir(path):
        return names
    return [name for name in names if name not in LEFT and not hub.SHARDS.fullmatch(name)]


def convert(
    src: str | Path, dst: str | Path, overwrite: bool = False, said: Report = print
) -> Path:
    """Brings a directory of theirs in, or takes a workdir out; -> dst.

    Raises:
        UserError: for a source that is neither, or whose weights are not those its configuration
            wants; a destination that is there; a full disk.
    """
    src, dst = paths.of(src), paths.of(dst)
    if paths.is_remote(dst):
        check_apart(src, dst)
    if is_theirs(src):
        src = paths.near(src)
        bring_in(src, incoming.opened(src), dst, overwrite, said)
    else:
        take_out(src, dst, overwrite, said)
    return dst


def is_theirs(src: Path) -> bool:
    """Whether a directory's weights are to be brought in, not taken out.

    Raises:
        UserError: if it is neither theirs nor a workdir.
    """
    if original.there(src):
        return True
    given = hub.read_json(src / CONFIG)
    if "model_type" not in given and "family" not in given:
        raise UserError(
            f"{src / CONFIG} names neither a model_type, as Hugging Face's do, nor a family, as "
            f"that of `mmjax train` does"
        )
    return "model_type" in given


def bring_in(
    src: Path, source: hub.Hub | original.Original, dst: Path, overwrite: bool, said: Report
) -> None:
    """Their directory, opened as `source` -> a workdir with one checkpoint, 0."""
    kind, source, (c, vocabulary, rows, seen) = incoming.understood(source)
    if hasattr(kind, "more"):
        beside = kind.more(c, source.shapes)
        rows, c = rows + beside, replace(c, draws=bool(beside))
    rows = apart(rows, source.config, source.shapes)
    check(rows, source.shapes, kind.IGNORED)
    incoming.check_ids(vocabulary, str(source.path))
    words.check(vocabulary, source.beside, source.path)
    with making(dst, src, source.fingerprint, overwrite, strange, (CONFIG,)) as place:
        files = stage(source, rows, place / "leaves")
        extra = {n: x for n, x in kind.extra(c).items() if n not in files}
        shapes = {n: np.load(file, mmap_mode="r").shape for n, file in files.items()}
        shapes |= {n: x.shape for n, x in extra.items()}
        fits(kind.FAMILY, c, vocabulary, shapes)
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
        (place / "checkpoints").mkdir()
        meta = {"from": source.config["model_type"]}
        write(place.resolve() / "checkpoints", files, extra, meta)
        e = around.experiment(kind.FAMILY, c, families(), **sized(kind, c, source, seen))
        (place / CONFIG).write_text(json.dumps(values.to_dict(e), indent=1))
        (place / GIVEN).write_text(json.dumps(untied(source.config), indent=1))
        (place / VOCABULARY).write_text(json.dumps(asdict(vocabulary), indent=1))
        for name, content in source.beside.items():
            (place / name).write_bytes(content)
        shutil.rmtree(place / "leaves")
    count = sum(math.prod(shape) for shape in shapes.values())
    said(f"{dst}: {count:,} weights of a {source.config['model_type']}, ready")
    if not (dst / TOKENIZER).is_file():
        said(f"{source.path} has no {TOKENIZER}: what reads or writes text needs one in {dst}")


def in_full(given: Mapping) -> dict:
    """Their config.json, saying f32 of weights, as we write them."""
    told = {name: "float32" for name in ("dtype", "torch_dtype") if given.get(name)}
    inner = {k: in_full(x) for k, x in given.items() if k.endswith("_config") and x}
    return dict(given) | inner | told


def stage(source: hub.Hub | original.Original, rows, place: Path) -> dict[str, Path]:
    """Every weight of ours as a file; those that are there already stay."""
    place.mkdir(exist_ok=True)
    files = {}
    for row in track(rows, "reading", transient=True):
        file = place / (row.ours.replace("/", ".") + ".npy")
        if not file.is_file():
            stacked(row, incoming.finite(source), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        files[row.ours] = file
    return files


def write(directory: Path, files: Mapping[str, Path], extra: Mapping, meta: dict) -> None:
    """Makes a checkpoint, 0, of weights that lie in files, and more; with a bar."""
    arrays = {f"params/{n}": np.load(file, mmap_mode="r") for n, file in files.items()}
    arrays |= {f"params/{n}": np.asarray(x) for n, x in extra.items()}
    like = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in arrays.items()}
    with Progress(transient=True) as bar:
        task = bar.add_task("writing", total=sum(1 + len(leaf.parts(x)) for x in like.values()))

        def read(name: str, index) -> np.ndarray:
            bar.advance(task)
            file = files.get(name.removeprefix("params/"))  # opened anew: its pages may be had back
            return arrays[name][index] if file is None else np.load(file, mmap_mode="r")[index]

        checkpoint.write(directory, 0, like, read, meta)


def fits(family: str, c, vocabulary: Vocabulary, have: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that weights of these shapes, by path, are those the family has."""
    model = family_of(family).build(c, vocabulary, one_device())
    want = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/")
    shapes = {name: x.shape for name, x in want.items()}
    if wrong := sorted(n for n in {*shapes, *have} if shapes.get(n) != have.get(n)):
        raise ValueError(f"the table of a {family} is wrong about {some(wrong)}")


def hold(workdir: str | Path) -> Held:
    """Opens a workdir at its newest checkpoint, averaged weights where it keeps them.

    Raises:
        UserError: if it holds none.
    """
    workdir, rules = paths.of(workdir), one_device()
    given = hub.read_json(workdir / GIVEN) if (workdir / GIVEN).is_file() else None
    e = read_config(workdir)
    vocabulary = read_vocabulary(workdir, getattr(e.model, "codes", 0))
    model = family_of(e.family).build(e.model, vocabulary, rules)
    step = checkpoint.latest(directory(workdir))
    if step is None:
        raise UserError(f"{workdir} holds no checkpoint yet; `mmjax train` saves one")
    flat = flatten_dict(jax.eval_shape(model.init, jax.random.key(e.seed)), sep="/")
    like = {}
    for name, x in flat.items():  # what is frozen has no average
        plain = not e.optim.ema or any(lies_in(name, part) for part in model.frozen)
        spec = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rules.sharding())
        like[name] = f"{'params' if plain else 'ema'}/{name}", spec
    return Held(e, vocabulary, given, model, directory(workdir), step, like)


def one_by_one(held: Held) -> Callable[[str], leaf.Leaf]:
    """path -> its weight, not read yet; what reading those before took is given back."""
    specs = dict(held.like.values())
    found, waiting = checkpoint.leaves(held.directory, held.step, specs), 0

    def weight(path: str) -> leaf.Leaf:
        nonlocal waiting
        name, spec = held.like[path]
        waiting = leaf.give_back(waiting) + spec.size * spec.dtype.itemsize
        return found[name]

    return weight


def kind_of(workdir: str | Path):
    """The module that converts a workdir's family.

    Raises:
        UserError: if there is none.
    """
    family = read_config(workdir).family
    if family not in BY_FAMILY:
        raise UserError(
            f"{workdir} is a {family}, which they have no model for; have: {', '.join(BY_FAMILY)}"
        )
    return BY_FAMILY[family]


def take_out(src: Path, dst: Path, overwrite: bool, said: Report) -> None:
    """A workdir -> their directory."""
    kind = kind_of(src)
    held = hold(src)
    given = held.given or kind.given(held.experiment.model, held.vocabulary)
    if held.step:  # trained on since: loaded in fewer bits it would be rounded
        given = in_full(given)
    if vocabulary_of(kind, given) != held.vocabulary:  # they have no names for all sentinels
        given = given | {OURS: asdict(held.vocabulary)}
    rows = kind.rows(held.experiment.model, held.vocabulary, held.given)
    about = held.directory / str(held.step) / "about" / "data.json"
    of = hub.stamps([paths.near(about), paths.near(src / CONFIG)])
    with making(dst, src, of, overwrite, strange, (CONFIG,)) as place:
        there = {name for part in hub.parts(place) for name in part.names}
        rows = [row for row in rows if not there.issuperset(row.names)]
        hub.write(place, given, to_theirs(rows, one_by_one(held)))
        beside = [name for name in hub.BESIDE if (src / name).is_file()]
        for name in beside:
            (place / name).write_bytes((src / name).read_bytes())
        if held.given is None and (src / TOKENIZER).is_file():
            sources = held.experiment.data.sources.values()
            asked = {ASKED[s.template] for s in sources if s.template in ASKED}
            template = asked.pop() if len(asked) == 1 else ""
            made = words.sent(bpe.load(src / TOKENIZER), held.vocabulary, template)
            for name in made.keys() - (set(beside) - {TOKENIZER}):
                (place / name).write_bytes(made[name])
        pixels, note = processor.told(held.experiment)
        if {hub.PREPROCESSOR, hub.PROCESSOR} & set(beside):
            note = ""
        elif pixels:
            (place / hub.PREPROCESSOR).write_text(json.dumps(pixels, indent=2))
    said(f"{dst}: a {given['model_type']} for `transformers`, ready")
    if note:
        said(note)
