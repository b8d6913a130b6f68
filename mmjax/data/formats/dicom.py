"""DICOM images with the text of a report beside them.

scan.dcm, scan.txt      an image and its report, or a table in the folder:
reports.csv             with the columns file, report; or
reports.jsonl           {"file": "scan.dcm", "report": "..."} a line

Only tags of the pixels are ever read, so nothing about patient, study or institution can reach a
record, a message or a log; what the report itself says is kept as it is written.
"""

import contextlib
import hashlib
import io
import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import PIL.Image
import pydicom
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, UID_dictionary

from mmjax.data.formats import grey
from mmjax.data.formats.caption import pair, rows, text_beside
from mmjax.data.formats.files import (
    Tree,
    composed,
    damaged,
    existing,
    label,
    rest,
    split_of,
    there_is,
    walk,
)
from mmjax.data.record import Item, Record
from mmjax.data.resize import PIXELS
from mmjax.data.source import BYTES, content, opened
from mmjax.error import UserError

TABLES = ("reports.csv", "reports.jsonl")
TAGS = [
    "BurnedInAnnotation", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PresentationLUTShape",
    *grey.MODALITY, *grey.VOI, *grey.GROUPS, *grey.PADDING, *grey.PALETTE,
]  # fmt: skip
DATA = [
    "PixelData", "FloatPixelData", "DoubleFloatPixelData",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
]  # fmt: skip


def items(path: Path, follow_links: bool = False) -> Iterator[Item]:
    """Images in the order of their paths: *.dcm, and files of other names that begin as DICOM does.

    Of several frames the middle one is taken; `facts` then tell `frame` (from 1 on) and `frames`.
    A record's id is a hash of the file's path below the folder. First-level folders train,
    validation and test are splits. What else lies in the folder comes last.

    Raises:
        UserError: if path is no folder, or holds no DICOM.
    """
    tree = walk(existing(path, folder=True), follow_links)
    images = [file for file in tree.files if _is_dicom(file)]
    if not images:
        found = there_is(tree)
        raise UserError(f"no DICOM files in {path} (*.dcm){found}; name another folder")
    return _items(tree, images, [file for file in tree.files if file.name in TABLES])


def _is_dicom(file: Path) -> bool:
    if file.name == "DICOMDIR":  # a table of contents
        return False
    if file.suffix.lower() == ".dcm":
        return True
    try:
        with file.open("rb") as raw:
            return raw.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _items(tree: Tree, images: list[Path], tables: list[Path]) -> Iterator[Item]:
    root = tree.root
    reports: dict[Path, str | None] = dict.fromkeys(images)
    spelled = {composed(image): image for image in images}
    bad, used = [], {*images, *tables}
    for table in tables:
        for entry in rows(table, "report"):
            file = Path(os.path.normpath(table.parent / entry.file))
            file = file if file in reports else spelled.get(composed(file), file)
            reason = entry.reason
            if not reason and file not in reports:
                reason = f"no DICOM file {entry.file}"
            elif not reason and reports[file] is not None:
                reason = f"a second report of {entry.file}"
            if reason:
                bad.append((table, entry.line, reason))
            else:
                reports[file] = entry.caption
    for image, report in reports.items():
        name = label(image, root)
        used |= {image.with_suffix(".txt")} if report is None else set()
        yield Item(name, partial(_record, name, image, report, tree.roots), split_of(image, root))
    for table, line, reason in bad:
        yield damaged(f"{label(table, root)}:{line}", reason)
    yield from rest(tree, used)


def _record(name: str, image: Path, report: str | None, roots: tuple[Path, ...]) -> Record:
    """An image with this report, or without one that of the text file beside it."""
    if report is None:
        report = text_beside(image, "report", TABLES[0], roots)
    png, facts = picture(image)
    return pair(hashlib.sha256(name.encode()).hexdigest()[:16], report, png, facts)


def picture(file: Path) -> tuple[bytes, dict[str, int]]:
    """A DICOM file -> PNG (8 bits, grey or RGB), and `frame` and `frames` if it has several.

    Greys are those of `grey.shown`; of several frames only the one that is taken is read.

    Raises:
        ValueError: if it cannot be decoded, or has burnt-in annotation. OSError: no such file.
    """
    buffer = io.BytesIO()
    with opened(file) as raw, _silence():
        try:
            source = _inflated(file, raw)
            # Of a file that is deflated all has to be read at once.
            whole = source is not raw
            wanted: Any = [*TAGS, *DATA] if whole else TAGS
            found = pydicom.dcmread(source, stop_before_pixels=not whole, specific_tags=wanted)
            burnt = str(found.get("BurnedInAnnotation", "")).strip().upper() == "YES"
            frames = int(found.get("NumberOfFrames") or 1)
            size = int(found.get("Rows", 0)) * int(found.get("Columns", 0))
            each = int(found.get("SamplesPerPixel", 1)) * int(found.get("BitsAllocated", 8)) / 8
            syntax = _syntax(found)
        except _TooLarge as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # pydicom raises whatever damaged bytes lead to
            # Neither its message nor its context is passed on: they may quote the file.
            raise ValueError(f"not DICOM, or damaged ({type(error).__name__})") from None
        if burnt:
            raise ValueError("burnt-in annotation")
        if not size:
            raise ValueError("no pixel data")
        if size > PIXELS or size * each > BYTES:
            raise ValueError(f"picture of more than {PIXELS:,} pixels, or {BYTES:,} bytes")
        frame = frames // 2
        try:
            source.seek(0)
            plain = grey.high_bit(found) is None
            given: Any = found if whole else source
            stored = pixel_array(given, index=frame, correct_unused_bits=plain)
            PIL.Image.fromarray(grey.shown(stored, found, frame)).save(buffer, "png")
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(f"cannot decode pixel data in {syntax} ({kind})") from None
    return buffer.getvalue(), {"frame": frame + 1, "frames": frames} if frames > 1 else {}


class _TooLarge(ValueError):
    """A deflated file has more in it than is read."""


def _inflated(file: Path, raw: BinaryIO) -> BinaryIO:
    """The file itself; if it is deflated, its bytes, once it is known what they come to.

    Raises:
        _TooLarge: if that is more than BYTES.
    """
    about = read_file_meta_info(file)  # type: ignore[no-untyped-call]
    if about.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return raw
    data = content(file)
    begin = 144 + int(about.FileMetaInformationGroupLength)  # behind "DICM" and that length itself
    unpack, rest, size = zlib.decompressobj(-zlib.MAX_WBITS), data[begin:], 0
    while rest and not unpack.eof:
        size += len(unpack.decompress(rest, 1 << 20))
        rest = unpack.unconsumed_tail
        if size > BYTES:
            raise _TooLarge(f"a deflated file of more than {BYTES:,} bytes")
    return io.BytesIO(data)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pydicom quotes values in its warnings and its log; neither goes anywhere meanwhile."""
    log, null = logging.getLogger("pydicom"), logging.NullHandler()
    before = log.propagate
    log.addHandler(null)
    log.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.propagate = before
        log.removeHandler(null)


def _syntax(found: pydicom.FileDataset) -> str:
    """The name of its transfer syntax, if it is one of the standard's."""
    name, kind, *_ = UID_dictionary.get(str(found.file_meta.get("TransferSyntaxUID")), ("", ""))
    return (
        f"transfer syntax {name!r}" if kind == "Transfer Syntax" else "an unknown transfer syntax"
    )
