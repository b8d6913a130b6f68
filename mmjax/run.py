"""From an experiment to its parts: the same few lines for training, sampling and evaluation."""

import dataclasses
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tokenizers import Tokenizer

from mmjax import config, optim, paths, values
from mmjax.batch import Vocabulary
from mmjax.config import Experiment
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.data.store import TOKENIZER
from mmjax.error import UserError, some
from mmjax.log import METRICS, read_json
from mmjax.mesh import Rules, make_mesh
from mmjax.models import MODELS, Model, family_of
from mmjax.persist import keep_programs
from mmjax.step import State, abstract_state, init_state, train_step

CONFIG, VOCABULARY = "config.json", "vocabulary.json"
GIVEN = "hugging_face.json"  # in a workdir, the config.json its weights came with
AGAIN = "the command that made the workdir, `mmjax train` or `convert`, run again writes it anew"
# All that training and evaluation leave in a workdir.
LEAVES = (
    CONFIG, VOCABULARY, GIVEN, TOKENIZER, METRICS, "checkpoints", "samples", "evals.json",
    "summary.json", "loss.png",
)  # fmt: skip


class Families(dict[str, type]):
    """Family name -> its configuration's dataclass; a family of a user's is imported when asked."""

    def __missing__(self, name: str) -> type:
        return family_of(name).Config


def families() -> Families:
    """The families there are, and by dotted path those of users; see `models.family_of`."""
    return Families({name: family.Config for name, family in MODELS.items()})


@dataclass(frozen=True)
class Run:
    """An experiment on devices.

    Attributes:
        experiment, rules, tokenizer, model: what they say.
        tx, rate: optimizer and learning rate by step.
        abstract: shapes and shardings of the state.
        vocabulary: the model's ids.
    """

    experiment: Experiment
    rules: Rules
    tokenizer: Tokenizer
    model: Model
    tx: optax.GradientTransformation
    rate: optax.Schedule
    abstract: State
    vocabulary: Vocabulary

    def init(self) -> State:
        """A fresh state, created where it belongs."""
        e = self.experiment
        start = partial(init_state, self.model, self.tx, e.optim.ema)
        return jax.jit(start, out_shardings=self.shardings())(jax.random.key(e.seed))

    def shardings(self) -> State:
        """State-shaped tree of shardings."""
        return jax.tree.map(lambda x: x.sharding, self.abstract)

    def step(self):
        """The compiled train step: (state, batch) -> (state, metrics); the state is donated."""
        e = self.experiment
        function = partial(
            train_step, self.model, self.tx, self.rate, e.optim.ema, e.accumulate, e.seed
        )
        state, rows = self.shardings(), self.rules.sharding("batch")
        return jax.jit(
            function,
            in_shardings=(state, rows),
            out_shardings=(state, NamedSharding(self.rules.mesh, P())),
            donate_argnums=0,
        )


def prepare(
    e: Experiment,
    devices=None,
    workdir: str | Path | None = None,
    ids: str | Path | None = None,
) -> Run:
    """Builds mesh, tokenizer, model and optimizer; allocates nothing.

    Args:
        e: the experiment. devices: default all.
        workdir: of a run that was begun, whose own tokenizer is taken.
        ids: a workdir whose vocabulary.json, if it has one, is taken; default `workdir`.

    Raises:
        UserError: for anything that does not fit together.
    """
    run = assemble(e, devices, workdir, ids)
    if wrong := undivided(run.abstract):
        raise UserError(wrong)
    return run


def prepare_here(workdir: str | Path, devices=None) -> Run:
    """A run's parts on the devices of this machine, for sampling and evaluation.

    Weights are split over them, or lie whole on each where their sizes do not divide.
    """
    e = read_config(workdir)
    split, whole = config.MeshConfig(1, -1, 1), config.MeshConfig(-1, 1, 1)
    run = assemble(dataclasses.replace(e, mesh=split), devices, workdir)
    if undivided(run.abstract):
        run = assemble(dataclasses.replace(e, mesh=whole), devices, workdir)
    return run


