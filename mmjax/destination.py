"""Where a command may write: never over its own source, nor over what mmjax did not make."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from mmjax import paths
from mmjax.error import UserError, some
from mmjax.lock import LOCK, held

MARK = "mmjax.json"  # says who made a directory, and while it is in the making of what


def overlaps(a: str | Path, b: str | Path) -> bool:
    """Whether two paths are one place, or one lies in the other, links being followed.

    A path that does not exist is as good as its nearest ancestor that does.
    """
    a, b = paths.absolute(paths.of(a)), paths.absolute(paths.of(b))
    if a == b or a in b.parents or b in a.parents:
        return True
    if paths.is_remote(a) or paths.is_remote(b):
        return False
    return _within(a, b) or _within(b, a)


def _within(inner: Path, outer: Path) -> bool:
    """The same by what the file system says: other spellings, and places mounted twice."""
    if not outer.exists():
        return False
    return any(p.exists() and os.path.samefile(p, outer) for p in (inner, *inner.parents))


def check_apart(src: str | Path, dst: str | Path, flag: str = "--dst") -> None:
    """Checks that what is written does not lie over or in what is read, nor the other way round.

    Raises:
        UserError: if it does.
    """
    if overlaps(src, dst):
        raise UserError(f"{flag}={dst} overlaps {src}, which is read; name a place apart from it")


def check_free(path: str | Path, flag: str, ours: Callable[[Path], bool]) -> None:
    """Checks that a file can be written: that it is new, or `ours` knows it as made by mmjax.

    Raises:
        UserError: if there is something else.
    """
    path = paths.of(path)
    if path.is_dir():
        raise UserError(f"{flag}={path} is a directory; name a file")
    there = path.exists() or (not paths.is_remote(path) and path.is_symlink())
    if there and not (path.is_file() and ours(path)):
        raise UserError(
            f"{flag}={path} exists and was not written by this command; remove it, or name another "
            f"file"
        )


def marked(path: Path) -> bool:
    """Whether a directory has mmjax's mark."""
    return _mark(path) is not None


def _mark(path: Path) -> dict | None:
    try:
        found = json.loads((path / MARK).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("made_by") == "mmjax" else None


def _set_mark(path: Path, of: dict | None = None) -> None:
    told = {"made_by": "mmjax"} | ({} if of is None else {"of": of})
    (path / MARK).write_text(json.dumps(told, indent=1) + "\n")


@contextlib.contextmanager
def making(
    dst: str | Path,
    src: Path,
    of: dict,
    overwrite: bool,
    strange: Callable[[Path], Iterable[str]],
    last: Collection[str] = (),
) -> Iterator[Path]:
    """A directory beside dst that takes dst's place when the block ends well.

    What was there goes last. A refusal (UserError) removes the directory in the making; after a
    kill or a full disk it stays, and the same call finds in it what it has done so far.

    Args:
        dst: the destination. src: what is read, which is never replaced.
        of: tells whether the source is still the same; what was begun of another is removed.
        overwrite: whether dst may be there. strange: names of what in it mmjax did not make.
        last: names of files by which the result is known, sent after all others to a store.

    Raises:
        UserError: if dst is there and may not be replaced, or nothing can be written.
    """
    dst = paths.absolute(paths.of(dst))
    if paths.is_remote(dst):
        with _sent(dst, overwrite, last) as place, making(place, src, of, False, strange) as draft:
            yield draft
        return
    try:
        check_replaceable(dst, src, overwrite, strange)
        place = dst.with_name(f"{dst.name}.partial")
        with contextlib.ExitStack() as locks:
            locks.enter_context(held(dst.with_name(f"{dst.name}.{LOCK}")))
            if (dst / LOCK).exists():  # perhaps of a run that trains there
                locks.enter_context(held(dst / LOCK))
            _begin(place, of)
            try:
                yield place
            except UserError:
                shutil.rmtree(place, ignore_errors=True)
                raise
            _set_mark(place)
            _swap(place, dst)
    except OSError as error:
        raise UserError(
            f"{dst} not written: {error.strerror or error}; make room and write access there or "
            f"choose another --dst; the same command goes on"
        ) from error


@contextlib.contextmanager
def _sent(dst: Path, overwrite: bool, last: Collection[str]) -> Iterator[Path]:
    """A local place for what `making` makes for a store."""
    if overwrite and dst.is_dir():
        raise UserError(
            f"--overwrite: a store cannot put one directory in another's place, and {dst} is "
            f"there; remove it first, or name another --dst"
        )
    with paths.made(dst, last) as place:
        if place.exists():  # made whole, but not sent
            shutil.rmtree(place)
        yield place


def check_replaceable(
    dst: Path, src: Path, overwrite: bool, strange: Callable[[Path], Iterable[str]]
) -> None:
    """Checks that dst is free, or may be replaced; arguments as those of `making`.

    Raises:
        UserError: if it may not.
    """
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir()) and not overlaps(src, dst)):
        return
    if overlaps(src, dst):
        raise UserError(f"--dst={dst} overlaps --src={src}, which is read; name a place apart")
    if not overwrite:
        raise UserError(f"{dst} exists; give --overwrite to replace it, or another --dst")
    if names := list(strange(dst)):
        raise UserError(
            f"{dst} is not replaced, since mmjax did not make all that is in it ({some(names)}); "
            f"move that, or name another --dst"
        )


def _begin(place: Path, of: dict) -> None:
    """Makes a directory, empty unless what lies there was begun of the same.

    Raises:
        UserError: if something lies there that no such call began.
    """
    mark = _mark(place)
    if mark is not None and mark.get("of") == of:
        return
    if mark is not None:
        shutil.rmtree(place)
    elif place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(
            f"{place}, where the result would be made, is there and not mmjax's; move it, or name "
            f"another --dst"
        )
    place.mkdir(parents=True, exist_ok=True)
    _set_mark(place, of)


def _swap(place: Path, dst: Path) -> None:
    """Puts a directory in the place of another, which is removed when the new one stands."""
    if not dst.exists():
        place.rename(dst)
        return
    aside = Path(tempfile.mkdtemp(prefix=f"{dst.name}.replaced.", dir=dst.parent))
    old = aside / dst.name
    dst.rename(old)
    try:
        place.rename(dst)
    except OSError:
        old.rename(dst)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
