"""Builds a data set, counts or shows what is in it, or trains a tokenizer on several.

mmjax data build --src=photos --format=folder --dst=out/data/photos     your own files
mmjax data build --src=openmoji|scenes|digits|prose --dst=DIR           sets that need no download
mmjax data build --src=tfds:coco_captions --dst=DIR                     TFDS, prepared on disk
mmjax data describe --src=out/data/photos
mmjax data tokenizer --src=DIR,DIR --dst=tokenizer.json --vocabulary=8192
mmjax data show --src=out/data/photos --split=test --out=sheet.png
"""

from absl import flags
from rich.console import Console
from rich.table import Table

from mmjax.data import build, store
from mmjax.destination import check_free
from mmjax.error import UserError
from mmjax.sheet import is_sheet

SRC = flags.DEFINE_string("src", None, "what to build from; or directory of a data set")
FORMAT = flags.DEFINE_string("format", "", f"of your own files: {', '.join(build.READERS)}")
DST = flags.DEFINE_string("dst", None, "directory to build into, or tokenizer.json to write")
SPLIT = flags.DEFINE_string("split", "train", "split to show")
OUT = flags.DEFINE_string("out", "sheet.png", "picture to write")
VOCABULARY = flags.DEFINE_integer("vocabulary", 1024, "ids of the tokenizer trained on the texts")
TOKENIZER = flags.DEFINE_string("tokenizer", "", "tokenizer.json to take instead of training one")
VALIDATION = flags.DEFINE_float(
    "validation", 0.05, "share held out, where the source has no splits"
)
TEST = flags.DEFINE_float("test", 0.05, "share held out, where the source has no splits")
COUNT = flags.DEFINE_integer("count", None, "records to show, or scenes to build")
# Options of single sources; what is not given is left to the source.
OPTIONS = (
    flags.DEFINE_integer("size", None, "scenes, emoji: side of a picture in pixels"),
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


def main(rest: list[str]) -> int:
    """Runs build, describe, show or tokenizer."""
    action, src, dst = rest[0] if rest else "", SRC.value, DST.value
    known = ("build", "describe", "show", "tokenizer")
    if action not in known or src is None:
        raise UserError(f"say what to do: mmjax data {'|'.join(known)} --src=...; see --help")
    if action == "describe":
        table(build.describe(src))
    elif action == "show":
        check_free(OUT.value, "--out", is_sheet)
        count = 96 if COUNT.value is None else COUNT.value
        build.show(src, SPLIT.value, OUT.value, count)
        print(f"contact sheet in {OUT.value}")
    elif dst is None:
        raise UserError("--dst is missing; name what to write")
    elif action == "build":
        build_one(src, dst)
    else:
        check_free(dst, "--dst", lambda path: False)  # a tokenizer is what trained weights mean
        build.save(build.train_tokenizer(src.split(","), VOCABULARY.value), dst)
        print(f"tokenizer in {dst}")
    return 0


def build_one(src: str, dst: str) -> None:
    """Builds a source into a directory and says what came of it."""
    shares = {"validation": VALIDATION.value, "test": TEST.value}
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise UserError(f"--validation and --test are {shares}; they must leave some for training")
    options = {flag.name: flag.value for flag in (*OPTIONS, COUNT) if flag.value is not None}
    found = build.build(src, dst, FORMAT.value, VOCABULARY.value, TOKENIZER.value, shares, options)
    print(f"data set in {dst}{store.left_out(dst, found)}")
    table(build.describe(dst))


def table(counts: dict[str, dict]) -> None:
    """Prints counts, a column a split."""
    view = Table("", *counts)
    for name in next(iter(counts.values())):
        cells = [row[name] for row in counts.values()]
        view.add_row(name, *(f"{c:,}" if isinstance(c, int) else c for c in cells))
    Console().print(view)
