"""Data sets of TFDS, prepared on the spot by TFDS itself."""

import collections
import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets

from mmjax.batch import Image, Text
from mmjax.data.sets import prose, tfds
from mmjax.error import UserError

features = tensorflow_datasets.features


def jpeg(pixels) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def png(pixels) -> bytes:
    out = io.BytesIO()
    PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(out, "PNG")
    return out.getvalue()


def prepare(name: str, data_dir: Path, of: dict, splits: dict) -> Path:
    """Prepares {split: [example, ...]} as TFDS does for a builder of this name."""

    def info(self):
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=features.FeaturesDict(of)
        )

    def generators(self, manager):
        return {split: enumerate(examples) for split, examples in splits.items()}

    body = {"VERSION": tensorflow_datasets.core.Version("1.0.0"), "code_path": None, "name": name,
            "_info": info, "_split_generators": generators, "_generate_examples": None,
            "__module__": __name__}  # fmt: skip
    kind = type(name, (tensorflow_datasets.core.GeneratorBasedBuilder,), body,
                skip_registration=True)  # fmt: skip
    builder = kind(data_dir=data_dir, file_format="array_record")
    config = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
    tensorflow_datasets.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


DIGITS = sklearn.datasets.load_digits()
PHOTOS = sklearn.datasets.load_sample_images()
CLASSES = features.ClassLabel(names=[str(n) for n in range(10)])
PICTURE = features.Image(shape=(8, 8, 1), encoding_format="png")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tfds")
    digits = [
        {"image": png(image * 15), "label": int(label)}
        for image, label in zip(DIGITS.images[:30], DIGITS.target[:30], strict=True)
    ]
    prepare("mnist", path, {"image": PICTURE, "label": CLASSES},
            {"train": digits[:20], "test": digits[20:]})  # fmt: skip
    photo = features.Image(encoding_format="jpeg")
    sequence = features.Sequence({"id": np.int64, "text": np.str_})
    prepare(
        "coco_captions",
        path,
        {"image": photo, "image/filename": features.Text(), "captions": sequence},
        {
            "val": [
                {
                    "image": jpeg(image[::8, ::8]),
                    "image/filename": name,
                    "captions": [{"id": 1, "text": f"{name} once"}, {"id": 2, "text": "again"}],
                }
                for image, name in zip(PHOTOS.images, ("china", "flower"), strict=True)
            ]
        },
    )
    # It lies where TFDS puts it: below the name of a configuration.
    made = path / "coco_captions" / "1.0.0"
    (made.parent / "2014").mkdir()
    made.rename(made.parent / "2014" / "1.1.0")
    prose_texts = [item.read().caption for _, item in zip(range(5), prose.items(), strict=False)]
    prepare("lm1b", path, {"text": features.Text()}, {"train": [{"text": t} for t in prose_texts]})
    asked = features.Sequence({"question": features.Text(), "answer": features.Text()})
    prepare("clevr", path, {"image": photo, "question_answer": asked},
            {"train": [{"image": jpeg(PHOTOS.images[1][::8, ::8]), "question_answer": [
                {"question": "What is it?", "answer": "a flower"},
                {"question": "Is it red?", "answer": "no"}]}]})  # fmt: skip
    return path


def read(name: str, data_dir: Path) -> list:
    return [(item.split, item.read()) for item in tfds.items(name, str(data_dir))]


def test_classes(data_dir):
    found = read("mnist", data_dir)
    assert [split for split, _ in found].count("train") == 20 and len(found) == 30
    pixels = {}
    for _, record in found:
        text, image = record.document
        assert text == Text(f"a handwritten digit {record.facts['label']}")
        assert isinstance(image, Image) and image.data.startswith(b"\x89PNG")
        with PIL.Image.open(io.BytesIO(image.data)) as opened:
            pixels[np.asarray(opened).tobytes()] = record.facts["label"]
    for image, label in zip(DIGITS.images[:30], DIGITS.target[:30], strict=True):
        assert pixels[(image * 15).astype(np.uint8).tobytes()] == str(label)
    assert len({record.facts["label"] for _, record in found}) > 5


