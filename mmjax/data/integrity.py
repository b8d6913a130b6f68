"""Whether a data set's files are those that were written: what they are, not what they say.

Two measures: the outline of a file takes a moment, whatever its size, and sees another file, a cut
or a longer one, and files that were written anew; the digest reads every record and sees all.
"""

from collections.abc import Mapping
from pathlib import Path

from mmjax import paths
from mmjax.data import store
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.extra import need

TFDS = "dataset_info.json"  # of data sets in TFDS's own form


def is_tfds(path: str | Path) -> bool:
    """Whether a data set has TFDS's own form."""
    return (paths.of(path) / TFDS).is_file()


def summary(path: str | Path) -> str:
    """SHA-256 of the outlines of a data set's files, split by split, after they were checked.

    Raises:
        UserError: if one is missing, or not the one that dataset.json tells of.
    """
    path = paths.of(path)
    if is_tfds(path):
        found = [f for f in sorted(path.iterdir()) if store.RECORDS in f.name or f.name == TFDS]
        made = [("", f.name, store.outline(f)) for f in found]
    else:
        known = store.info(path)
        told = known.get("files", {})
        made = [
            (split, name, store.outline(path / name, told.get(name)))
            for split in sorted(known["splits"])
            for name in known["splits"][split]["files"]
        ]
    return store.digest_of(repr(made))


def check_same(sets: Mapping[str, Path], old: Mapping[str, str], new: Mapping[str, str]) -> None:
    """Checks that data sets have the content they had, by their digest where summaries differ.

    The same records may be cut into other files; what is in them then decides.

    Args:
        sets: by name of their source. old, new: their summaries.

    Raises:
        UserError: if a data set's records are not those its dataset.json tells of.
    """
    for name, path in sets.items():
        if name in old and old[name] != new[name]:
            if is_tfds(path):
                raise UserError(f"the files in {path} are not those of before; {store.AGAIN}")
            verify(path)


def verify(path: str | Path) -> int:
    """Reads a data set whole and holds it against what was noted of it -> how many records it has.

    Raises:
        UserError: if a record is damaged, or not the one that was written.
    """
    path = paths.of(path)
    summary(path)
    if is_tfds(path):  # which notes no sums
        openmoji = need("mmjax.data.sets.openmoji")
        splits = [openmoji.read(path, split) for split in openmoji.SPLITS]
        return len([part[i].id for part in splits for i in range(len(part))])
    known, sums, count = store.info(path), {}, 0
    for split in known["splits"]:
        total = ""
        for data in store.read(path, split).packed():
            total = store.chained(total, data)
            count += 1
        sums[split] = total
    if store.combined(sums) != known["digest"]:
        raise UserError(f"{path} holds other records than its {store.INFO} tells of; {store.AGAIN}")
    check_tokenizer(path)
    return count


def check_tokenizer(path: Path) -> None:
    """Checks that a data set's tokenizer is the one it was built with, if that is known.

    Raises:
        UserError: if it is another.
    """
    file, known = path / store.TOKENIZER, store.built(path).get("digest")
    if known is not None and store.digest_of(bpe.load(file).to_str()) != known:
        raise UserError(
            f"{file} is not the tokenizer that the set was built with; bring that back, or name "
            f"this one by data.tokenizer and remove it here"
        )
