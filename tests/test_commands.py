"""Every command in a page, docstring or header is one that mmjax takes; the README's are run."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from argparse import ArgumentParser
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import PIL.Image
import pytest
from commands import Command, alternatives, found, lines, trained_by, words
from tiny import ROOT
from verb_flags import taken_back

import mmjax
from mmjax import __main__ as door
from mmjax import coding, config, conversion, evaluate, run, train, trained, verification
from mmjax.batch import Vocabulary
from mmjax.data import build, signal
from mmjax.data.sets import openmoji as openmoji_set
from mmjax.data.sets import tfds
from mmjax.error import UserError
from mmjax.trained import Trained

COMMANDS = found()
PLACES = sorted({c.where for c in COMMANDS})
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\):DeprecationWarning")


class Reached(BaseException):
    """A verb has accepted all it was given, and would now begin to work."""


def reached(*given, **options):
    raise Reached


class Dry(Trained):
    """A model that only looks at what it is asked."""

    def generate(self, prompts, *given, **options):
        self.check_options(options)
        raise Reached


def dry(workdir, *given) -> Dry:
    """What `mmjax train` would have left in a workdir, by the documentation's own commands."""
    known = trained_by(COMMANDS) | {"out/chameleon": "chameleon_scenes"}
    assert str(workdir) in known, f"no command trains {workdir}"
    path = known[str(workdir)]
    e = config.resolve(config.load(str(ROOT / path) if "/" in path else path), run.families())
    parts = SimpleNamespace(vocabulary=Vocabulary(9), config=e.model)
    return Dry(SimpleNamespace(experiment=e, model=SimpleNamespace(parts=parts)), {}, 0)


@pytest.fixture
def works(monkeypatch, tmp_path):
    """Stops every verb where its work begins, in an empty directory that has the experiments."""
    for place, name in (
        (train, "train"), (evaluate, "evaluate"), (coding, "tokenize"), (build, "write"),
        (build, "describe"), (build, "show"), (build, "train_tokenizer"), (openmoji_set, "build"),
        (conversion, "convert"), (verification, "verify"), (signal, "measure"),
    ):  # fmt: skip
        monkeypatch.setattr(place, name, reached)
    monkeypatch.setattr(trained, "load", dry)
    monkeypatch.setattr(tfds, "items", wraps(tfds.items)(reached))  # with the options it has
    monkeypatch.setattr(conversion, "is_theirs", lambda path: False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.syspath_prepend(ROOT)
    for name in ("experiments", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)


TALK = {
    "id": "a", "image": "a.png",
    "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}],
}  # fmt: skip


def fill(path: Path) -> None:
    """Makes a source of any format: readers complain at once of an empty one."""
    path.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (8, 8)).save(path / "a.png")
    (path / "a.txt").write_text("a")
    (path / "a.jsonl").write_text('{"text": "a"}\n')
    (path / "a.json").write_text("[]")
    with tarfile.open(path / "a.tar", "w") as tar:
        tar.add(path / "a.png")


def accepted(command: Command) -> str:
    """Runs a verb up to its work; -> "" or the line by which it refuses."""
    verb, *argv = command.words[1:]
    for word in argv:
        name, _, value = word.partition("=")
        if name == "--prompt" and value.endswith(".png"):
            PIL.Image.new("RGB", (8, 8)).save(value)
        if name in ("--src", "--images") and re.fullmatch(r"[\w/]+", value):
            fill(Path(value))
        if name == "--src" and value.endswith(".json"):
            Path(value).write_text(json.dumps([TALK]))
    sys.argv = ["mmjax", verb, *argv]  # where the fields of an experiment are looked for
    with taken_back():
        if not command.whole:  # a part of a command: its flags alone
            module = sys.modules.get(door.VERBS[verb]) or __import__(door.VERBS[verb])
            del module
            from absl import flags

            given = [a for a in argv if "..." not in a]
            try:
                door.parse(flags.FLAGS, verb, given)
            except UserError as error:
                return str(error)
            return ""
        try:
            code = door.run_verb(verb, argv)
        except Reached:
            return ""
    return f"ended with {code} before its work began"


