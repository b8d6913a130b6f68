"""The shape of the tree: import order, sizes, no TensorFlow, no forgotten TODO."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mmjax"
# A module may import from its own line and from the lines above it.
ORDER = [
    "error", "extra", "paths",
    "locate", "lock", "destination", "failure", "values", "batch", "kind",
    "sample_config", "config", "mesh", "persist", "dial", "flops", "lettering", "sheet", "watch",
    "log", "plot", "data", "layers", "losses", "contrastive", "diffusion", "codecs", "models",
    "convert", "optim", "step", "checksum", "leaf", "ondisk", "checkpoint", "run", "sample",
    "trained", "conversion", "verification", "start", "coding", "validation", "evals",
    "evaluate", "resume", "progress", "train", "verbs", "__main__",
]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def home(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mmjax"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("mmjax.")}
    return names


@pytest.mark.parametrize("path", [f for f in FILES if home(f) != "__init__"], ids=str)
def test_imports_run_one_way(path):
    rank = ORDER.index(home(path))
    later = [name for name in imported(path) if ORDER.index(name) > rank]
    assert not later, f"{path} imports {later}, which come after it"


def test_the_import_check_can_fail(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from mmjax.train import train\nfrom mmjax import optim\n")
    assert imported(bad) == {"train", "optim"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert text.count("\n") <= 410, "about 400 lines a file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_no_todo_without_a_number():
    for path in FILES:
        for line in path.read_text().splitlines():
            assert not re.search(r"\b(TODO|FIXME)\b(?!\(#\d+\))", line), f"{path}: {line}"


def test_tensorflow_is_never_imported():
    code = (
        "import sys, mmjax.train, mmjax.evaluate, mmjax.data.build;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_starts_without_jax():
    code = "import sys, mmjax.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
