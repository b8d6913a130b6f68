"""From the stored values of a DICOM image to the greys it is shown in (PS3.3, C.11; PS3.4, N.2).

Stored values, without what lies in unused bits -> the modality's table or rescaling -> the table or
window of values of interest (VOI) -> 0 black to 1 white, inverted where the image says so. What
functional groups say of a frame takes the place of what stands at the top. Real-world values are
for measuring and change nothing.
"""

from typing import NamedTuple

import numpy as np
import pydicom
from pydicom.pixels import apply_color_lut, apply_modality_lut

# What the two steps read at the top of a header, or in a functional group's macro.
MODALITY = ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence")
VOI = ("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth")
MACROS = {"PixelValueTransformationSequence": MODALITY, "FrameVOILUTSequence": VOI}
GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")  # the last counts
_KINDS = ("", "Float", "DoubleFloat")
PADDING = [f"{kind}PixelPadding{end}" for kind in _KINDS for end in ("Value", "RangeLimit")]
PALETTE = [
    f"{kind}{colour}PaletteColorLookupTable{part}"
    for kind in ("", "Segmented")
    for colour in ("Red", "Green", "Blue")
    for part in (("Data",) if kind else ("Descriptor", "Data"))
]


class Table(NamedTuple):
    """A lookup table: the value its first entry is for, its entries, how many bits they have."""

    first: int
    entries: np.ndarray
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Entries for values; those before the first and behind the last have these."""
        at = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(at, 0, len(self.entries) - 1)]


def shown(pixels: np.ndarray, found: pydicom.Dataset, frame: int = 0) -> np.ndarray:
    """Stored values [h, w] or RGB [h, w, 3] -> [h, w] or [h, w, 3] uint8 as they are shown.

    Args:
        pixels: of one frame, all bits where `high_bit` is a number. found: the header.
        frame: number of the frame, from 0 on.

    Raises:
        Exception: whatever pydicom and NumPy raise for headers that are damaged.
    """
    kind = found.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, found)[..., :3]
        return (pixels >> 8 * (pixels.itemsize - 1)).astype(np.uint8)
    if pixels.ndim == 3:
        if pixels.shape[-1] != 3:
            raise ValueError("neither grey nor RGB")
        return np.rint(pixels * (255 / (2**found.BitsStored - 1))).astype(np.uint8)
    stored = _stored(pixels, found)
    padding = _is_padding(stored, found)
    values = _modality(stored, of_frame(found, frame))
    share = np.clip(_of_interest(values, of_frame(found, frame), ~padding), 0, 1)
    inverse = str(found.get("PresentationLUTShape", "")).strip().upper() == "INVERSE"
    if kind == "MONOCHROME1" or inverse:  # which say the same
        share = 1 - share
    return np.rint(np.where(padding, 0, share) * 255).astype(np.uint8)


def of_frame(found: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """The header's values for MODALITY and VOI as they are for a frame."""
    known = {name: found[name] for name in (*MODALITY, *VOI) if name in found}
    for name, index in zip(GROUPS, (0, frame), strict=True):
        groups = found.get(name) or []
        group = groups[index] if index < len(groups) else pydicom.Dataset()
        for macro, names in MACROS.items():
            if items := group.get(macro):
                known = {k: v for k, v in known.items() if k not in names}
                known |= {k: items[0][k] for k in names if k in items[0]}
    made = pydicom.Dataset()
    for element in known.values():
        made.add(element)
    made.PixelRepresentation = found.get("PixelRepresentation", 0)
    made.set_original_encoding(*found.original_encoding)
    return made


def high_bit(found: pydicom.Dataset) -> int | None:
    """HighBit where it is not the highest of BitsStored, which pydicom takes it for; else None."""
    bits, high, size = (int(found.get(n) or 0) for n in ("BitsStored", "HighBit", "BitsAllocated"))
    return high if 0 < bits < high + 1 <= size else None


