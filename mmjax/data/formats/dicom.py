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
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import UID_dictionary

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
from mmjax.data.source import content
from mmjax.error import UserError

TABLES = ("reports.csv", "reports.jsonl")
TAGS = [
    "BurnedInAnnotation", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration",
    "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth",
    *(f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue")
      for part in ("Descriptor", "Data")),
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

    Grey values go through the modality's rescaling, then the VOI table or window, without one the
    1st to 99th percentile (PS3.3, C.11.1 and C.11.2).

    Raises:
        ValueError: if it cannot be decoded, or has burnt-in annotation. OSError: no such file.
    """
    data = content(file)
    buffer = io.BytesIO()
    with _silence():
        try:
            found = pydicom.dcmread(io.BytesIO(data), specific_tags=TAGS)  # type: ignore[arg-type]
            burnt = str(found.get("BurnedInAnnotation", "")).strip().upper() == "YES"
            frames = int(found.get("NumberOfFrames") or 1)
            size = int(found.get("Rows", 0)) * int(found.get("Columns", 0))
            syntax = _syntax(found)
        except Exception as error:  # pydicom raises whatever damaged bytes lead to
            # Neither its message nor its context is passed on: they may quote the file.
            raise ValueError(f"not DICOM, or damaged ({type(error).__name__})") from None
        if burnt:
            raise ValueError("burnt-in annotation")
        if not size:
            raise ValueError("no pixel data")
        if size > (PIL.Image.MAX_IMAGE_PIXELS or size):
            raise ValueError(f"picture of more than {PIL.Image.MAX_IMAGE_PIXELS:,} pixels")
        frame = frames // 2
        try:
            pixels = _shown(pixel_array(found, index=frame), found)
            PIL.Image.fromarray(pixels).save(buffer, "png")
        except Exception as error:
            kind = type(error).__name__
            raise ValueError(f"cannot decode pixel data in {syntax} ({kind})") from None
    return buffer.getvalue(), {"frame": frame + 1, "frames": frames} if frames > 1 else {}


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


def _shown(pixels: np.ndarray, found: pydicom.Dataset) -> np.ndarray:
    """Stored values [h, w] or RGB [h, w, 3] -> [h, w] or [h, w, 3] uint8 as they are shown."""
    kind = found.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, found)[..., :3]
        return (pixels >> 8 * (pixels.itemsize - 1)).astype(np.uint8)
    if pixels.ndim == 3:
        if pixels.shape[-1] != 3:
            raise ValueError("neither grey nor RGB")
        return np.rint(pixels * (255 / (2**found.BitsStored - 1))).astype(np.uint8)
    values = apply_modality_lut(pixels, found)
    if found.get("VOILUTSequence"):
        bits = found.VOILUTSequence[0].LUTDescriptor[2]
        share = apply_voi(np.rint(values).astype(np.int64), found) / (2**bits - 1)
    else:
        share = _windowed(np.nan_to_num(values.astype(np.float64)), found)
    grey = np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)
    return 255 - grey if kind == "MONOCHROME1" else grey


def _windowed(values: np.ndarray, found: pydicom.Dataset) -> np.ndarray:
    """[h, w] -> [h, w], 0 at the lower end of the window and 1 at its upper end, or beyond them.

    The first of several windows counts; one of no width is none (PS3.3, C.11.2.1.2 and .3).
    """
    center, width = (_first(found.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(found.get("VOILUTFunction") or "LINEAR").upper()
    if center is None or width is None or width < (1 if function == "LINEAR" else 1e-9):
        low, high = np.percentile(values, (1, 99))
    elif function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    else:
        if function == "LINEAR":
            center, width = center - 0.5, width - 1
        low, high = center - width / 2, center + width / 2
    return (values - low) / max(high - low, 1e-9)


def _first(value) -> float | None:
    """The first of one or several numbers."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)
