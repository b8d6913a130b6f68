"""Commands that the documentation gives: found in Markdown and docstrings, cut into words."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tiny import ROOT

from mmjax.__main__ import VERBS

PAGES = ("*.md", "experiments/*.md", "docs/**/*.md")
TREES = ("mmjax", "experiments", "benchmarks", "examples")
STARTS = re.compile(rf"(mmjax ({'|'.join(VERBS)})\b|python (-m )?\S+\.py\b|make [a-z]\S*\b)")


class Command(NamedTuple):
    """Words of a command line, without what is said about it.

    Attributes:
        where: file, relative to the tree. words: as a shell would part them; what was optional, in
            brackets, is given. whole: on a line of its own, not a part named inside a sentence.
    """

    where: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)}"


def texts() -> Iterator[tuple[Path, str]]:
    """Every page, and every docstring of the code."""
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            yield path, path.read_text()
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for tree in TREES:
        for path in sorted((ROOT / tree).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, kinds) and (doc := ast.get_docstring(node)):
                    yield path, doc


def found() -> list[Command]:
    """All of them, in order; alternatives (`a|b`) each."""
    out = []
    for path, text in texts():
        where = str(path.relative_to(ROOT))
        for line, whole in lines(text):
            for one in alternatives(line):
                out.append(Command(where, tuple(words(one)), whole))
    return out


def lines(text: str) -> Iterator[tuple[str, bool]]:
    """(command line with its continuations, whether it stands alone) of a text."""
    rest, fenced = text.split("\n"), False
    markdown = "```" in text
    while rest:
        line = rest.pop(0)
        fenced ^= line.strip().startswith("```")
        bare = re.sub(r"^\s*(Run:|and|or)\s+", "", line.strip())
        make = bare.startswith("make ") and not fenced  # a word of a sentence
        if STARTS.match(bare) and (fenced or not markdown) and not make:
            while rest and (bare.endswith("\\") or rest[0].strip().startswith(("--", "[--"))):
                bare = bare.removesuffix("\\").rstrip() + " " + rest.pop(0).strip()
            for part in bare.split(";"):
                if STARTS.match(part.strip()):
                    yield part.strip(), True
    for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text.replace("```", "\0")):
        code = " ".join(code.split())
        if STARTS.match(code):
            yield code, False


def alternatives(line: str) -> list[str]:
    """`--src=a|b|c` as three commands."""
    chosen = re.search(r"=(\w+(?:\|\w+)+)", line)
    if not chosen:
        return [line]
    return [line.replace(chosen[1], one) for one in chosen[1].split("|")]


def words(line: str) -> list[str]:
    """The words of a command; comments, and remarks behind two spaces, are left out."""
    line = re.sub(r"\s#.*", "", line)
    line = re.sub(r"(\s--\S*(?:\"[^\"]*\")?)\s{2,}(?=[^\s\[-]).*", r"\1", line)  # remarks
    line = re.sub(r"\s\(.*", "", line)
    line = line.replace("[--", "--").replace("]", "").replace(" ...", "")
    return shlex.split(line)


def trained_by(commands: list[Command]) -> dict[str, str]:
    """Workdir -> the experiment that some command trains there."""
    out = {}
    for command in commands:
        if command.words[:2] == ("mmjax", "train"):
            given = dict(w.lstrip("-").split("=", 1) for w in command.words if "=" in w)
            if {"config", "workdir"} <= {*given}:
                out[given["workdir"]] = given["config"]
    return out
