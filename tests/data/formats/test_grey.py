"""Greys of DICOM images against values computed by hand from the standard (PS3.3)."""

import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from test_dicom import CANARY, leaks, scan, shown

from mmjax.data.formats import dicom
from mmjax.data.record import pack

VALUES = np.array([[0, 100, 200, 250], [300, 400, 500, 450]], np.uint16)


def linear(x, center, width):
    """C.11.2.1.2.1, pixel by pixel."""
    if x <= center - 0.5 - (width - 1) / 2:
        return 0
    if x > center - 0.5 + (width - 1) / 2:
        return 255
    return ((x - (center - 0.5)) / (width - 1) + 0.5) * 255


def by_hand(values, center, width):
    return np.array([[linear(x, center, width) for x in row] for row in values.astype(float)])


def close(found, wanted, atol=0.51):
    np.testing.assert_allclose(found, wanted, atol=atol)


def item(**values):
    made = pydicom.Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def window(center, width, **more):
    return item(FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=width, **more)])


def rescale(slope, intercept):
    macro = item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="US")
    return item(PixelValueTransformationSequence=[macro])


def table(first, entries, bits, vr="US"):
    made = item(LUTDescriptor=[len(entries), first, bits])
    made["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    raw = np.array(entries, np.uint8 if vr == "OW8" else np.uint16).tobytes()
    made.add_new("LUTData", vr[:2], entries if vr == "US" else raw)
    return made


def test_functional_groups_shared_and_per_frame(tmp_path):
    frames = np.stack([VALUES, VALUES + 1000, VALUES + 2000])
    path = tmp_path / "a.dcm"
    both = window("250", "401")
    both.update(rescale("2", "-100"))
    scan(path, frames, SharedFunctionalGroupsSequence=[both], WindowCenter="9", WindowWidth="9")
    close(shown(path), by_hand((VALUES + 1000.0) * 2 - 100, 250, 401))  # all white
    per = [window("1", "2"), window("1250", "401"), window("3", "4")]
    scan(path, frames, PerFrameFunctionalGroupsSequence=per, RescaleSlope="1", RescaleIntercept="0")
    close(shown(path), by_hand(VALUES + 1000, 1250, 401))
    # What a frame says takes the place of what all share, macro by macro.
    per[1].update(rescale("0.5", "-500"))
    per[1].FrameVOILUTSequence[0].WindowCenter = ["150", "7"]
    scan(path, frames, SharedFunctionalGroupsSequence=[both], PerFrameFunctionalGroupsSequence=per)
    wanted = by_hand((VALUES + 1000) * 0.5 - 500, 150, 401)
    close(shown(path), wanted)
    assert 10 < wanted[0, 0] < wanted[1, 2] < 255
    per[1].FrameVOILUTSequence[0].VOILUTFunction = "LINEAR_EXACT"
    scan(path, frames, PerFrameFunctionalGroupsSequence=per)
    close(shown(path), np.clip(((VALUES + 1000) * 0.5 - 500 - 150) / 401 + 0.5, 0, 1) * 255)


def test_groups_tell_nothing_else(tmp_path):
    group = window("250", "401", WindowCenterWidthExplanation=CANARY)
    group.FrameContentSequence = [item(FrameComments=CANARY)]
    group.DerivationImageSequence = [item(DerivationDescription=CANARY)]
    found = scan(tmp_path / "a.dcm", np.stack([VALUES] * 2),
                 PerFrameFunctionalGroupsSequence=[group, group])  # fmt: skip
    (tmp_path / "a.txt").write_text("x")
    (one,) = (i for i in dicom.items(tmp_path) if not i.ignored)
    assert leaks(found) and not leaks(one, one.read(), pack(one.read()))


def test_real_world_values_change_nothing(tmp_path):
    real = item(RealWorldValueSlope=7.0, RealWorldValueIntercept=3.0,
                RealWorldValueFirstValueMapped=0, RealWorldValueLastValueMapped=500)  # fmt: skip
    plain = {"WindowCenter": "250", "WindowWidth": "401"}
    scan(tmp_path / "a.dcm", VALUES, **plain)
    scan(tmp_path / "b.dcm", VALUES, RealWorldValueMappingSequence=[real], **plain)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), shown(tmp_path / "b.dcm"))