def _stored(pixels: np.ndarray, found: pydicom.Dataset) -> np.ndarray:
    """Values of BitsStored bits, the highest of which is HighBit; other bits may hold overlays."""
    high = high_bit(found)
    if high is None or pixels.dtype.kind not in "iu":
        return pixels
    size = 8 * pixels.itemsize
    # NumPy shifts signed numbers to the right with their sign.
    return (pixels << (size - 1 - high)) >> (size - int(found.BitsStored))


def _is_padding(stored: np.ndarray, found: pydicom.Dataset) -> np.ndarray:
    """Where there is no image: PixelPaddingValue, or from it to PixelPaddingRangeLimit."""
    for kind in _KINDS:
        if (value := first(found.get(f"{kind}PixelPaddingValue"))) is not None:
            limit = first(found.get(f"{kind}PixelPaddingRangeLimit"))
            ends = [_signed(end, stored) for end in (value, value if limit is None else limit)]
            return (stored >= min(ends)) & (stored <= max(ends))
    return np.zeros(stored.shape, bool)


def _signed(value: float, stored: np.ndarray) -> float:
    """A number that was written as if stored values had no sign, with its sign."""
    if stored.dtype.kind == "i" and value > np.iinfo(stored.dtype).max:
        return value - 2 ** (8 * stored.itemsize)
    return value


def _modality(stored: np.ndarray, found: pydicom.Dataset) -> np.ndarray:
    """What the modality measured (C.11.1)."""
    if items := found.get("ModalityLUTSequence"):
        return _table(items[0], found)(stored)
    for name, value in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
        if first(found.get(name)) is None:  # of the two one may be missing
            setattr(found, name, value)
    return apply_modality_lut(stored, found)


def _of_interest(values: np.ndarray, found: pydicom.Dataset, real: np.ndarray) -> np.ndarray:
    """[h, w] -> [h, w], 0 at the lower end of what is shown and 1 at its upper end, or beyond."""
    items = found.get("VOILUTSequence")
    if items and items[0].get("LUTDescriptor") and items[0].get("LUTData") is not None:
        table = _table(items[0], found)
        return table(values) / (2**table.bits - 1)
    return _windowed(np.nan_to_num(values.astype(np.float64)), found, real)


def _table(item: pydicom.Dataset, found: pydicom.Dataset) -> Table:
    """A table of a sequence's item.

    (`pydicom.pixels.apply_voi` counts entries in as many bits as they have, and so wraps.)
    """
    count, begin, bits = (int(n) for n in item.LUTDescriptor)
    count = count % (1 << 16) or 1 << 16
    if found.PixelRepresentation == 1 and begin >= 1 << 15:
        begin -= 1 << 16
    data = item["LUTData"].value
    if isinstance(data, bytes):
        order = "<" if found.original_encoding[1] else ">"
        kind = f"{order}u2" if len(data) >= 2 * count else "u1"  # two a word, where they have 8
        entries = np.frombuffer(data, kind, count)
    else:
        entries = np.atleast_1d(np.asarray(data, np.int64))[:count] & 0xFFFF
    if not len(entries) or not 0 < bits <= 16:
        raise ValueError("a table without entries")
    return Table(begin, entries.astype(np.int64), bits)


def _windowed(values: np.ndarray, found: pydicom.Dataset, real: np.ndarray) -> np.ndarray:
    """By the first of the windows (C.11.2.1.2 and .3); without one, 1st to 99th percentile.

    One of no width is none. `real`: where there is an image.
    """
    center, width = (first(found.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(found.get("VOILUTFunction") or "").strip().upper()
    exact = function in ("LINEAR_EXACT", "SIGMOID")  # all else is LINEAR
    if center is None or width is None or width < (1e-9 if exact else 1):
        low, high = np.percentile(values[real] if real.any() else values, (1, 99))
    elif function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    else:
        if not exact:
            center, width = center - 0.5, width - 1
        low, high = center - width / 2, center + width / 2
    return (values - low) / max(high - low, 1e-9)


def first(value) -> float | None:
    """The first of one or several numbers."""
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)