def test_captions_and_the_very_bytes_of_a_picture(data_dir):
    found = sorted(read("coco_captions", data_dir), key=lambda pair: pair[1].caption)
    assert [split for split, _ in found] == ["val", "val"]
    for (_, record), image, name in zip(found, PHOTOS.images, ("china", "flower"), strict=True):
        assert record.document[0] == Text(f"{name} once")
        assert record.facts == {"captions": [f"{name} once", "again"]}
        assert record.images == [jpeg(image[::8, ::8])]  # as prepared, not encoded again


def test_text(data_dir):
    found = read("lm1b", data_dir)
    texts = {record.caption for _, record in found}
    assert texts == {i.read().caption for _, i in zip(range(5), prose.items(), strict=False)}
    assert all(len(record.document) == 1 and not record.facts for _, record in found)


def test_questions(data_dir):
    ((_, record),) = read("clevr", data_dir)
    assert record.document[1:] == (
        Text("What is it?", loss=False),
        Text("a flower"),
        Text("Is it red?", loss=False),
        Text("no"),
    )
    assert isinstance(record.document[0], Image)
    assert record.facts["questions"][1] == {"question": "Is it red?", "answer": "no"}


def test_a_directory_of_an_unknown_set(data_dir, tmp_path):
    folder = prepare("my_birds", tmp_path, {
        "image": features.Image(encoding_format="jpeg"), "image/filename": features.Text(),
        "caption": features.Text(), "label": features.ClassLabel(names=["n01234567-barn_owl"]),
    }, {"train": [{"image": jpeg(PHOTOS.images[0][::16, ::16]), "image/filename": "owl.jpg",
                   "caption": " an owl ", "label": 0}]})  # fmt: skip
    (item,) = tfds.items(str(folder))
    record = item.read()
    assert record.caption == "an owl" and record.facts == {"label": "barn owl"}
    assert (item.source, record.id) == ("my_birds/train/0", "my_birds/train/0")


def test_openmoji_as_tfds_prepared_it(openmoji):
    # It has four texts, one of them called caption.
    items = list(tfds.items(str(openmoji)))
    count = collections.Counter(item.split for item in items)
    splits = tensorflow_datasets.builder_from_directory(openmoji).info.splits
    assert count == {name: split.num_examples for name, split in splits.items()}
    records = [item.read() for item in items[::500]]
    assert all(len(record.images) == 1 and len(record.caption) > 2 for record in records)
    assert len({record.caption for record in records}) > 5


def test_a_secret_class_is_no_caption(tmp_path):
    example = {"image": png(DIGITS.images[0]), "label": -1}
    prepare("kmnist", tmp_path, {"image": PICTURE, "label": CLASSES}, {"test": [example]})
    ((_, record),) = read("kmnist", tmp_path)
    assert record.caption == "" and len(record.images) == 1 and record.facts == {}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("apple_pie", "apple pie"),
        ("n02085620-chihuahua", "chihuahua"),
        ("/a/airplane_cabin", "airplane cabin"),
        ("AnnualCrop", "annual crop"),
        ("T-shirt/top", "T-shirt/top"),
        ("AM General Hummer SUV 2000", "AM General Hummer SUV 2000"),
        ("7", "7"),
    ],
)
def test_names_of_classes(name, words):
    assert tfds.readable(name) == words


PIC, WORDS, NUMBER = features.Image(), features.Text(), features.Tensor(shape=(), dtype=np.int64)


@pytest.mark.parametrize(
    ("of", "fields"),
    [
        ({"image": PIC, "note": WORDS}, tfds.Fields("image", captions=("note",))),
        ({"image": PIC, "label": CLASSES, "fine": CLASSES}, tfds.Fields("image", label="label")),
        ({"image": PIC, "file_name": WORDS, "l": CLASSES}, tfds.Fields("image", label="l")),
        ({"id": WORDS, "text": WORDS, "author": WORDS}, tfds.Fields(text=("text",))),
        ({"a": WORDS, "b": WORDS}, None),
        ({"image": PIC}, None),
        ({"left": PIC, "right": PIC, "text": WORDS}, None),
        ({"x": NUMBER}, None),
    ],
)
def test_guesses(of, fields):
    if fields:
        assert tfds.guess("x", of) == fields
        return
    with pytest.raises(UserError, match=f"document of x is .*{next(iter(of))}: "):
        tfds.guess("x", of)