def assemble(
    e: Experiment,
    devices=None,
    workdir: str | Path | None = None,
    ids: str | Path | None = None,
) -> Run:
    """`prepare` without its last check."""
    keep_programs()
    pipeline.check(e.data)
    own = workdir and paths.of(workdir) / TOKENIZER
    tokenizer = bpe.load(own) if own else pipeline.tokenizer_of(e.data)
    rules = Rules(make_mesh(e.mesh.data, e.mesh.fsdp, e.mesh.tensor, devices))
    vocabulary = vocabulary_of(e, tokenizer, ids or workdir)
    model = family_of(e.family).build(e.model, vocabulary, rules)
    tx = optim.optimizer(e.optim, e.steps, model.rates)
    abstract = abstract_state(model, tx, e.optim.ema, rules)
    rate = optim.schedule(e.optim, e.steps)
    return Run(e, rules, tokenizer, model, tx, rate, abstract, vocabulary)


def vocabulary_of(e: Experiment, tokenizer: Tokenizer, workdir: str | Path | None) -> Vocabulary:
    """A run's ids: those written down in its workdir, or its tokenizer's with codes behind them.

    A run that begins as an imported model with image codes, or with ids whose weights are apart,
    has that model's: they lie where they lie there. One that begins with an imported table
    otherwise has at least as many ids as that has rows.

    Raises:
        UserError: if they have no ids for what the data need.
    """
    codes, begun = getattr(e.model, "codes", 0), e.start.get("all") if workdir is None else None
    kept = codes or getattr(e.model, "added", 0)
    place = workdir if begun is None or not kept else begun
    if place is None or not (paths.of(place) / VOCABULARY).is_file():
        names = ("all", "language") if workdir is None else ()
        tables = [paths.of(e.start[name]) for name in names if name in e.start]
        imported = [w for w in tables if (w / VOCABULARY).is_file()]
        rows = max((read_vocabulary(w, 0).size for w in imported), default=0)
        return bpe.vocabulary(tokenizer, codes, rows)
    found = read_vocabulary(place, codes)
    if e.data.spans and not found.masks:
        raise UserError(
            f"config.data.spans={e.data.spans} takes ids of masks, which the imported "
            f"{paths.of(place) / VOCABULARY} does not have; give 0.0"
        )
    return found


def undivided(abstract: State) -> str:
    """Says which weight does not divide over the mesh axes it is split on; "" if all do."""
    for path, x in jax.tree_util.tree_leaves_with_path(abstract.params):
        sizes = x.sharding.mesh.shape
        for size, axis in zip(x.shape, x.sharding.spec, strict=False):
            parts = sizes[axis] if axis else 1
            if size % parts:
                name = "/".join(p.key for p in path)
                return (
                    f"weight {name} of shape {x.shape} does not divide over mesh.{axis}={parts}; "
                    f"change the model's size or make mesh.{axis} a divisor of {size}"
                )
    return ""


def read_vocabulary(workdir: str | Path, codes: int) -> Vocabulary:
    """A workdir's ids: its vocabulary.json, which imported weights have, or its tokenizer's.

    Raises:
        UserError: if there is neither.
    """
    path = paths.of(workdir) / VOCABULARY
    if not path.is_file():
        return bpe.vocabulary(bpe.load(paths.of(workdir) / TOKENIZER), codes)
    return values.build(Vocabulary, read_json(path, AGAIN), VOCABULARY)


def read_config(workdir: str | Path) -> Experiment:
    """The experiment a workdir was trained with.

    Raises:
        UserError: if the workdir holds none.
    """
    path = paths.of(workdir) / CONFIG
    if not path.is_file():
        raise UserError(f"{path} does not exist; is {workdir} the --workdir of a `mmjax train`?")
    return config.resolve(read_json(path, AGAIN), families())


def is_workdir(path: str | Path) -> bool:
    """Whether a directory is one that training or a conversion made: its config.json tells."""
    try:
        found = json.loads((paths.of(path) / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("family") in [*MODELS] and "optim" in found


def check_workdir(path: str | Path) -> None:
    """Checks that training replaces nothing of others in a directory.

    Raises:
        UserError: naming what training would write that is there and that no training left.
    """
    path = paths.of(path)
    if there := [] if is_workdir(path) else [n for n in LEAVES if (path / n).exists()]:
        raise UserError(
            f"--workdir={path} is no workdir of `mmjax train`, but has {some(there)}, which would "
            f"be replaced; name another directory"
        )


def directory(workdir: str | Path) -> Path:
    """Where a workdir keeps its checkpoints."""
    return paths.absolute(paths.of(workdir)) / "checkpoints"
