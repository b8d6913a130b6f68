"""Where things lie: local paths as pathlib has them, those of object stores as etils.epath has.

`of` makes one or the other of what a user gives, once; what lies below works on both. A store keeps
whole objects: nothing is appended, renamed at once or linked there, and ArrayRecord, safetensors
and other libraries read local files only. So what needs that is made in a local directory and sent
when it is whole (`made`), and read from a local copy (`near`).
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from mmjax.error import UserError, some
from mmjax.extra import EXTRAS

STORES = {"gs": "gcsfs", "s3": "s3fs"}  # scheme -> the package that reads and writes such a store
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_JOINED = re.compile(rf"({'|'.join(STORES)}|file):/(?!/)")  # as pathlib.Path leaves a URL


def of(given: str | os.PathLike) -> Path:
    """A path as a user gives it: local, `~` standing for the home, or `gs://`, `s3://`, `file://`.

    Returns:
        A pathlib.Path, or of a store an etils.epath.Path, whose methods are the same.

    Raises:
        UserError: for another scheme, a store without a bucket, or one whose package is missing.
    """
    text = os.fspath(given)
    if joined := _JOINED.match(text):
        text = f"{joined[1]}://{'/' * (joined[1] == 'file')}{text[joined.end() :]}"
    scheme = _URL.match(text)
    if scheme is None:
        return Path(text).expanduser() if text.startswith("~") else Path(text)
    name = scheme[1].lower()
    if name == "file":
        return _local(text)
    if name not in STORES:
        known = ", ".join(f"{store}://" for store in STORES)
        raise UserError(f"{text}: {name}:// is no known kind of store; give a local path, {known}")
    package = STORES[name]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{text} needs {package}; install it with: pip install 'mmjax[{EXTRAS[package]}]'"
        )
    bucket, *inner = text[scheme.end() :].split("/")
    if not bucket or not {"..", "."}.isdisjoint([bucket, *inner]):
        raise UserError(f"{text} is no place in a store; give {name}://BUCKET/NAME")
    os.environ.setdefault("EPATH_USE_TF", "false")  # else it imports TensorFlow where it finds it
    from etils import epath

    return epath.Path(f"{name}://{text[scheme.end() :]}")  # type: ignore[return-value]


def _local(url: str) -> Path:
    found = urlsplit(url)
    if found.netloc not in ("", "localhost"):
        raise UserError(f"{url} names the host {found.netloc}; give file:///PATH of this one")
    return Path(unquote(found.path))


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path lies in a store."""
    return os.fspath(path).startswith(tuple(f"{name}://" for name in STORES))


def beside(home: Path, name: str) -> Path:
    """What a file in the directory `home` calls `name`: relative to it, absolute, or in a store."""
    return of(name) if _URL.match(name) else home / name


def absolute(path: Path) -> Path:
    """The same place whatever the current directory, with links resolved where there are any."""
    return path if is_remote(path) else path.resolve()


def make(path: Path) -> None:
    """Makes a directory where directories are made; in a store they come with their objects."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def names(path: Path) -> list[str]:
    """What lies directly in a directory of a store; nothing where there is none."""
    store, root = store_of(path)
    try:
        found = store.ls(root, detail=False)
    except FileNotFoundError:
        return []
    return sorted({name.rstrip("/").rpartition("/")[2] for name in found} - {""})


def remove(path: Path) -> None:
    """Removes a directory as far as that is possible."""
    if is_remote(path):
        store, root = store_of(path)
        store.rm(root, recursive=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def home() -> Path:
    """Where copies and drafts of what lies in stores are kept, below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmjax" / "stores"


def store_of(path: Path) -> tuple[Any, str]:
    """The store of a path, as fsspec has it, knowing nothing from before; and its name there."""
    found = path._backend.fs(path)  # type: ignore[attr-defined]  # the one that epath writes with
    found.invalidate_cache()  # what others wrote meanwhile counts
    return found, found._strip_protocol(os.fspath(path))


def objects(path: Path) -> dict[str, dict]:
    """What lies at or below a path of a store: name relative to it ("" of itself) -> what is known.

    Raises:
        UserError: for a name that would lead elsewhere when it is copied.
    """
    store, root = store_of(path)
    found = {}
    for name, about in store.find(root, detail=True).items():
        inner = name.removeprefix(root).strip("/")
        if {"..", "."} & {*inner.split("/")} or "\0" in inner:
            raise UserError(f"{path} holds an object called {inner!r}, which is no path; rename it")
        if about["type"] == "file" and not name.endswith("/"):
            found[inner] = about
    return found


