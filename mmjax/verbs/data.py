"""Builds, counts and shows data sets, and trains tokenizers.

mmjax data build --src=photos --format=folder --dst=out/data/photos     your own files
mmjax data build --src=openmoji|scenes|digits|prose --dst=DIR           sets that need no download
mmjax data build --src=tfds:coco_captions --dst=DIR                     TFDS, prepared on disk
mmjax data describe --src=out/data/photos                               counts, and checks files
mmjax data describe --src=out/data/photos --signal --size=32            model.signal_mean and _std
mmjax data show --src=out/data/photos --split=test --out=sheet.png      a contact sheet
mmjax data tokenizer --src=DIR,DIR --dst=tokenizer.json                 one of several sets
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from absl import flags
from rich.table import Table

from mmjax.data import build, integrity, signal, store
from mmjax.destination import check_free
from mmjax.error import UserError, near
from mmjax.log import show_table
from mmjax.sheet import is_sheet

SRC = flags.DEFINE_string("src", None, "what to build from; or directory of a data set")
FORMAT = flags.DEFINE_string("format", "", f"of your own files: {', '.join(build.READERS)}")
DST = flags.DEFINE_string("dst", None, "directory to build into, or tokenizer.json to write")
SPLIT = flags.DEFINE_string("split", "train", "split to show")
OUT = flags.DEFINE_string("out", "sheet.png", "image to write")
VOCABULARY = flags.DEFINE_integer(
    "vocabulary", build.VOCABULARY, "ids of the tokenizer trained on the texts"
)
TOKENIZER = flags.DEFINE_string("tokenizer", "", "tokenizer.json to take instead of training one")
HELD = "share held out, where the source has no splits; by default 0.05"
VALIDATION = flags.DEFINE_float("validation", None, f"{HELD}, of few documents one at least")
TEST = flags.DEFINE_float("test", None, f"{HELD}, of few documents ten, or a fifth of them")
COUNT = flags.DEFINE_integer("count", None, "records to show (96), or scenes to build (20,000)")
SIGNAL = flags.DEFINE_bool("signal", False, "model.signal_mean and model.signal_std of the images")
RESIZE = flags.DEFINE_string("resize", signal.RESIZE, "with --signal: data.resize, if not this")
VERIFY = flags.DEFINE_bool("verify", False, "read every record and hold it against what was built")
SIZE = flags.DEFINE_integer(
    "size", None, "scenes, emoji, and with --signal: side of an image in pixels"
)
# Options of single sources; what is not given is left to the source.
OPTIONS = (
    flags.DEFINE_bool("follow_links", None, "your own files: read links out of --src too"),
    SIZE,
    flags.DEFINE_integer("level", None, "scenes: detail of captions, 1 to 3"),
    flags.DEFINE_float("information", None, "scenes: share of caption words that are true, 0 to 1"),
    flags.DEFINE_float("overlap", None, "scenes: how far objects may overlap, 0 to 0.6"),
    flags.DEFINE_integer("most", None, "scenes: objects in the split of most, others have fewer"),
    flags.DEFINE_bool("edits", None, "scenes: a scene, a change in words, and the scene changed"),
    flags.DEFINE_integer("seed", None, "scenes: of everything random"),
    flags.DEFINE_list("styles", None, "emoji: icon sets to take"),
    flags.DEFINE_string("held_out", None, "emoji: icon set kept for the split `style`"),
    flags.DEFINE_string("data_dir", None, "tfds: directory of prepared data sets"),
    flags.DEFINE_string("images", None, "jsonl, llava: directory below which named images lie"),
)


class Action(NamedTuple):
    """What `mmjax data NAME` does.

    about: a line on it. flags: those it has. run: does it, given --src and --dst.
    """

    about: str
    flags: tuple
    run: Callable[[str, str], None]


def main(rest: list[str]) -> int:
    """Runs one of ACTIONS."""
    action = rest[0] if rest else ""
    if action not in ACTIONS:
        said = f"{action!r} is no action{near(action, ACTIONS)}; " if action else ""
        raise UserError(f"{said}say what to do: mmjax data {'|'.join(ACTIONS)} --src=...")
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is not understood; flags begin with --")
    own = {flag.name for flag in ACTIONS[action].flags}
    others = {flag.name for one in ACTIONS.values() for flag in one.flags} - own
    if given := [name for name in sorted(others) if flags.FLAGS[name].present]:
        have = ", ".join(f"--{name}" for name in sorted(own))
        raise UserError(f"--{given[0]} is no flag of `mmjax data {action}`; have: {have}")
    for flag in (SRC, DST):
        if flag.name in own and flag.value is None:
            raise UserError(f"--{flag.name} is missing; see mmjax data {action} --help")
    ACTIONS[action].run(SRC.value or "", DST.value or "")
    return 0


def help_of(argv: list[str]) -> str:
    """What is said of an action that is named, or of all of them."""
    named = [word for word in argv if word in ACTIONS]
    if not named:
        lines = [f"  {name:10s} {one.about}" for name, one in ACTIONS.items()]
        told = "`mmjax data ACTION --help` tells the flags of an action."
        return "\n".join([(__doc__ or "").strip(), "", *lines, "", told])
    action = ACTIONS[named[0]]
    uses = [line for line in (__doc__ or "").splitlines() if line.startswith("mmjax data")]
    uses = [line for line in uses if line.split()[2] == named[0]]
    known = [flags.FLAGS[flag.name] for flag in action.flags]
    lines = [f"  --{f.name}  {f.help}" + _default(f.default) for f in known]
    return "\n".join([f"{named[0].capitalize()}: {action.about}.", "", *uses, "", *lines])


def _default(value) -> str:
    return "" if value in (None, "", False) else f" (default: {value})"


def build_one(src: str, dst: str) -> None:
    """Builds a source into a directory and says what came of it."""
    if TOKENIZER.value and flags.FLAGS["vocabulary"].present:
        raise UserError("--vocabulary is of a tokenizer that is trained, and --tokenizer names one")
    shares = {flag.name: flag.value for flag in (VALIDATION, TEST)}
    told = None if not any(share is not None for share in shares.values()) else shares
    options = {flag.name: flag.value for flag in (*OPTIONS, COUNT) if flag.value is not None}
    found = build.build(src, dst, FORMAT.value, VOCABULARY.value, TOKENIZER.value, told, options)
    print(f"data set in {dst}{store.left_out(dst, found)}")
    table(build.describe(dst))


def describe(src: str, dst: str) -> None:
    """Prints counts; with --verify reads all of the set first, with --signal only measures it."""
    if SIGNAL.value:
        found = signal.measure(src, SIZE.value, RESIZE.value)
        if found is None:
            raise UserError(f"--src={src} has no images to train on; a signal is of images")
        print(found.line())
        return
    if VERIFY.value:
        print(f"verified: {integrity.verify(src):,} records are those that were written")
    table(build.describe(src))
    said = "" if integrity.is_tfds(src) else store.left_out(src, store.info(src))
    print(said.strip(), end="\n" if said else "")


def show(src: str, dst: str) -> None:
    """Writes a contact sheet."""
    check_free(OUT.value, "--out", is_sheet)
    build.show(src, SPLIT.value, OUT.value, 96 if COUNT.value is None else COUNT.value)
    print(f"contact sheet in {OUT.value}")


def tokenizer(src: str, dst: str) -> None:
    """Trains a tokenizer."""
    check_free(dst, "--dst", lambda path: False)  # it is what trained weights mean
    build.save(build.train_tokenizer(src.split(","), VOCABULARY.value), dst)
    print(f"tokenizer in {dst}")


def table(counts: dict[str, dict]) -> None:
    """Prints counts, a column a split."""
    view = Table("", *counts)
    for name in next(iter(counts.values())):
        cells = [row[name] for row in counts.values()]
        view.add_row(name, *(f"{c:,}" if isinstance(c, int) else c for c in cells))
    show_table(view)


ACTIONS: Mapping[str, Action] = {
    "build": Action(
        "makes a data set and its tokenizer; stopped, the same command goes on",
        (SRC, FORMAT, DST, VALIDATION, TEST, VOCABULARY, TOKENIZER, COUNT, *OPTIONS),
        build_one,
    ),
    "describe": Action(
        "counts what a data set holds, split by split",
        (SRC, VERIFY, SIGNAL, SIZE, RESIZE),
        describe,
    ),
    "show": Action("writes a contact sheet of a split", (SRC, SPLIT, OUT, COUNT), show),
    "tokenizer": Action(
        "trains a tokenizer on the texts of one or several data sets",
        (SRC, DST, VOCABULARY),
        tokenizer,
    ),
}
