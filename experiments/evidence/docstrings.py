"""English prose enough to train a small text model: docstrings of the packages mmjax stands on.

    python experiments/evidence/docstrings.py

Leaves out/data/docstrings, whose paragraphs are split by package, class or function, and
out/data/small_tokenizer.json, trained on them and on out/data/scenes16. What it holds follows from
the versions installed.
"""

import ast
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import study

from mmjax.data.sets.prose import is_prose, paragraphs

PACKAGES = ("flax", "grain", "jax", "matplotlib", "numpy", "optax", "PIL", "scipy", "sklearn")
SHORTEST, LONGEST = 60, 600  # characters of a paragraph
HELD_OUT = 0.03  # share of files whose paragraphs are test data
HOME = Path("out/data")


def files() -> Iterator[tuple[str, Path]]:
    """(name, path) of every Python file of the packages."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            sys.exit(f"{package} is not installed")
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            yield f"{package}/{path.relative_to(root)}", path


def documents(path: Path) -> Iterator[str]:
    """Paragraphs of prose in a file's docstrings."""
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return  # some packages carry files that are not meant to be read
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(tree):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        for one in paragraphs(text or ""):
            if SHORTEST <= len(one) <= LONGEST and is_prose(one):
                yield one


def main() -> None:
    """Writes the paragraphs, each once, and builds the set and the tokenizer."""
    source = HOME / "docstrings_source"
    source.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    count = {"train": 0, "test": 0}
    with (source / "all.jsonl").open("w") as out:
        for name, path in files():
            share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
            split = "test" if share < HELD_OUT else "train"
            for text in documents(path):
                if text not in seen:
                    seen.add(text)
                    count[split] += len(text)
                    out.write(json.dumps({"text": text, "split": split}) + "\n")
    print(f"{len(seen):,} paragraphs; characters: {count}")
    log = source / "log"
    built = HOME / "docstrings"
    study.mmjax(log, "data", "build", f"--src={source}", "--format=jsonl", f"--dst={built}")
    both = f"--src={built},{HOME / 'scenes16'}"
    study.mmjax(log, "data", "tokenizer", both, f"--dst={HOME / 'small_tokenizer.json'}")


if __name__ == "__main__":
    study.begin(main)