@pytest.mark.parametrize("where", PLACES)
def test_every_command_is_taken(where, works, capsys):
    refused = []
    for command in (c for c in COMMANDS if c.where == where):
        told = checks(command)
        if told:
            refused.append(f"{command}\n  {told} {capsys.readouterr().err}")
    assert not refused, "\n".join(refused)


def checks(command: Command) -> str:
    """Why a command would not run; "" if it would."""
    if command.words[0] == "mmjax":
        return accepted(command)
    if command.words[0] == "make":
        done = subprocess.run(
            ["make", "-n", "-C", str(ROOT), *command.words[1:]], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return done.stderr
    script, *argv = command.words[1:]
    return parsed(ROOT / script, argv)


def parsed(script: Path, argv: list[str]) -> str:
    """Why a script does not take its flags; "" if it does, or has none."""
    if not script.is_file():
        return f"{script} is no file"
    before, (real, old) = {*sys.modules}, (ArgumentParser.parse_args, sys.argv)

    def stop(self, *given):
        real(self, *given)
        raise Reached

    ArgumentParser.parse_args = stop
    sys.path.insert(0, str(script.parent))
    sys.argv = [str(script), *argv]
    try:
        if "parse_args" in script.read_text() or "study.arguments" in script.read_text():
            runpy.run_path(str(script), run_name="dry")["main"]()
        else:
            compile(script.read_text(), str(script), "exec")
            return "" if not argv else f"takes no flags, but is given {argv}"
    except Reached:
        return ""
    except SystemExit as error:
        return f"argparse: {error}"
    finally:
        ArgumentParser.parse_args, sys.argv = real, old
        sys.path.remove(str(script.parent))
        for name in {*sys.modules} - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(script.parent)):
                del sys.modules[name]
    return "never looked at its flags"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("mmjax data build --src=TALKS --format=llava --dst=out/x --size=336", "--size"),
        ("mmjax data build --src=TALKS --format=lava --dst=out/x", "--format=lava"),
        ("mmjax data bild --src=scenes --dst=out/x", "build"),
        ("mmjax train --config=experiments/quickstart.py --workdir=x --config.stepz=3", "stepz"),
        ("mmjax train --config=experiments/quickstart.py --workdir=x --evals=luck", "luck"),
        ("mmjax train --config=experiments/none.py --workdir=x", "none.py"),
        ("mmjax sample --workdir=out/quickstart --prompt=a --contrast=0.5", "contrast"),
        ("mmjax evaluate", "--workdir"),
        ("python benchmarks/mot.py --hight=3", "argparse"),
        ("python benchmarks/none.py", "no file"),
        ("make quickstrat", "quickstrat"),
    ],
)
def test_the_check_can_fail(line, why, works, capsys):
    told = checks(Command("here", tuple(words(line)), True))
    assert told and why in told + capsys.readouterr().err


def test_commands_are_found_and_read():
    doc = "Says.\n\nRun:  mmjax data build --src=A --dst=b\n      --size=3\n\nOr `mmjax evaluate`."
    assert [*lines(doc)] == [
        ("mmjax data build --src=A --dst=b --size=3", True), ("mmjax evaluate", False)
    ]  # fmt: skip
    page = "mmjax train is told.\n```\nmmjax train --a=1 \\\n  --b=2  # why\nmake x; make y\n```\n"
    assert [*lines(page)] == [
        ("mmjax train --a=1 --b=2  # why", True), ("make x", True), ("make y", True)
    ]  # fmt: skip
    assert words("mmjax train  --a=1 [--b=2 ...]  # c") == ["mmjax", "train", "--a=1", "--b=2"]
    assert words('mmjax sample --prompt="a b"    what it does') == [
        "mmjax",
        "sample",
        "--prompt=a b",
    ]
    assert words("python x.py --a=1   (this one)") == ["python", "x.py", "--a=1"]
    assert alternatives("mmjax x --src=a|b --c") == ["mmjax x --src=a --c", "mmjax x --src=b --c"]
    assert len(COMMANDS) > 150 and {"README.md", "experiments/llava_7b.py"} <= {*PLACES}
    assert {c.words[0] for c in COMMANDS} == {"mmjax", "python", "make"}


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def test_python_in_the_readme_names_what_there_is():
    assert snippets()
    for code in snippets():
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("mmjax"):
                there = __import__(node.module, fromlist=["x"])
                assert all(hasattr(there, alias.name) for alias in node.names)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                place = {"mmjax": mmjax, "model": Trained}.get(node.value.id)
                assert place is None or hasattr(place, node.attr), ast.unparse(node)


