"""Files of a data set: which there are, what they are called, what they say; none is lost."""

import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from mmjax.data.record import Item, Record
from mmjax.error import UserError

SPLITS = ("train", "validation", "test")
FOLLOW = "--follow_links"
HIDDEN, TWICE = "hidden", "links to folders that are read anyway"


class Tree(NamedTuple):
    """What lies below a folder; each file and folder that is not descended into stands once.

    root: the folder. files: regular files, sorted, none hidden or in a hidden folder.
    bad: (path, reason) of what cannot be read. left: (path, kind) of what is left out: see `walk`.
    roots: the folder, and those that links lead to which were followed.
    """

    root: Path
    files: list[Path]
    bad: list[tuple[Path, str]]
    left: list[tuple[Path, str]]
    roots: tuple[Path, ...]


def walk(root: Path, follow_links: bool = False) -> Tree:
    """What lies below a folder, or of a file the file.

    A folder is read once. A link whose target lies below the folder stands for its file; one to a
    folder is left out, as that is read under its own name. A link that leads elsewhere is bad, but
    with `follow_links` it is what it leads to.
    """
    if not root.is_dir():
        return Tree(root.parent, [root], [], [], (root.parent,))
    tree = Tree(root, [], [], [], ())
    known = [os.path.realpath(root)]
    below = [root]
    seen = {known[0]}
    while below:
        folder = below.pop()
        try:
            with os.scandir(folder) as entries:
                found = list(entries)
        except OSError as error:
            tree.bad.append((folder, f"folder cannot be read: {why(error)}"))
            continue
        for entry in found:
            path = folder / entry.name
            if entry.name.startswith("."):
                tree.left.append((path, HIDDEN))
                continue
            try:
                if entry.is_symlink() and not _taken(path, known, follow_links, tree.bad):
                    continue
                if not entry.is_dir():
                    _add(path, entry.stat().st_mode, tree)
                    continue
            except OSError as error:
                tree.bad.append((path, why(error)))
                continue
            target = os.path.realpath(path)
            if target in seen or (entry.is_symlink() and _comes(target, known[0])):
                tree.left.append((path, TWICE))
            else:
                seen.add(target)
                below.append(path)
    for part in (tree.files, tree.bad, tree.left):
        part.sort()  # type: ignore[attr-defined]
    return tree._replace(roots=(root, *map(Path, known[1:])))


def _taken(path: Path, known: list[str], follow_links: bool, bad: list) -> bool:
    """Whether a link is to be read; if it leads elsewhere and is, that is added to `known`.

    Raises:
        OSError: if it leads nowhere.
    """
    try:
        target = str(path.resolve(strict=True))
    except RuntimeError as error:  # how Python before 3.13 says that links lead in a circle
        raise OSError("a link that leads to itself") from error
    except FileNotFoundError as error:
        raise OSError(f"a link to {os.readlink(path)}, which does not exist") from error
    if _lies_in(target, known):
        return True
    if not follow_links:
        bad.append((path, f"a link to {target}, outside the source; {FOLLOW} reads it"))
        return False
    folder = target if os.path.isdir(target) else os.path.dirname(target)
    if folder not in known:
        known.append(folder)
    return True


def _lies_in(target: str, folders: Sequence[str]) -> bool:
    return any(os.path.commonpath((target, folder)) == folder for folder in folders)


def _comes(target: str, root: str) -> bool:
    """Whether a folder is come by without links: it lies below root, and is not hidden there."""
    parts = Path(os.path.relpath(target, root)).parts
    return _lies_in(target, [root]) and not any(part.startswith(".") for part in parts)


def _add(path: Path, mode: int, tree: Tree) -> None:
    if stat.S_ISREG(mode):
        tree.files.append(path)
    else:
        tree.bad.append((path, "neither a file nor a folder: a pipe, a socket or a device"))


def why(error: OSError) -> str:
    """What is wrong, without the path."""
    return (error.strerror or str(error) or "it cannot be read").lower()


def rest(
    tree: Tree, used: Collection[Path], kinds: Mapping[str, str] | None = None
) -> Iterator[Item]:
    """Items for all that is not `used`: what cannot be read, and what is ignored by its ending.

    kinds: what is said of files that end so, instead of the ending alone.
    """
    for path, reason in tree.bad:
        yield damaged(label(path, tree.root), reason)
    for path, kind in tree.left:
        yield ignored(label(path, tree.root), kind)
    for file in tree.files:
        if file not in used:
            ending = file.suffix.lower() or "no ending"
            yield ignored(label(file, tree.root), (kinds or {}).get(ending, ending))


def there_is(tree: Tree) -> str:
    """What there is instead of the files that were looked for: "; there is .txt (3), a: ..."."""
    counts: dict[str, int] = {}
    for file in tree.files:
        ending = file.suffix.lower() or "no ending"
        counts[ending] = counts.get(ending, 0) + 1
    said = [f"{ending} ({count})" for ending, count in sorted(counts.items())[:8]]
    said += [f"{label(path, tree.root)} ({reason})" for path, reason in tree.bad[:2]]
    return f"; there is {', '.join(said)}" if said else ""


def existing(path: Path, folder: bool = False) -> Path:
    """The path, if there is something.

    Raises:
        UserError: if there is not, or with `folder` if it is not a folder.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if folder and not path.is_dir():
        raise UserError(f"{path} is a file; name the folder it lies in")
    return path


def listed(
    path: Path, endings: Sequence[str], follow_links: bool = False
) -> tuple[Tree, list[Path]]:
    """A file, or what lies below a folder -> all of it, and the files whose names end so, sorted.

    Raises:
        UserError: if there is nothing, or nothing in it.
    """
    tree, named = walk(existing(path), follow_links), tuple(endings)
    files = [f for f in tree.files if path.is_file() or f.name.lower().endswith(named)]
    if not files:
        wanted = " ".join(endings)
        raise UserError(
            f"no file in {path} ends in {wanted}{there_is(tree)}; name another folder, or another "
            f"--format"
        )
    if not any(file.stat().st_size for file in files):
        raise UserError(f"{path} is empty; name a file with data")
    return tree, files


def label(file: Path, root: Path) -> str:
    """Its path below root, with "/"; what is not UTF-8 in a file name is replaced."""
    return os.fsencode(file.relative_to(root).as_posix()).decode(errors="replace")


def composed(name: str | PurePath) -> str:
    """A name in the one spelling (NFC) in which equal ones are equal.

    A letter with an accent may be spelled as one character or as two, and file systems and tables
    differ in which they take.
    """
    return unicodedata.normalize("NFC", str(name))


def split_of(file: Path, root: Path) -> str | None:
    """The first folder below root on the way to the file, if it is named as a split is."""
    first, *rest = file.relative_to(root).parts
    return first if rest and first in SPLITS else None


def utf8(data: bytes) -> str:
    """Bytes -> text, without a byte order mark.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error


def damaged(source: str, reason: str) -> Item:
    """An item that cannot be read, for a reason known before it is."""

    def read() -> Record:
        raise ValueError(reason)

    return Item(source, read)


def ignored(source: str, kind: str) -> Item:
    """An item that is no record; it is counted under `kind`."""
    return damaged(source, "ignored")._replace(ignored=kind)
