"""DICOM: values as they are meant to be seen, and nothing about whom they are of."""

import hashlib
import io
import json
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import outcome
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian

from mmjax.batch import Image, Text
from mmjax.data.formats import dicom
from mmjax.data.record import pack
from mmjax.error import UserError

CANARY = "Zzyzx"
# Of the modules patient, study, series, equipment and image.
PRIVATE = (
    "PatientName", "PatientID", "PatientComments", "OtherPatientNames", "InstitutionName",
    "InstitutionAddress", "ReferringPhysicianName", "StudyDescription", "StudyID",
    "AccessionNumber", "SeriesDescription", "OperatorsName", "StationName", "ImageComments",
)  # fmt: skip


def scan(path, pixels, **tags):
    """Writes an image [h, w], [frames, h, w] or [h, w, 3] with a canary in all private tags."""
    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    found.SOPInstanceUID = found.StudyInstanceUID = "1.2.3.4711"
    for name in PRIVATE:
        setattr(found, name, CANARY)
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    found.Rows, found.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    found.SamplesPerPixel = 3 if colour else 1
    found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        found.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        found.NumberOfFrames = len(pixels)
    bits = 8 * pixels.itemsize
    found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
    found.PixelRepresentation = int(pixels.dtype.kind == "i")
    found.PixelData = pixels.tobytes()
    found["PixelData"].VR = "OB" if bits == 8 else "OW"
    for name, value in tags.items():
        setattr(found, name, value)
    path.parent.mkdir(exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return found


def shown(path):
    png, _ = dicom.picture(path)
    with PIL.Image.open(io.BytesIO(png)) as image:
        return np.asarray(image)


def real(name):
    return Path(get_testdata_file(name, download=False))


RAMP = np.arange(-1000, 1560, 10, dtype=np.int16).reshape(16, 16)


def test_window_and_rescaling_give_the_standards_greys(tmp_path):
    tags = {"RescaleSlope": "2", "RescaleIntercept": "-100"}
    scan(tmp_path / "a.dcm", RAMP, WindowCenter="40.5", WindowWidth="401", **tags)
    values = RAMP * 2.0 - 100
    wanted = np.clip((values - 40) / 400 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(shown(tmp_path / "a.dcm"), wanted, atol=0.51)
    scan(tmp_path / "b.dcm", RAMP, WindowCenter="40.5", WindowWidth="401")
    assert (shown(tmp_path / "b.dcm") != shown(tmp_path / "a.dcm")).any()


@pytest.mark.parametrize("function, wanted", [
    ("LINEAR_EXACT", lambda x: np.clip((x - 100) / 200 + 0.5, 0, 1)),
    ("SIGMOID", lambda x: 1 / (1 + np.exp(-4 * (x - 100) / 200))),
])  # fmt: skip
def test_other_window_functions(tmp_path, function, wanted):
    window = {"WindowCenter": ["100", "0"], "WindowWidth": ["200", "9"]}  # the first one counts
    scan(tmp_path / "a.dcm", RAMP, VOILUTFunction=function, **window)
    np.testing.assert_allclose(shown(tmp_path / "a.dcm"), wanted(RAMP * 1.0) * 255, atol=0.51)


def test_monochrome1_is_inverted(tmp_path):
    window = {"WindowCenter": "0", "WindowWidth": "2000"}
    scan(tmp_path / "a.dcm", RAMP, **window)
    scan(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **window)
    light, dark = shown(tmp_path / "a.dcm"), shown(tmp_path / "b.dcm")
    assert light[0, 0] == 0 and light[-1, -1] == 255
    np.testing.assert_array_equal(light, 255 - dark)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": "3", "WindowWidth": "0"}])
def test_without_a_window_percentiles_leave_outliers_out(tmp_path, window):
    pixels = np.tile(np.arange(100, dtype=np.uint16) * 10, (100, 1))
    pixels[0, 0] = 60_000
    scan(tmp_path / "a.dcm", pixels, **window)
    row = shown(tmp_path / "a.dcm")[5].astype(int)
    assert row[0] == 0 and row[-1] == 255 and abs(row[50] - 128) < 4
    assert (np.diff(row) >= 0).all()


def test_a_voi_table_is_applied(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4, 0, 8], [10, 200, 30, 255]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.array([[0, 1], [2, 3], [9, 9]], np.uint8)
    scan(tmp_path / "a.dcm", pixels, VOILUTSequence=[table], WindowCenter="1", WindowWidth="2")
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), [[10, 200], [30, 255], [255, 255]])