@pytest.mark.parametrize("tags, wanted", [
    ({"RescaleSlope": "2"}, VALUES * 2.0), ({"RescaleIntercept": "-50"}, VALUES - 50.0),
])  # fmt: skip
def test_of_rescaling_one_number_may_be_missing(tmp_path, tags, wanted):
    scan(tmp_path / "a.dcm", VALUES, WindowCenter="250", WindowWidth="401", **tags)
    close(shown(tmp_path / "a.dcm"), by_hand(wanted, 250, 401))


@pytest.mark.parametrize("vr", ["US", "OW"])
@pytest.mark.parametrize("implicit", [False, True])
def test_a_modality_table_comes_before_the_window(tmp_path, vr, implicit):
    pixels = np.array([[-3, -2, -1], [0, 1, 30_000]], np.int16)
    lut = table(-2, [0, 100, 1000, 4000], 16, vr)
    found = scan(tmp_path / "a.dcm", pixels, ModalityLUTSequence=[lut], RescaleSlope="9",
                 RescaleIntercept="9", WindowCenter="500", WindowWidth="1001")  # fmt: skip
    if implicit:
        found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    made = np.array([[0, 0, 100], [1000, 4000, 4000]])
    close(shown(tmp_path / "a.dcm"), by_hand(made, 500, 1001))


@pytest.mark.parametrize("vr", ["US", "OW", "OW8"])
def test_a_voi_table_of_eight_bits_may_have_many_entries(tmp_path, vr):
    entries = [n // 4 for n in range(1000)]
    lut = table(100, entries, 8, vr)
    pixels = np.array([[0, 100, 356, 612], [1099, 1100, 40_000, 65_535]], np.uint16)
    scan(tmp_path / "a.dcm", pixels, VOILUTSequence=[lut], WindowCenter="1", WindowWidth="2")
    np.testing.assert_array_equal(
        shown(tmp_path / "a.dcm"), [[0, 0, 64, 128], [249, 249, 249, 249]]
    )


def test_a_voi_table_of_a_frame_and_of_twelve_bits(tmp_path):
    lut = table(0, [0, 4095, 2048], 12)
    group = item(FrameVOILUTSequence=[item(VOILUTSequence=[lut])])
    frames = np.stack([np.array([[0, 1], [2, 9]], np.uint8)] * 2)
    scan(tmp_path / "a.dcm", frames, SharedFunctionalGroupsSequence=[group], WindowCenter="1",
         WindowWidth="2")  # fmt: skip
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), [[0, 255], [128, 128]])


@pytest.mark.parametrize("signed", [False, True])
def test_bits_that_are_not_stored_are_left_out(tmp_path, signed):
    """Twelve bits of sixteen; the others hold an overlay, or do not carry the sign on."""
    values = np.array([[-2048, -1, 0], [1, 1000, 2047]]) + (0 if signed else 2048)
    twelve = (values & 0xFFF).astype(np.uint16)
    center = "0.5" if signed else "2048.5"
    tags = {"BitsStored": 12, "PixelRepresentation": int(signed), "WindowCenter": center,
            "WindowWidth": "4096"}  # fmt: skip
    wanted = by_hand(values, float(center), 4096)
    scan(tmp_path / "a.dcm", twelve | 0x5000, **tags | {"HighBit": 11})
    close(shown(tmp_path / "a.dcm"), wanted)
    scan(tmp_path / "b.dcm", twelve << 4, **tags | {"HighBit": 15})
    close(shown(tmp_path / "b.dcm"), wanted)
    assert wanted.min() == 0 and wanted.max() > 254


def test_padding_is_no_image(tmp_path):
    pixels = np.tile(np.arange(100, dtype=np.int16) * 10, (100, 1))
    pixels[:, :60] = -2000
    pixels[0, :30] = -1990
    tags = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990}
    scan(tmp_path / "a.dcm", pixels, PixelRepresentation=1, **tags)
    image = shown(tmp_path / "a.dcm").astype(int)
    assert (image[:, :60] == 0).all() and image[5, 99] == 255 and image[5, 60] < 5
    assert abs(image[5, 80] - 128) < 10  # the percentiles are those of the image alone
    scan(tmp_path / "b.dcm", pixels, PhotometricInterpretation="MONOCHROME1", **tags)
    other = shown(tmp_path / "b.dcm").astype(int)
    assert (other[:, :60] == 0).all() and (other[:, 60:] == 255 - image[:, 60:]).all()
    scan(tmp_path / "c.dcm", pixels)
    assert shown(tmp_path / "c.dcm")[5, 60] > 100