TOY = {
    "train": "--config.steps=2 --config.save_every=2 --config.batch=8 --config.evals.documents=10 "
    "--config.evals.drawings=10 --config.data.window=64",
    "build": "",
}
PIECES = {  # fields of single experiments that make them small, by what is in them
    "decoder": "--config.model.decoder.width=32 --config.model.decoder.depth=1 "
    "--config.model.decoder.mlp=32 --config.model.decoder.unroll=1",
}


def at_toy_size(command: Command) -> list[str]:
    """A command's words, and flags that make it a matter of seconds."""
    verb, *argv = command.words[1:]
    given = list(argv)
    if verb == "train":
        path = next(a for a in argv if a.startswith("--config=")).partition("=")[2]
        given += [f for f in TOY["train"].split() if "steps" not in f or "steps" not in str(argv)]
        model = config.load(str(ROOT / path) if "/" in path else path).model
        given += PIECES["decoder"].split() if "decoder" in model else []
    if verb == "data" and "--src=scenes" in argv:
        given = [a for a in given if not a.startswith("--count")] + ["--count=120"]
    if verb == "sample":
        given += ["--text=4"]
    return [verb, *given]


@pytest.mark.slow
def test_the_readmes_commands_run_one_after_the_other(openmoji, tmp_path):
    """In their order, in one directory, each on what those before it left."""
    (tmp_path / "out" / "data").mkdir(parents=True)
    shutil.copytree(openmoji, tmp_path / "out" / "data" / "openmoji")
    (tmp_path / "FOLDER").mkdir()
    for n in range(60):
        PIL.Image.new("RGB", (20, 20), (4 * n, 99, 250 - 4 * n)).save(tmp_path / f"FOLDER/{n}.png")
        (tmp_path / f"FOLDER/{n}.txt").write_text(f"a plain picture, number {n}")
    PIL.Image.new("RGB", (20, 20), "red").save(tmp_path / "photo.png")
    for name in ("experiments", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    places = ("README.md", "experiments/small_clip.py", "examples/bag_of_words.py")
    chosen = [c for c in COMMANDS if c.where in places and c.whole and c.words[0] == "mmjax"]
    wanted = ("quickstart", "own", "short", "openmoji", "bag_of_words", "scenes32", "codec_scenes",
              "chameleon_scenes", "scenes16", "small_clip", "small_llava")  # fmt: skip
    # A header's data first: the README's LLaVA block begins where those lie.
    chosen.sort(key=lambda c: not (c.where != "README.md" and c.words[1] == "data"))
    quick = ("train", "--config=experiments/quickstart.py", "--workdir=out/quickstart")
    chosen.insert(0, Command("Makefile", ("mmjax", *quick), True))
    done = set()
    for command in chosen:
        names = {re.sub(r".*/|\.py$", "", w.partition("=")[2]) for w in command.words}
        if command.words[1] == "convert" or not names & {*wanted} or command.words in done:
            continue
        done.add(command.words)
        ran = subprocess.run(
            [sys.executable, "-m", "mmjax", *at_toy_size(command)], cwd=tmp_path, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"{command}\n{ran.stderr[-2000:]}"
    assert {c[1] for c in done} == {"train", "evaluate", "sample", "data", "tokenize"}
    assert len(done) >= 15