def written(path: Path) -> float:
    """When an object of a store was written, in seconds since 1970 by the store's clock."""
    store, name = store_of(path)
    return _state(store.info(name))[2]


def near(path: Path) -> Path:
    """A local copy of a file or directory of a store; a local path as it is.

    Copies are kept and looked at again: what changed in the store is fetched anew, and what is gone
    there goes here. An absent path gives one that is absent.

    Raises:
        UserError: for names that cannot be copied. OSError: on a full disk.
    """
    if not is_remote(path):
        return path
    kept = home() / "copies"
    copy = kept.joinpath(*PurePosixPath(os.fspath(path).replace("://", "/")).parts)
    known = home() / "known"
    there = objects(path)
    wanted = {(copy / name if name else copy): (name, about) for name, about in there.items()}
    if copy.is_file() and "" not in there:
        copy.unlink()
    if copy.is_dir():
        for file in [f for f in copy.rglob("*") if f.is_file() and f not in wanted]:
            file.unlink()
    stale: list[tuple[str, Path, str, float]] = []
    for file, (_, about) in wanted.items():
        told, size, at = _state(about)
        note = known / hashlib.sha256(str(file).encode()).hexdigest()
        if not (file.is_file() and file.stat().st_size == size and _note(note) == told):
            stale.append((about["name"], file, told, at))
    _fetch(path, stale, known)
    return copy


def _state(about: Mapping[str, Any]) -> tuple[str, int, float]:
    """What changes when an object does, its size in bytes, and when it was written."""
    at: Any = about.get("mtime") or about.get("LastModified")
    marks = [about.get(name) for name in ("generation", "md5Hash", "etag", "ETag")]
    seconds = at.timestamp() if hasattr(at, "timestamp") else 0.0
    return repr((about["size"], *marks, seconds)), about["size"], seconds


def _note(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return None


def _fetch(path: Path, stale: list[tuple[str, Path, str, float]], known: Path) -> None:
    """Copies objects to files, each whole or not at all, and notes their states."""
    if not stale:
        return
    store, _ = store_of(path)
    known.mkdir(parents=True, exist_ok=True)
    drafts = [file.with_name(f".{file.name[:200]}.{os.getpid()}") for _, file, _, _ in stale]
    try:
        for _, file, _, _ in stale:
            file.parent.mkdir(parents=True, exist_ok=True)
        store.get([name for name, *_ in stale], [str(draft) for draft in drafts])
        for (_, file, told, at), draft in zip(stale, drafts, strict=True):
            os.utime(draft, (at, at))  # of the object's age, wherever it is copied to
            draft.replace(file)
            note = known / hashlib.sha256(str(file).encode()).hexdigest()
            note.write_text(told, encoding="utf-8")
    except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        raise UserError(
            f"{path}: {error.filename} would be both file and directory in a copy; rename one"
        ) from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def made(
    path: Path, last: Collection[str] = (), begun: Collection[str] = (), flag: str = "--dst"
) -> Iterator[Path]:
    """A local place for what is to lie at `path`, sent there when the block ends well.

    A local path is its own place. That of a store stays after an error or a kill, and the same
    call finds it again; what it holds is written to the store file by file.

    Args:
        path: the destination. last: names sent after all others, by which it is known as whole.
        begun: names in a finished destination that the block looks at, copied here first.
        flag: what the user gave it with.

    Raises:
        UserError: if the destination holds what is not of this draft.
    """
    if not is_remote(path):
        yield path
        return
    place = home() / "drafts" / hashlib.sha256(os.fspath(path).encode()).hexdigest() / path.name
    there = objects(path)
    if not there.keys() & {*begun} and (strange := sorted({*there} - _files(place).keys())):
        raise UserError(
            f"{flag}={path} holds something else ({some(strange)}); remove it, or name another "
            f"place"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    for name in there.keys() & {*begun}:
        place.mkdir(exist_ok=True)
        shutil.copyfile(near(path / name), place / name)
    try:
        yield place
    except UserError as error:  # which names the place, and the user knows the path
        raise UserError(str(error).replace(str(place), str(path))) from error
    _send(place, path, last)
    shutil.rmtree(place.parent)


def _files(place: Path) -> dict[str, Path]:
    """The files at or below a local place, by name relative to it, "" of itself."""
    if place.is_file():
        return {"": place}
    return {f.relative_to(place).as_posix(): f for f in place.rglob("*") if f.is_file()}


def _send(place: Path, path: Path, last: Collection[str]) -> None:
    store, root = store_of(path)
    files = _files(place)
    for final in (False, True):
        names = [name for name in files if (name in last) == final]
        if names:
            to = [f"{root}/{name}" if name else root for name in names]
            store.put([str(files[name]) for name in names], to)