def test_inverse_is_monochrome1_and_not_both(tmp_path):
    plain = {"WindowCenter": "250", "WindowWidth": "401"}
    wanted = 255 - by_hand(VALUES, 250, 401)
    for kind, shape in (
        ("MONOCHROME1", None), ("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "INVERSE")
    ):  # fmt: skip
        tags = plain | ({"PresentationLUTShape": shape} if shape else {})
        scan(tmp_path / "a.dcm", VALUES, PhotometricInterpretation=kind, **tags)
        close(shown(tmp_path / "a.dcm"), wanted)
    scan(tmp_path / "a.dcm", VALUES, PresentationLUTShape="IDENTITY", **plain)
    close(shown(tmp_path / "a.dcm"), 255 - wanted)


@pytest.mark.parametrize("function, wanted", [
    ("LINEAR", lambda x: (x - 199.5) / 400 + 0.5),
    ("LINEAR_EXACT", lambda x: (x - 200) / 401 + 0.5),
    ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 200) / 401))),
    ("Linear ", lambda x: (x - 199.5) / 400 + 0.5), ("ODD", lambda x: (x - 199.5) / 400 + 0.5),
])  # fmt: skip
def test_functions_of_a_window(tmp_path, function, wanted):
    with pydicom.config.disable_value_validation():
        scan(tmp_path / "a.dcm", VALUES, WindowCenter=["200", "9"], WindowWidth=["401", "9"],
             VOILUTFunction=function)  # fmt: skip
    close(shown(tmp_path / "a.dcm"), np.clip(wanted(VALUES.astype(float)), 0, 1) * 255)


@pytest.mark.parametrize("width", ["1", "2"])
def test_narrow_windows_are_steps(tmp_path, width):
    scan(tmp_path / "a.dcm", VALUES, WindowCenter="200.5", WindowWidth=width)
    np.testing.assert_array_equal(
        shown(tmp_path / "a.dcm"), by_hand(VALUES, 200.5, float(width)).round()
    )


def test_palettes_in_segments(tmp_path):
    """Two segments: a stretch of four entries, then a line of four to 65,535."""
    pixels = np.array([[0, 3], [5, 7]], np.uint8)
    data = np.array([0, 4, 0, 256, 512, 768, 1, 4, 65_535], np.uint16).tobytes()
    colours = {}
    for colour in ("Red", "Green", "Blue"):
        colours[f"{colour}PaletteColorLookupTableDescriptor"] = [8, 0, 16]
        colours[f"Segmented{colour}PaletteColorLookupTableData"] = data
    scan(tmp_path / "a.dcm", pixels, PhotometricInterpretation="PALETTE COLOR", **colours)
    assert shown(tmp_path / "a.dcm")[..., 0].tolist() == [[0, 3], [129, 255]]


def deflated(path, pixels):
    found = scan(path, pixels, WindowCenter="250", WindowWidth="401")
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found.save_as(path, enforce_file_format=True)
    return path


def test_deflated_files_have_a_limit(tmp_path, monkeypatch):
    close(shown(deflated(tmp_path / "a.dcm", VALUES)), by_hand(VALUES, 250, 401))
    path = deflated(tmp_path / "b.dcm", np.zeros((2_000, 2_000), np.uint16))
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(dicom, "BYTES", 100_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="a deflated file of more than 100,000 bytes"):
            dicom.picture(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_of_many_frames_one_is_read(tmp_path):
    frames = np.zeros((400, 100, 100), np.uint16)
    frames[200] = 400
    scan(tmp_path / "a.dcm", frames, WindowCenter="250", WindowWidth="401")
    assert zlib.crc32(shown(tmp_path / "a.dcm")) == zlib.crc32(np.full((100, 100), 223, np.uint8))
    tracemalloc.start()
    try:
        dicom.picture(tmp_path / "a.dcm")
        assert tracemalloc.get_traced_memory()[1] < 3_000_000 < frames.nbytes
    finally:
        tracemalloc.stop()


def test_an_image_of_too_many_bytes_is_not_read(tmp_path):
    scan(tmp_path / "a.dcm", VALUES, Rows=9_000, Columns=9_000, BitsAllocated=64)
    with pytest.raises(ValueError, match=r"pixels, or .* bytes"):
        dicom.picture(tmp_path / "a.dcm")
