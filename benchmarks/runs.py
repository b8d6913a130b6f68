"""Runs of an experiment with some of its fields changed, each in a process of its own."""

import argparse
import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CODE = """
import sys
from mmjax import config
from mmjax.evaluate import evaluate
from mmjax.run import families
from mmjax.train import train
sys.path.insert(0, "benchmarks")
import runs
c = runs.changed(runs.load({name!r}, *{arguments!r}), {changes!r})
train(config.resolve(c, families()), {workdir!r})
if {evaluated!r}:
    evaluate({workdir!r})
"""


def load(name: str, *arguments):
    """The configuration of an experiment, given arguments of its `get_config`."""
    import runpy

    return runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))["get_config"](*arguments)


def changed(c, changes: Mapping[str, Any]):
    """A configuration with dotted names put to other values."""
    for name, value in changes.items():
        *path, field = name.split(".")
        target = c
        for part in path:
            target = target[part]
        target[field] = value
    return c


def train(name: str, arguments: tuple, changes: Mapping[str, Any], workdir: Path, evaluated: bool):
    """Trains a changed experiment, and evaluates it; -> what the finished process said."""
    code = CODE.format(
        name=name, arguments=arguments, changes=dict(changes), workdir=str(workdir),
        evaluated=evaluated,
    )  # fmt: skip
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def add_change(parser: argparse.ArgumentParser) -> None:
    """Adds --change, repeated: a dotted field of the configuration and a Python literal."""
    parser.add_argument(
        "--change", action="append", default=[], type=_pair, metavar="NAME=VALUE",
        help="another field of every run, such as model.decoder.width=32",
    )  # fmt: skip


def _pair(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