def test_the_table_fits_what_tfds_has(data_dir):
    known = set(tensorflow_datasets.list_builders(with_community_datasets=False))
    checked = 0
    # The others' code is only found where TensorFlow is installed, or asks for it.
    for name in ("ag_news_subset", "ai2dcaption", "caltech_birds2011", "clevr", "dtd", "eurosat",
                 "imdb_reviews", "lambada", "math_dataset", "mnist", "multi_news", "pg19", "trec",
                 "salient_span_wikipedia", "sentiment140", "svhn_cropped"):  # fmt: skip
        assert name in known
        builder = tensorflow_datasets.builder(name, data_dir=str(data_dir / "none"))
        tfds._check(name, tfds.FIELDS[name], builder.info.features)
        checked += 1
    assert checked == 16
    later = {"c4", "gsm8k", "wiki40b", "wikipedia", "yelp_polarity_reviews"}
    assert tfds.FIELDS.keys() - known == later


def test_absent_sets_name_the_command(data_dir):
    with pytest.raises(
        UserError, match=r"food101 is not prepared in .*builder\('food101', data_di"
    ):
        tfds.items("food101", str(data_dir))
    with pytest.raises(UserError, match=r"\(there is coco_captions/2014\)"):
        tfds.items("coco_captions/2017", str(data_dir))
    with pytest.raises(UserError, match=r"did you mean 'mnist'\?"):
        tfds.items("minst", str(data_dir))


def test_a_set_of_another_version(tmp_path):
    prepare("lambada", tmp_path, {"words": features.Text()}, {"train": [{"words": "a"}]})
    with pytest.raises(UserError, match="lambada has no feature 'passage', only words"):
        tfds.items("lambada", str(tmp_path))


def test_tfrecord_needs_conversion(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    file = tmp_path / "mnist" / "1.0.0" / "dataset_info.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"prepared as tfrecord.*tfds convert_format"):
        tfds.items("mnist", str(tmp_path))
    file.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        tfds.items("mnist", str(tmp_path))


def test_damage(data_dir, tmp_path):
    shutil.copytree(data_dir / "mnist", tmp_path / "mnist")
    (file,) = (tmp_path / "mnist").rglob("*test.array_record*")
    file.unlink()
    with pytest.raises(UserError, match=r"lacks mnist-test\.array_record"):
        tfds.items("mnist", str(tmp_path))
    example = {"image": png(DIGITS.images[0])[:-30], "label": 1}
    prepare("kmnist", tmp_path, {"image": PICTURE, "label": CLASSES}, {"test": [example]})
    (item,) = tfds.items("kmnist", str(tmp_path))
    with pytest.raises(ValueError, match="picture"):
        item.read()


def test_bytes_that_rot_are_one_damaged_record_each(data_dir, tmp_path):
    shutil.copytree(data_dir / "lm1b", tmp_path / "lm1b")
    (file,) = (tmp_path / "lm1b").rglob("*.array_record*")
    data = bytearray(file.read_bytes())
    data[len(data[: 1 << 16].rstrip(b"\0")) // 2] ^= 0xFF  # the records; an index is behind them
    file.write_bytes(data)
    bad = 0
    for item in tfds.items("lm1b", str(tmp_path)):
        try:
            item.read()
        except ValueError:
            bad += 1
    assert bad >= 1


def test_tensorflow_is_never_imported(data_dir):
    code = (
        "import sys; from mmjax.data.sets import tfds;"
        f"assert sum(1 for i in tfds.items('mnist', {str(data_dir)!r}) if i.read()) == 30;"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
