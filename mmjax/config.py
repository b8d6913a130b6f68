"""Experiment file -> frozen dataclasses, once, at the door. Nothing below reads a ConfigDict."""

import dataclasses
import runpy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from mmjax import kind, locate
from mmjax.error import UserError
from mmjax.kind import KindConfig
from mmjax.sample_config import SampleConfig
from mmjax.values import build, nearest


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; one may be -1 and takes the devices that are left."""

    data: int
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class SourceConfig:
    """A data set on disk.

    Attributes:
        path: its directory. weight: its share of the documents.
        template: "" takes documents as they are; "sep" makes prompts and answers of conversations,
            "vicuna" in the words of LLaVA's; "sep_one" asks one question a picture, drawn from all
            that are known, "sep_draw" for the picture of a text; "reconstruct" asks for a picture
            given, "caption" for the words to one.
        balance: gives documents that teach to write text, captions, answers about pictures,
            pictures and what is interleaved equal shares, however many there are of each.
    """

    path: str
    weight: float
    template: str
    balance: bool

    def __post_init__(self):
        """Checks the share."""
        if self.weight <= 0:
            raise UserError(f"data source {self.path} has weight={self.weight}; it must be above 0")


@dataclass(frozen=True)
class StageConfig:
    """Part of a run with a mixture of its own.

    Attributes:
        until: share of the steps after which the next stage begins; 1 for the last.
        weights: source -> share of the documents; a source may have 0.
    """

    until: float
    weights: Mapping[str, float]


@dataclass(frozen=True)
class DataConfig:
    """What rows are made of.

    Attributes:
        sources: name -> data set.
        stages: name -> part of the run, in order; if empty, the sources' weights hold throughout.
        tokenizer: path of a tokenizer.json; "" takes the first source's own.
        length: positions a row, l. images: image slots a row, i.
        image: side of a picture in pixels. patch: side of a patch.
        text_first: share of documents with the caption before the picture.
        caption_dropout: share of documents that lose their caption (for guidance).
        shared_position: all patches of a picture have one position id.
        resize: how pictures are brought to size: a key of mmjax.data.resize.RESIZE, or steps, as
            mmjax.data.steps tells.
        resize_prompt: the same of pictures that are only read, as templates have those of prompts:
            Chameleon pads them, and cuts those it draws (section 3.2). "" reads all alike.
        spans: mean number of spans a document moves to its end (CM3); 0 moves none.
        spans_fixed: that number in every document, not its mean.
        ends: EOS fill a last text up to a multiple of so many tokens; see `models.dial`.
        bottleneck: what keeps the template "reconstruct" from being solved by copying: "lowres"
            shrinks the given picture, "registers" puts 16 learned tokens behind it, through which
            alone it is seen; "none". shrink: how many times smaller a side "lowres" makes it.
        coded: read the codes or latents `mmjax tokenize` made of the sources, not their pictures.
        window: documents packed together; the order of rows follows from it.
        workers: processes that read data; 0 is a thread. The order does not depend on it.
        kinds: name -> shape of pictures besides the default, `image` square.
        extra: positions a picture takes beside its patches (LLaVA's, where it keeps a class token).
        crop: whether `patch` may leave an edge of a picture over, which is then not seen (imported
            towers).
    """

    sources: Mapping[str, SourceConfig]
    stages: Mapping[str, StageConfig]
    tokenizer: str
    length: int
    images: int
    image: int
    patch: int
    text_first: float
    caption_dropout: float
    shared_position: bool
    resize: str
    spans: float
    bottleneck: str
    shrink: int
    coded: bool
    window: int
    workers: int
    kinds: Mapping[str, KindConfig] = field(default_factory=dict)
    spans_fixed: bool = False
    ends: int = 1
    extra: int = 0
    resize_prompt: str = ""
    crop: bool = False

    def __post_init__(self):
        """Checks fields against each other."""
        if self.spans_fixed and (self.spans < 1 or self.spans % 1):
            raise UserError(
                f"data.spans={self.spans} with data.spans_fixed=True must be a whole number above 0"
            )
        if self.window < 1 or self.workers < 0:
            raise UserError(
                f"data.window={self.window} must be at least 1, and data.workers={self.workers} at "
                f"least 0"
            )
        if self.ends < 1 or (self.ends > 1 and self.spans):
            raise UserError(
                f"data.ends={self.ends} must be at least 1, and 1 where data.spans moves some"
            )
        for name in ("text_first", "caption_dropout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"data.{name}={getattr(self, name)} is a share: give 0 to 1")
        if self.patch < 1 or (self.image % self.patch and not self.crop):
            raise UserError(f"data.patch={self.patch} must divide data.image={self.image}")
        if self.length < self.patches + 5:
            raise UserError(
                f"data.length={self.length} is too short for one picture of {self.patches} patches "
                f"and a caption; try {2 * self.patches + 32}"
            )
        if not self.sources:
            raise UserError("data.sources is empty; name at least one data set")
        self._check_stages()
        kind.check(self)

    def _check_stages(self) -> None:
        """Checks that stages end in order, the last with the run, and weigh every source."""
        last = 0.0
        for name, stage in self.stages.items():
            if not last < stage.until <= 1.0:
                raise UserError(
                    f"data.stages.{name}.until={stage.until} must lie above {last} and at most at 1"
                )
            if set(stage.weights) != set(self.sources):
                raise UserError(
                    f"data.stages.{name}.weights names {', '.join(stage.weights)}; it must name "
                    f"every source: {', '.join(self.sources)}"
                )
            if min(stage.weights.values()) < 0 or not any(stage.weights.values()):
                raise UserError(
                    f"data.stages.{name}.weights={dict(stage.weights)} must be at least 0, and one "
                    f"of them above"
                )
            last = stage.until
        if self.stages and last != 1.0:
            raise UserError(f"the last of data.stages ends at {last}; it must end at 1")

    def resizes(self, loss: bool) -> str:
        """How a picture is brought to size that is learned to be drawn, or is only read."""
        return self.resize if loss else self.resize_prompt or self.resize

    @property
    def patches(self) -> int:
        """Positions of a picture of the default kind, p."""
        return (self.image // self.patch) ** 2 + self.extra

    @property
    def modalities(self) -> tuple[int, ...]:
        """`Batch.modality` of each kind, the default first."""
        return kind.modalities([k.like for k in self.kinds.values()])

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(Height, width) of each kind, the default first."""
        return ((self.image, self.image), *((k.height, k.width) for k in self.kinds.values()))

    @property
    def counts(self) -> tuple[int, ...]:
        """Patches of each kind, the default first."""
        return (self.patches, *(k.patches for k in self.kinds.values()))


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule.

    Attributes:
        kind: "adamw", or "muon" for the matrices of stacked blocks and the same AdamW for the rest.
            Weights decay in both: matrices and tables, not norms' scales, biases and gates.
        peak: learning rate after `warmup` steps. decay: "cosine", "linear", "constant"
            or "exponential".
        floor: last learning rate as a share of the peak.
        clip: largest global gradient norm. ema: decay of the averaged weights; 0 keeps none.
    """

    kind: str
    peak: float
    warmup: int
    decay: str
    floor: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip: float
    ema: float

    def __post_init__(self):
        """Checks ranges."""
        shares = {"b1": self.b1, "b2": self.b2, "ema": self.ema}
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise UserError(f"optim.{name}={value} must be at least 0 and below 1")
        counted = {"peak": self.peak, "warmup": self.warmup, "floor": self.floor}
        for name, least in (counted | {"eps": self.eps, "weight_decay": self.weight_decay}).items():
            if least < 0:
                raise UserError(f"optim.{name}={least} must be at least 0")
        if self.clip <= 0:
            raise UserError(f"optim.clip={self.clip} must be above 0")


@dataclass(frozen=True)
class EvalConfig:
    """The evaluations at the end, and the validation loss on the way there.

    Attributes:
        documents: a split. drawings: pictures drawn a split. Both are at least 10.
        every: steps between two measurements of the loss on the validation split while training;
            0 for none.
    """

    documents: int
    drawings: int
    every: int = 0

    def __post_init__(self):
        for name in ("documents", "drawings"):
            if getattr(self, name) < 10:  # own and nine others to choose among
                raise UserError(f"{name}={getattr(self, name)} must be at least 10")


@dataclass(frozen=True)
class Experiment:
    """Everything a run depends on.

    Attributes:
        seed: of weights, data order and noise.
        steps: optimizer updates. batch: rows an update, over all devices.
        accumulate: microbatches an update.
        family: key of mmjax.models.MODELS, or the dotted path of a module that is a family.
        model: that family's own configuration.
        start: name of a part of the weights -> workdir of the run whose part of that name it
            begins as; "all" stands for all of its weights.
        log_every, save_every: in steps.
    """

    seed: int
    steps: int
    batch: int
    accumulate: int
    mesh: MeshConfig
    data: DataConfig
    family: str
    model: Any
    start: Mapping[str, str]
    optim: OptimConfig
    sample: SampleConfig
    evals: EvalConfig
    log_every: int
    save_every: int


def resolve(values, families: Mapping[str, type]) -> Experiment:
    """ConfigDict or nested dict -> Experiment, with `model` in its family's own dataclass.

    families: name -> that dataclass; see `mmjax.run.families`.

    Raises:
        UserError: for anything that cannot run, with what to write instead.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise UserError(f"get_config() gave a {type(values).__name__}; it must return a ConfigDict")
    values = dict(values)
    model = build(families[values.get("family")], values.get("model", {}), "config.model")
    experiment = dataclasses.replace(build(Experiment, values), model=model)
    check(experiment)
    return experiment


def check(e: Experiment) -> None:
    """Checks across groups that need no device.

    Raises:
        UserError: naming both values.
    """
    for name in ("steps", "batch", "accumulate", "log_every", "save_every"):
        if getattr(e, name) < 1:
            raise UserError(f"config.{name}={getattr(e, name)} must be at least 1")
    if not 0 <= e.seed < 2**32:
        raise UserError(f"config.seed={e.seed} must be 0 or more, and below 2**32")
    if e.batch % e.accumulate:
        raise UserError(
            f"config.batch={e.batch} must be divisible by config.accumulate={e.accumulate}; "
            f"try {nearest(e.batch, e.accumulate)}"
        )
    if e.data.bottleneck == "registers" and not getattr(e.model, "registers", False):
        raise UserError(
            f"config.data.bottleneck='registers' needs a mask that knows them and a table of text "
            f"that is trained, which this {e.family} does not have; give 'lowres'"
        )
    for name in ("image", "patch"):
        if getattr(e.model, name, getattr(e.data, name)) != getattr(e.data, name):
            raise UserError(
                f"config.model.{name}={getattr(e.model, name)} differs from "
                f"config.data.{name}={getattr(e.data, name)}; give both one value"
            )
    kind.check_agree(e.family, e.model, e.data)
    if getattr(e.model, "codes", 0) and e.data.shared_position:
        raise UserError(
            f"config.data.shared_position=True is for patches that are denoised together; a "
            f"{e.family} writes codes one by one: give False"
        )
    tokens = getattr(e.model, "tokens", 0) or e.data.patches
    if tokens != e.data.patches:
        raise UserError(
            f"the model makes {tokens} positions of a picture, but config.data.image="
            f"{e.data.image} and data.patch={e.data.patch} leave room for {e.data.patches}; change "
            f"data.patch, data.extra or the model"
        )


def check_new(e: Experiment) -> None:
    """Checks what a run should not begin with, though one that did goes on.

    Raises:
        UserError: for texts that are not written from left to right but end where they end.
    """
    alpha = getattr(e.model, "text_alpha", 1.0)
    if alpha < 1 and e.data.ends == 1:
        raise UserError(
            f"config.model.text_alpha={alpha} writes texts whose length is known before their "
            f"words, but with config.data.ends=1 each ends where it ends; give data.ends=16, which "
            f"fills them up to multiples, and data.spans=0"
        )


def check_devices(e: Experiment, split: int) -> None:
    """Checks that a microbatch's rows divide over the devices that share them.

    Raises:
        UserError: with two batch sizes that would do.
    """
    if e.batch % (split * e.accumulate):
        raise UserError(
            f"config.batch={e.batch} must divide over data*fsdp={split} devices"
            + (f" times accumulate={e.accumulate}" if e.accumulate > 1 else "")
            + f"; try {nearest(e.batch, split * e.accumulate)}"
        )


def load(path: str) -> ConfigDict:
    """Runs an experiment file's `get_config()`. path: of the file, or its name; see `locate`.

    Raises:
        UserError: if there is no such file, or it does not define get_config.
    """
    file = locate.experiment(path)
    module = runpy.run_path(file)
    if "get_config" not in module:
        raise UserError(f"experiment file {file} does not define get_config()")
    return module["get_config"]()
