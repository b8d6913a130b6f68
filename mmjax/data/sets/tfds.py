"""Data sets of TFDS by name, read from where they lie prepared; TensorFlow is never imported."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from mmjax import paths
from mmjax.batch import Image, Text
from mmjax.data.formats.picture import checked
from mmjax.data.record import Item, Record
from mmjax.error import UserError, near

features = tfds.features

# Marks of wiki40b's, which stands for line breaks and headings with them.
_WIKI40B = re.compile(r"\s*(?:_START_(?:ARTICLE|SECTION|PARAGRAPH)_|_NEWLINE_)\s*")


@dataclass(frozen=True)
class Fields:
    """Which features of a data set become parts of a document.

    Attributes:
        image: the picture.
        captions: texts about it, the first of which is the document's; others become facts.
        label: a class; what `phrase` makes of its name is the caption, if there is a picture.
        questions: sequence of dictionaries, names of its question and its answer.
        text: written one after another, with blank lines between.
    """

    image: str = ""
    captions: tuple[str, ...] = ()
    label: str = ""
    phrase: str = "a picture of {}"
    questions: tuple[str, ...] = ()
    text: tuple[str, ...] = ()


def _classes(phrase: str, *names: str) -> dict[str, Fields]:
    return dict.fromkeys(names, Fields("image", label="label", phrase=phrase))


def _texts(*names: str) -> dict[str, Fields]:
    return dict.fromkeys(names, Fields(text=("text",)))


# By name in TFDS 4.9; what is not here goes by the types of its features, see `guess`.
FIELDS: Mapping[str, Fields] = {
    "coco_captions": Fields("image", captions=("captions", "text")),
    "ai2dcaption": Fields("image", captions=("caption",)),
    "clevr": Fields("image", questions=("question_answer", "question", "answer")),
    "caltech_birds2011": Fields("image", captions=("label_name",), label="label"),
    **_classes("a handwritten digit {}", "mnist", "mnist_corrupted"),
    **_classes("a handwritten {}", "emnist", "kmnist"),
    **_classes("a photo of the digit {}", "svhn_cropped"),
    **_classes("a drawing of {}", "quickdraw_bitmap"),
    **_classes("a sketch of {}", "imagenet_sketch"),
    **_classes("a texture that is {}", "dtd"),
    **_classes("a satellite picture of {}", "eurosat", "resisc45", "uc_merced"),
    **_classes("a picture of {}",
               "beans", "caltech101", "cars196", "cats_vs_dogs", "cifar10", "cifar100",
               "fashion_mnist", "food101", "horses_or_humans", "imagenet2012", "imagenet_a",
               "imagenet_r", "imagenet_resized", "imagenet_v2", "imagenette", "oxford_flowers102",
               "oxford_iiit_pet", "places365_small", "plant_village", "rock_paper_scissors",
               "stanford_dogs", "stl10", "sun397", "tf_flowers"),
    **_texts("c4", "dolma", "librispeech_lm", "lm1b", "salient_span_wikipedia", "sentiment140",
             "tiny_shakespeare", "wiki40b"),
    "ag_news_subset": Fields(text=("title", "description"), label="label"),
    "gsm8k": Fields(text=("question", "answer")),
    "imdb_reviews": Fields(text=("text",), label="label"),
    "lambada": Fields(text=("passage",)),
    "math_dataset": Fields(text=("question", "answer")),
    "multi_news": Fields(text=("document",)),
    "pg19": Fields(text=("book_title", "book_text")),
    "trec": Fields(text=("text",), label="label-coarse"),
    "wikipedia": Fields(text=("title", "text")),
    "yelp_polarity_reviews": Fields(text=("text",), label="label"),
}  # fmt: skip


def items(name: str, data_dir: str | None = None) -> Iterator[Item]:
    """The examples of a data set that TFDS has prepared as ArrayRecord, split by split.

    Pictures stay encoded. Of several captions the document has the first, `facts["captions"]` all;
    `facts["label"]` is a class's name; a picture with questions is followed by each question
    (without loss) and its answer, and `facts["questions"]` holds them too.

    Args:
        name: "mnist", "imagenet_resized/32x32", "mnist:3.0.1", or a directory that holds
            dataset_info.json.
        data_dir: where data sets lie; by default where TFDS puts them (TFDS_DATA_DIR).

    Raises:
        UserError: if it is absent, damaged, prepared in another file format, or of features that
            make no document.
    """
    builder = _open(name, data_dir)
    info = builder.info
    fields = FIELDS.get(builder.name) or guess(builder.name, info.features)
    _check(builder.name, fields, info.features)
    return _items(builder, fields)


def _items(builder: tfds.core.DatasetBuilder, fields: Fields) -> Iterator[Item]:
    found = builder.info.features
    skip = tfds.decode.SkipDecoding()
    decoders = {key: skip for key, one in found.items() if isinstance(one, features.Image)}
    names = found[fields.label].names if fields.label else ()
    for split in builder.info.splits:
        source = builder.as_data_source(split, decoders=decoders)
        for i in range(len(source)):
            id = f"{builder.name}/{split}/{i}"
            yield Item(id, partial(_record, id, source, i, fields, names), split)


def _open(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The prepared data set.

    Raises:
        UserError: see `items`.
    """
    try:
        if (paths.of(name) / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(paths.near(paths.of(name)))
        else:
            # Unlike `tfds.builder` it needs no code of the set, which may import TensorFlow.
            builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
            if paths.is_remote(builder.data_dir):  # ArrayRecord reads local files only
                builder = tfds.builder_from_directory(paths.near(paths.of(builder.data_dir)))
        kinds = builder.info.available_file_formats()
    except tfds.core.registered.DatasetNotFoundError as error:
        raise UserError(_absent(name, data_dir)) from error
    except (ParseError, ValueError, KeyError, OSError, AssertionError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{name} is damaged ({text[:200]}); prepare it again") from error
    folder = builder.data_dir
    if tfds.core.file_adapters.FileFormat.ARRAY_RECORD not in kinds:
        kind = ", ".join(sorted(k.value for k in kinds)) or "no known format"
        raise UserError(
            f"{folder} is prepared as {kind}, which needs TensorFlow to read; where that is "
            f"installed, `tfds convert_format --dataset_version_dir={folder} "
            f"--out_file_format=array_record --out_dir=NEW`, then name NEW"
        )
    for part in builder.info.splits.values():
        for file in part.filepaths:
            if not Path(file).is_file():
                raise UserError(f"{folder} lacks {file.name}; prepare it again")
    return builder


def _absent(name: str, data_dir: str | None) -> str:
    where = f", data_dir={data_dir!r}" if data_dir else ""
    base = re.split("[/:]", name)[0]
    known = {*tfds.list_builders(with_community_datasets=False), *FIELDS}
    hint = near(base, known) if base not in known else ""
    root = paths.of(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    if (root / base).is_dir() and (below := sorted(p.name for p in (root / base).iterdir())):
        hint = f" (there is {', '.join(f'{base}/{name}' for name in below)})"
    return (
        f"{name} is not prepared in {root}{hint}; prepare it, "
        f'with TensorFlow where the set needs that: `python -c "import tensorflow_datasets as '
        f"tfds; tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\"`"
    )


def guess(name: str, found: Mapping[str, Any]) -> Fields:
    """Fields by types: a picture and a text, a picture and a class, or one text.

    Names that say so (caption, label, text) win; names of files and ids are no captions.

    Raises:
        UserError: listing the features, if they do not tell.
    """

    def one(kind: type, *preferred: str) -> str:
        """The only feature of a type, or the only one of a preferred name; or ""."""
        of_kind = [key for key, feature in found.items() if type(feature) is kind]
        plain = [key for key in of_kind if not re.search(r"(^|[_/])(id|filename|name|url)$", key)]
        chosen = [key for key in plain if key in preferred] or plain
        return chosen[0] if len(chosen) == 1 else ""

    image = one(features.Image, "image")
    text = one(features.Text, "caption", "text")
    label = one(features.ClassLabel, "label")
    if image and text:
        return Fields(image, captions=(text,), label=label)
    if image and label:
        return Fields(image, label=label)
    if text and not any(isinstance(feature, features.Image) for feature in found.values()):
        return Fields(text=(text,), label=label)
    listed = ", ".join(f"{key}: {type(feature).__name__}" for key, feature in found.items())
    raise UserError(
        f"cannot tell what a document of {name} is ({listed}); give it a line in FIELDS of "
        f"mmjax/data/sets/tfds.py"
    )


def _check(name: str, fields: Fields, found: Mapping[str, Any]) -> None:
    """Whether a prepared data set has the features that its Fields name; versions differ.

    Raises:
        UserError: if not.
    """
    heads = (fields.image, *fields.captions[:1], fields.label, *fields.questions[:1], *fields.text)
    if missing := [head for head in heads if head and head not in found]:
        raise UserError(
            f"{name} has no feature {missing[0]!r}, only {', '.join(found)}; prepare the version "
            f"that TFDS 4.9 has"
        )


def _record(
    id: str, source: Sequence[Any], index: int, fields: Fields, names: Sequence[str]
) -> Record:
    """One example.

    Raises:
        ValueError, KeyError: if it is damaged.
    """
    try:
        example = source[index]
    except (RuntimeError, TypeError, AttributeError) as error:  # what decoders trip over
        raise ValueError(f"cannot be decoded: {error}") from error
    facts: dict[str, Any] = {}
    document: list[Text | Image] = []
    if fields.label and example[fields.label] >= 0:  # -1 where the test's classes are secret
        facts["label"] = readable(names[example[fields.label]])
    if fields.text:
        document.append(Text("\n\n".join(_text(example[key]) for key in fields.text)))
    elif fields.captions:
        captions = _texts_at(example, fields.captions)
        document.append(Text(captions[0]))
        if len(captions) > 1:
            facts["captions"] = captions
    elif "label" in facts:
        document.append(Text(fields.phrase.format(facts["label"])))
    if fields.image:
        document.append(Image(checked(example[fields.image])))
    if fields.questions:
        key, *pair = fields.questions
        asked = list(zip(*(_texts_at(example, (key, part)) for part in pair), strict=True))
        for question, answer in asked:
            document += [Text(question, loss=False), Text(answer)]
        facts["questions"] = [{"question": q, "answer": a} for q, a in asked]
    return Record(id, tuple(document), facts)


def readable(name: str) -> str:
    """A class's name as words.

    "apple_pie" -> "apple pie", "n02085620-chihuahua" -> "chihuahua", "/a/abbey" -> "abbey",
    "AnnualCrop" -> "annual crop".
    """
    name = re.sub(r"^n\d{8}-|^/\w/", "", name)
    if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", name):
        name = re.sub(r"\B(?=[A-Z])", " ", name).lower()
    return re.sub(r"[_\s]+", " ", name).strip() or name


def _texts_at(example: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    """The texts at a path of keys: one, or those of a sequence."""
    found: Any = example
    for key in path:
        found = found[key]
    texts = found if isinstance(found, list) else [found]
    if not texts:
        raise ValueError(f"no {'/'.join(path)}")
    return [_text(text) for text in texts]


def _text(value: Any) -> str:
    """A text of an example.

    Raises:
        ValueError: if it is empty or not UTF-8.
    """
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError(f"{type(value).__name__} where text belongs")
    text = _WIKI40B.sub("\n", text).strip()
    if not text:
        raise ValueError("empty text")
    return text
