"""Builds a data set, counts what is in it, or writes a contact sheet of it.

mmjax data build --src=openmoji --dst=out/data/openmoji
mmjax data describe --src=out/data/openmoji
mmjax data show --src=out/data/openmoji --split=test --out=sheet.png
"""

from absl import flags
from rich.console import Console
from rich.table import Table

from mmjax.data import build
from mmjax.error import UserError

SRC = flags.DEFINE_string("src", None, "name of a data set (build) or directory of one")
DST = flags.DEFINE_string("dst", None, "directory to build into")
SPLIT = flags.DEFINE_string("split", "train", "split to show")
OUT = flags.DEFINE_string("out", "sheet.png", "picture to write")
COUNT = flags.DEFINE_integer("count", 96, "records to show")
VOCABULARY = flags.DEFINE_integer(
    "vocabulary", 1024, "ids of the tokenizer trained on the captions"
)


def main(rest: list[str]) -> int:
    """Runs build, describe or show."""
    action = rest[0] if rest else ""
    if action not in ("build", "describe", "show") or SRC.value is None:
        raise UserError("say what to do: mmjax data build|describe|show --src=...; see --help")
    if action == "build":
        if DST.value is None:
            raise UserError("--dst is missing; name the directory to build into")
        build.build(SRC.value, DST.value, VOCABULARY.value)
        print(f"data set in {DST.value}")
        table(build.describe(DST.value))
    if action == "describe":
        table(build.describe(SRC.value))
    if action == "show":
        build.show(SRC.value, SPLIT.value, OUT.value, COUNT.value)
        print(f"contact sheet in {OUT.value}")
    return 0


def table(counts: dict[str, dict[str, float]]) -> None:
    """Prints counts by split."""
    columns = list(next(iter(counts.values())))
    view = Table("split", *columns)
    for split, row in counts.items():
        view.add_row(split, *(f"{row[c]:,}" for c in columns))
    Console().print(view)