def test_colour_stays_and_ybr_becomes_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    scan(tmp_path / "a.dcm", rgb)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), rgb)
    ybr = np.asarray(PIL.Image.fromarray(rgb).convert("YCbCr"))
    scan(tmp_path / "b.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(shown(tmp_path / "b.dcm").astype(int) - rgb).max() <= 3
    assert np.abs(ybr.astype(int) - rgb).max() > 50


@pytest.mark.parametrize("frames, middle", [(2, 2), (3, 2), (7, 4)])
def test_of_several_frames_the_middle_one(tmp_path, frames, middle):
    pixels = np.stack([np.full((4, 4), i * 10, np.uint8) for i in range(1, frames + 1)])
    scan(tmp_path / "a.dcm", pixels, WindowCenter="128", WindowWidth="256")
    _, facts = dicom.picture(tmp_path / "a.dcm")
    assert facts == {"frame": middle, "frames": frames}
    assert abs(int(shown(tmp_path / "a.dcm")[0, 0]) - middle * 10) <= 1


REAL = {  # files pydicom carries: name -> shape as shown
    "MR_small.dcm": (64, 64), "MR_small_RLE.dcm": (64, 64), "MR_small_jp2klossless.dcm": (64, 64),
    "MR_small_bigendian.dcm": (64, 64), "SC_rgb_rle.dcm": (100, 100, 3),
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": (100, 100, 3), "SC_rgb_rle_32bit_2frame.dcm": (100, 100, 3),
    "examples_palette.dcm": (350, 800, 3), "image_dfl.dcm": (512, 512),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_of_many_kinds(name):
    image = shown(real(name))
    assert image.shape == REAL[name] and image.dtype == np.uint8
    assert np.ptp(image) > 100


def test_lossless_syntaxes_give_one_picture():
    names = [n for n in REAL if n.startswith("MR_small")]
    images = [shown(real(name)) for name in names]
    assert all((image == images[0]).all() for image in images)


def test_a_syntax_that_cannot_be_decoded_is_named():
    path = real("JPEGLSNearLossless_08.dcm")
    with pytest.raises(ValueError, match=r"transfer syntax 'JPEG-LS Lossy.*'"):
        dicom.picture(path)


def leaks(*found):
    return [x for x in found if CANARY.lower() in repr(x).lower()]


def test_nothing_of_patient_study_or_institution_gets_out(tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    written = scan(tmp_path / "a.dcm", RAMP)
    assert leaks(written) and CANARY.encode() in (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.txt").write_text("No finding.")
    records, reasons = outcome(dicom.items(tmp_path))
    record = records["a.dcm"]
    assert not reasons and record.id == hashlib.sha256(b"a.dcm").hexdigest()[:16]
    assert record.document == (Text("No finding."), Image(dicom.picture(tmp_path / "a.dcm")[0]))
    assert not leaks(record, pack(record), caplog.text, capfd.readouterr())
    assert b"4711" not in pack(record)
    with PIL.Image.open(io.BytesIO(record.images[0])) as image:
        image.load()
        assert image.info == {}


def test_only_tags_of_the_pixels_are_asked_for():
    groups = {pydicom.tag.Tag(name).group for name in dicom.TAGS}
    assert groups == {
        0x0028,
        0x2050,
        0x5200,
    }  # the last are functional groups
    assert {pydicom.tag.Tag(name).group for name in dicom.DATA} == {0x7FE0}
    looked = {name for names in dicom.grey.MACROS.values() for name in names}
    assert {pydicom.tag.Tag(name).group for name in looked} == {0x0028}
    assert {pydicom.tag.Tag(name).group for name in PRIVATE}.isdisjoint(groups)


WRONG = {
    "PhotometricInterpretation": CANARY, "WindowCenter": CANARY, "RescaleSlope": CANARY,
    "NumberOfFrames": CANARY, "Rows": 77, "BitsAllocated": 13, "SamplesPerPixel": 9,
    "PixelData": b"Zzyzx",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_no_damage_quotes_the_file(tmp_path, caplog, capfd, name):
    caplog.set_level(logging.DEBUG)
    path = tmp_path / "a.dcm"
    scan(path, RAMP.astype(np.uint8), WindowCenter="1", WindowWidth="2", RescaleSlope="1",
         RescaleIntercept="0", NumberOfFrames="1")  # fmt: skip
    found = pydicom.dcmread(path)
    with pydicom.config.disable_value_validation():
        kind = found[name].VR
        value = WRONG[name]
        kind = "LO" if value == CANARY else kind  # as text, whatever it should be
        found[name] = pydicom.DataElement(found[name].tag, kind, value)
        found.save_as(path)
    (tmp_path / "a.txt").write_text("x")
    (item,) = dicom.items(tmp_path)
    with pytest.raises(ValueError) as caught:
        item.read()
    assert str(caught.value).startswith(("not DICOM, or damaged", "cannot decode pixel data"))
    assert caught.value.__suppress_context__ and not caught.value.__cause__, (
        "a log of the exception would show pydicom's"
    )
    assert not leaks(caught.value, caplog.text, capfd.readouterr())
    assert not [r.name for r in caplog.records if r.name.startswith("pydicom")]


def test_pydicom_neither_warns_nor_logs_meanwhile(tmp_path, caplog):
    scan(tmp_path / "a.dcm", np.zeros((2, 4, 4), np.uint8), NumberOfFrames=1)
    dicom.picture(tmp_path / "a.dcm")
    assert not [r for r in caplog.records if r.name.startswith("pydicom")]
    with pytest.warns(UserWarning, match="sufficient to contain 2 frames"):
        _ = pydicom.dcmread(tmp_path / "a.dcm").pixel_array
    assert [r for r in caplog.records if r.name.startswith("pydicom")]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_of_any_kind_is_a_value_error_that_quotes_nothing(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.dcm"
    scan(path, RAMP[:4, :4], WindowCenter="0", WindowWidth="9")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(128, len(raw) - 6))
        raw[at : at + 5] = data.draw(st.sampled_from([CANARY.encode(), bytes(5), b"\xff" * 5]))
    path.write_bytes(raw[: data.draw(st.integers(100, len(raw)))])
    try:
        png, facts = dicom.picture(path)
    except ValueError as error:
        assert not leaks(error)
    else:
        assert png.startswith(b"\x89PNG") and not leaks(facts, png)


@pytest.mark.parametrize("value", ["YES", "yes "])
def test_burnt_in_annotation_is_never_written(tmp_path, value):
    scan(tmp_path / "a.dcm", RAMP, BurnedInAnnotation="NO")
    scan(tmp_path / "b.dcm", RAMP)
    with pydicom.config.disable_value_validation():
        scan(tmp_path / "c.dcm", RAMP, BurnedInAnnotation=value)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("x")
    records, reasons = outcome(dicom.items(tmp_path))
    assert list(records) == ["a.dcm", "b.dcm"]
    assert reasons == {"c.dcm": "burnt-in annotation"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_reports_in_a_table(tmp_path, kind):
    (tmp_path / "train").mkdir()
    for name in ("a.dcm", "train/b", "c.DCM", "test"):
        scan(tmp_path / name, RAMP)
    rows = [("a.dcm", 'Two lines,\nand "quotes".'), ("train/b", "Käse"), ("gone.dcm", "x"),
            ("a.dcm", "again")]  # fmt: skip
    if kind == "csv":
        quoted = [f'{f},"{r.replace(chr(34), chr(34) * 2)}"' for f, r in rows]
        text = "\n".join(["\ufefffile,report", *quoted, "a.dcm"])
    else:
        lines = [{"file": f, "report": r} for f, r in rows]
        text = "\n".join([*map(json.dumps, lines), '{"file": "a.dcm"}'])
    (tmp_path / f"reports.{kind}").write_text(text, encoding="utf-8")
    items = list(dicom.items(tmp_path))
    assert {i.source: i.split for i in items if i.split} == {"train/b": "train"}
    records, reasons = outcome(items)
    assert {k: r.caption for k, r in records.items()} == {"a.dcm": rows[0][1], "train/b": "Käse"}
    assert reasons.pop("c.DCM").startswith("no report: write c.txt")
    assert reasons.pop("test").startswith("no report: write test.txt")
    assert list(reasons.values()) == [
        "no DICOM file gone.dcm", "a second report of a.dcm", "no field 'report'"
    ]  # fmt: skip
    first = 5 if kind == "csv" else 3  # the first report takes two lines
    assert list(reasons) == [f"reports.{kind}:{first + i}" for i in range(3)]


def test_files_that_are_no_pictures_are_named(tmp_path):
    for name in ("text", "report", "meta", "cut"):
        (tmp_path / f"{name}.txt").write_text("x")
    (tmp_path / "text.dcm").write_text(CANARY * 100)
    (tmp_path / "report.dcm").write_bytes(real("reportsi.dcm").read_bytes())
    (tmp_path / "meta.dcm").write_bytes(real("no_meta.dcm").read_bytes())
    scan(tmp_path / "cut.dcm", RAMP)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:-100])
    (tmp_path / "DICOMDIR").write_bytes((tmp_path / "cut.dcm").read_bytes())
    scan(tmp_path / ".hidden.dcm", RAMP)
    records, reasons = outcome(dicom.items(tmp_path))
    assert not records and not leaks(reasons)
    assert reasons.pop("cut.dcm").startswith(
        "cannot decode pixel data in transfer syntax 'Explicit VR Little Endian'"
    )
    assert reasons == {
        "meta.dcm": "not DICOM, or damaged (InvalidDicomError)",
        "report.dcm": "no pixel data",
        "text.dcm": "not DICOM, or damaged (InvalidDicomError)",
    }


def test_a_bomb_is_damage(tmp_path):
    scan(tmp_path / "a.dcm", RAMP, Rows=65535, Columns=65535)
    with pytest.raises(ValueError, match="more than 89,478,485 pixels"):
        dicom.picture(tmp_path / "a.dcm")


def test_a_path_without_dicom_is_the_users_mistake(tmp_path):
    scan(tmp_path / "a.dcm", RAMP)
    (tmp_path / "empty").mkdir()
    for name, message in (("no", "does not exist"), ("a.dcm", "is a file"), ("empty", "no DICOM")):
        with pytest.raises(UserError, match=message):
            dicom.items(tmp_path / name)
