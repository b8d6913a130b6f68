"""What users name is found where it lies: on this machine or in a store."""

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import stores

from mmjax import failure, lock, ondisk, paths
from mmjax.error import UserError

PACKAGE = Path(paths.__file__).parent


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    with stores.google(patch) as url:
        yield url
    patch.undo()


def test_what_users_write_becomes_a_path_of_a_file_system_or_a_store(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = {
        "a/b": "a/b",
        "~/x": "/home/me/x",
        "file:///tmp/a%20b": "/tmp/a b",
        "gs://b/x/": "gs://b/x",
        "GS://b/x": "gs://b/x",
        "s3://b": "s3://b",
        Path("gs://b/x"): "gs://b/x",  # pathlib leaves one slash of it
        Path("c:/x"): "c:/x",
    }
    assert {given: str(paths.of(given)) for given in found} == found
    assert isinstance(paths.of("a"), Path) and not isinstance(paths.of("gs://b/x"), Path)
    there = paths.of("gs://b/x/y.png")
    assert paths.of(there) == there and paths.absolute(there) == there
    assert (there.name, there.suffix, str(there.parent)) == ("y.png", ".png", "gs://b/x")
    assert pickle.loads(pickle.dumps(there)) == there
    assert str(paths.beside(there.parent, "z.png")) == "gs://b/x/z.png"
    assert str(paths.beside(Path("here"), "s3://b/z.png")) == "s3://b/z.png"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("foo://b/x", "foo:// is no known kind of store; give a local path, gs://, s3://"),
        ("az://b/x", "az:// is no known kind of store"),
        ("http://host/x", "http:// is no known kind of store"),
        ("gs://", "give gs://BUCKET/NAME"),
        ("gs:///x", "give gs://BUCKET/NAME"),
        ("s3://b/../c", "give s3://BUCKET/NAME"),
        ("file://host/x", "names the host host"),
    ],
)
def test_what_is_no_place_is_refused_in_one_line(given, said):
    with pytest.raises(UserError) as refused:
        paths.of(given)
    assert given in str(refused.value) and said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")]
)
def test_a_store_whose_package_lacks_is_named_with_its_extra(scheme, package, extra, monkeypatch):
    find = paths.importlib.util.find_spec
    monkeypatch.setattr(
        paths.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(UserError, match=rf"needs {package}; .*pip install 'mmjax\[{extra}\]'"):
        paths.of(f"{scheme}://b/x")


@pytest.mark.parametrize("place", ["foo://bucket/run", "s3://bucket/run"])
def test_no_verb_makes_a_local_directory_of_a_url(place, tmp_path):
    command = [sys.executable, "-m", "mmjax"]
    given = ["--config=quickstart", f"--workdir={place}"]
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    ran = subprocess.run(
        [*command, "train", *given],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2 and ran.stderr.count("\n") == 1, ran.stderr
    assert "no known kind of store" in ran.stderr or "orbax writes to local file" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_copies_follow_what_is_in_the_store(bucket):
    home = paths.of(f"{bucket}/copies")
    (home / "a.txt").write_text("one")
    (home / "in" / "b.txt").write_text("two")
    near = paths.near(home)
    assert (near / "a.txt").read_text() == "one" and (near / "in/b.txt").read_text() == "two"
    kept = (near / "a.txt").stat().st_ino
    (home / "in" / "b.txt").write_text("six")  # of the same size
    (home / "c.txt").write_text("new")
    assert (paths.near(home) / "in/b.txt").read_text() == "six"
    assert (near / "a.txt").stat().st_ino == kept  # not fetched again
    (home / "c.txt").unlink()
    assert not (paths.near(home) / "c.txt").exists()
    assert paths.near(home / "in" / "b.txt").read_text() == "six"
    assert not paths.near(home / "absent").exists()
    assert paths.near(Path("here")) == Path("here")


def test_names_that_lead_elsewhere_are_not_copied(bucket, monkeypatch):
    there = paths.of(f"{bucket}/odd")
    store, root = paths.store_of(there)
    held = {f"{root}/x/../../../escaped": {"type": "file", "name": "x", "size": 1}}
    monkeypatch.setattr(store, "find", lambda *given, **how: held)
    with pytest.raises(UserError, match="which is no path; rename it"):
        paths.near(there)


def test_what_is_made_here_goes_there_whole_and_last_what_tells_so(bucket, monkeypatch):
    there = paths.of(f"{bucket}/made")
    with pytest.raises(UserError, match=f"^{there}/x is wrong$"), paths.made(there) as place:
        place.mkdir()
        (place / "x").write_text("1")
        raise UserError(f"{place}/x is wrong")
    assert paths.objects(there) == {}
    order: list[str] = []
    with paths.made(there, last=["done.json"]) as place:
        assert (place / "x").read_text() == "1"  # what was begun is found again
        (place / "done.json").write_text("{}")
        (place / "y").mkdir()
        (place / "y" / "z").write_text("2")
        store, _ = paths.store_of(there)
        put = store.put
        monkeypatch.setattr(store, "put", lambda a, b: (order.extend(b), put(a, b)))
    assert order[-1].endswith("done.json") and len(order) == 3
    assert {*paths.objects(there)} == {"x", "y/z", "done.json"}
    assert not place.exists()
    with pytest.raises(UserError, match=r"--dst=gs://.*holds something else \(done.json, x, y/z\)"):
        with paths.made(there):
            raise AssertionError
    with paths.made(there, begun=["done.json"]) as place:
        assert (place / "done.json").read_text() == "{}"


def test_a_lock_in_a_store_has_one_holder(bucket, monkeypatch):
    file = paths.of(f"{bucket}/run/lock.json")
    with lock.held(file) as check:
        check()
        with pytest.raises(UserError, match="is being written by process"), lock.held(file):
            raise AssertionError
        check()
        file.unlink()
        with pytest.raises(UserError, match="no longer this process's"):
            check()
    assert not file.exists()
    # One of another machine: alive while it gives signs of life.
    monkeypatch.setattr(lock, "kernel", lambda: "elsewhere")
    other = lock.this_process()
    monkeypatch.undo()
    file.write_bytes(lock._told(other))
    with pytest.raises(UserError, match="last sign of life"), lock.held(file):
        raise AssertionError
    monkeypatch.setattr(lock, "STALE", -1.0)
    with lock.held(file) as check:
        check()
    assert not file.exists()


def test_steps_that_no_save_finished_are_none(bucket):
    there = paths.of(f"{bucket}/checkpoints")
    for name in ("1/commit_success.txt", "1/state/x", "2/state/x", "3.abandoned/x"):
        (there / name).write_text("x")
    assert (ondisk.names(there), ondisk.unfinished(there)) == (["1"], ["2"])
    with pytest.raises(UserError, match="orbax writes to local file systems and to gs://"):
        ondisk.check_writable(paths.of("s3://b/run"))


def test_trouble_with_a_store_is_one_line():
    from gcsfs.retry import HttpError

    said = failure.explained(HttpError({"code": 401, "message": "Anonymous caller"}))
    assert said is not None and "Anonymous caller" in said and "sign in" in said


# Where paths are made of strings that no user gave, or of what `paths` found, with the reason.
ALLOWED = {
    "__main__", "locate", "lock", "paths", "persist", "failure",  # of the package, and the system
    "destination", "data/write", "data/source", "data/formats/files",  # local copies and drafts
    "data/formats/dicom", "data/formats/folder", "data/sets/emoji", "data/sets/openmoji",
    "data/sets/prepared", "data/sets/tfds", "codecs/efficientnet", "convert/hub", "lettering",
}  # fmt: skip


def made_otherwise(source: str) -> list[str]:
    """Calls that open or make a path past `paths.of`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("open", "Path"):
                found.append(f"{node.func.id} in line {node.lineno}")
    return found


def test_paths_of_users_come_through_one_door():
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).with_suffix("").as_posix()
        if name not in ALLOWED:
            assert made_otherwise(file.read_text()) == [], f"{file}: use paths.of"
    assert made_otherwise("from pathlib import Path\nx = Path(given)\nopen(x)") == [
        "Path in line 2", "open in line 3",
    ]  # fmt: skip


def test_local_paths_import_nothing_of_stores():
    code = (
        "import sys; from mmjax import paths; paths.of('a'); paths.near(paths.of('/tmp'));"
        "sys.exit(bool({'etils', 'fsspec', 'gcsfs', 's3fs'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
