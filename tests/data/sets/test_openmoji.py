import dataclasses
import io
import os
import pickle
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from mmjax.batch import Image, Text
from mmjax.data.sets import openmoji
from mmjax.data.sets.openmoji import Picture, caption_of, check_splits, concept_of, read
from mmjax.error import UserError

CAPTIONS = {
    ":grinning_face:": "grinning face",
    ":man_swimming_light_skin_tone:": "man swimming, light skin tone",
    ":woman_medium-dark_skin_tone_red_hair:": "woman with red hair, medium-dark skin tone",
    ":person_medium_skin_tone_bald:": "bald person, medium skin tone",
    ":kiss_woman_man_dark_skin_tone_light_skin_tone:": (
        "kiss: woman, man, dark skin tone, light skin tone"
    ),
    ":family_man_woman_girl_boy:": "family: man, woman, girl, boy",
    ":kiss_mark:": "kiss mark",
    ":eight_o’clock:": "eight o'clock",
    ":light_skin_tone:": "light skin tone",
}
FLAGS = {
    "France": "flag of France",
    "United_States": "flag of the United States",
    "U.S._Virgin_Islands": "flag of the U.S. Virgin Islands",
    "Dominica": "flag of Dominica",
    "Dominican_Republic": "flag of the Dominican Republic",
    "Antigua_&_Barbuda": "flag of Antigua and Barbuda",
}
CONCEPTS = {
    "man swimming, light skin tone": "person swimming",
    "woman swimming": "person swimming",
    "man walking facing right, dark skin tone": "person walking",
    "woman artist": "artist",
    "artist, medium skin tone": "artist",
    "women holding hands": "people holding hands",
    "woman and man holding hands, dark skin tone, light skin tone": "people holding hands",
    "men wrestling, medium-light skin tone": "people wrestling",
    "girl, dark skin tone": "child",
    "old woman": "older person",
    "prince, medium skin tone": "person with crown",
    "mermaid": "merperson",
    "Mrs. Claus": "Claus",
    "Santa Claus, light skin tone": "Claus",
    "couple with heart": "couple with heart",
    "couple with heart: woman, man, dark skin tone": "couple with heart",
    "kiss: man, man": "kiss",
    "family: woman, girl, boy": "family",
    "bald woman": "bald person",
    "woman with red hair": "person with red hair",
    "woman with white hair": "person with white hair",
    "women's room": "restroom",
    "light skin tone": "skin tone",
    # Not about the gender of who is drawn.
    "man's shoe": "man's shoe",
    "woman's hat": "woman's hat",
    "snowman": "snowman",
    "kiss mark": "kiss mark",
    "flag of the Isle of Man": "flag of the Isle of Man",
}


@pytest.mark.parametrize(("name", "caption"), CAPTIONS.items())
def test_caption_of(name, caption):
    assert caption_of(name) == caption


@pytest.mark.parametrize(("name", "caption"), FLAGS.items())
def test_caption_of_flag(name, caption):
    assert caption_of(name, is_flag=True) == caption


@pytest.mark.parametrize(("caption", "concept"), CONCEPTS.items())
def test_concept_of(caption, concept):
    assert concept_of(caption) == concept


@pytest.fixture(scope="module")
def catalogue():
    return openmoji.catalogue()


def test_catalogue_names_every_drawing_once(catalogue):
    assert len(catalogue) > 3900
    assert len({p.id for p in catalogue}) == len({p.caption for p in catalogue}) == len(catalogue)
    assert not [p.caption for p in catalogue if set(p.caption) & set("_’&") or p.caption[0] == ","]
    by_id = {p.id: p for p in catalogue}
    # One file name holds FE0F where it is due, the other stands for a name that has it.
    assert by_id["0031-FE0F-20E3"].caption == "keycap 1"
    assert by_id["2764"].caption == "red heart"
    assert by_id["1F3F4-E0067-E0062-E0065-E006E-E0067-E007F"].caption == "flag of England"
    handshake = by_id["1FAF1-1F3FB-200D-1FAF2-1F3FF"]
    assert (handshake.tone, handshake.base) == ("light + dark", "handshake")
    assert by_id["1F3FB"].tone == "" and by_id["1F3FB"].base == "light skin tone"


def test_no_concept_is_a_variant_of_another(catalogue):
    concepts = {p.concept for p in catalogue}
    assert {concept_of(c) for c in concepts} == concepts
    # "person artist" beside "artist" would put one concept into two splits.
    assert not [c for c in concepts if c.startswith("person ") and c[len("person ") :] in concepts]
    assert not [c for c in concepts if set(c.split()) & {"man", "woman", "men", "women", "girl"}]


def test_render_is_opaque_on_white(catalogue):
    picture = openmoji.render(next(p for p in catalogue if p.caption == "red heart"))
    with PIL.Image.open(io.BytesIO(picture.image)) as opened:
        assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (64, 64))
        pixels = np.asarray(opened).astype(int)
    assert (pixels[0, 0] == 255).all()
    red, green, blue = pixels[32, 32]
    assert red > 200 and green < 120 and blue < 120
    # Box averaging leaves levels between the heart's red, its black outline and the white ground.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def some(catalogue, step):
    """The pictures of every step-th concept, whole concepts only."""
    concepts = set(sorted({p.concept for p in catalogue})[::step])
    return [p for p in catalogue if p.concept in concepts]


@pytest.fixture(scope="module")
def built(catalogue, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "deep" / "set"
    openmoji.write(some(catalogue, 14), path)
    return path


def load(path):
    def picture(r):
        return Picture(r.id, r.caption, r.facts["concept"], r.facts["tone"], r.images[0])

    return {name: [picture(r) for r in read(path, name)] for name in openmoji.SPLITS}


def test_build_reads_back(built, catalogue):
    assert sorted(f.name for f in built.parent.iterdir()) == ["set"]  # no draft is left
    splits = load(built)
    assert all(splits.values())
    assert check_splits(splits) == []
    records = [p for part in splits.values() for p in part]
    known = {p.id: p for p in catalogue}
    assert all(dataclasses.replace(p, image=b"") == known[p.id] for p in records)
    assert records[0].image == openmoji.render(known[records[0].id]).image
    info = tfds.builder_from_directory(built).info
    assert "CC-BY-SA-4.0" in info.citation and info.homepage == "https://openmoji.org"
    assert info.redistribution_info.license == "CC-BY-SA-4.0"
    assert "CC-BY-SA-4.0" in (built / "LICENSE").read_text()


def test_build_is_deterministic(catalogue, tmp_path):
    pictures = some(catalogue, 60)
    openmoji.write(pictures, tmp_path / "a")
    openmoji.write(pictures[::-1], tmp_path / "b")
    # Records and their order; in the files protobuf orders a record's fields by process.
    a, b = ([list(read(tmp_path / d, name)) for name in openmoji.SPLITS] for d in "ab")
    assert a == b
    assert a[0][::-1] != b[0]


def test_source_is_a_picklable_sequence(built):
    source = read(built, "train")
    again = pickle.loads(pickle.dumps(source))
    assert again[5] == source[5] == source[5 - len(source)] != source[6]
    assert [type(part) for part in source[0].document] == [Text, Image]
    assert set(source[0].facts) == {"concept", "tone"}
    assert sum(1 for _ in source) == len(source)
    with pytest.raises(IndexError):
        source[len(source)]


def test_the_whole_data_set(openmoji):
    splits = load(openmoji)
    assert check_splits(splits) == []
    assert {name: len(part) > 140 for name, part in splits.items()} == dict.fromkeys(splits, True)
    assert len(splits["compositional"]) >= 200
    concepts = {name: len({p.concept for p in part}) for name, part in splits.items()}
    total = concepts["train"] + concepts["validation"] + concepts["test"]
    assert 0.04 < concepts["validation"] / total < 0.06 < concepts["test"] / total < 0.08


@pytest.fixture
def sound():
    """Splits without fault, small enough to spoil."""

    def p(caption, image, tone=""):
        return Picture(image, caption, concept_of(caption), tone, image.encode())

    train = [
        p("man swimming", "a"),
        p("man swimming, light skin tone", "b", "light"),
        p("man swimming, dark skin tone", "c", "dark"),
        p("woman bowing, medium skin tone", "d", "medium"),
    ]
    held = [p("man swimming, medium skin tone", "e", "medium")]
    return {
        "train": train,
        "validation": [p("cat", "f")],
        "test": [p("dog", "g")],
        "compositional": held,
    }


def spoil(splits, what):
    replace = dataclasses.replace
    train, held = splits["train"], splits["compositional"][0]
    if what == "concept in both train and test":
        splits["test"].append(Picture("h", "woman swimming", "person swimming", "", b"h"))
    elif what == "image in both validation and test":
        splits["test"].append(Picture("h", "tiger", "tiger", "", b"f"))
    elif what == "fewer than two other tones":
        del train[:2]
    elif what == "tone not in train":
        del train[3]
    elif what == "concept not in train":
        splits["compositional"] = [replace(held, concept="person flying")]
    elif what == "itself in train":
        train.append(replace(held, caption="woman swimming, medium skin tone"))
    elif what == "has no skin tone":
        splits["compositional"] = [replace(held, tone="", caption="man swimming")]


@pytest.mark.parametrize(
    "what",
    [
        "concept in both train and test",
        "image in both validation and test",
        "fewer than two other tones",
        "tone not in train",
        "concept not in train",
        "itself in train",
        "has no skin tone",
    ],
)
def test_check_splits_reports(sound, what):
    assert check_splits(sound) == []
    spoil(sound, what)
    assert any(what in line for line in check_splits(sound))


def test_split_leaves_out_undrawn_tones_and_keeps_twins_together():
    def p(caption, image, tone=""):
        return Picture(caption, caption, concept_of(caption), tone, image)

    toned = [
        p(f"people wrestling, {t} skin tone", b"wrestling", t) for t in ("light", "dark", "medium")
    ]
    flags = [p(f"flag of {n}", n.encode()) for n in map(str, range(60))]
    twins = [p(f"flag of twin {n}", n.encode()) for n in map(str, range(60))]
    splits = openmoji.split([p("people wrestling", b"wrestling"), *toned, *flags, *twins])
    assert [q.caption for part in splits.values() for q in part if q.concept[0] == "p"] == [
        "people wrestling"
    ]
    where = {q.caption: name for name, part in splits.items() for q in part}
    assert all(where[f"flag of {n}"] == where[f"flag of twin {n}"] for n in range(60))
    assert len(set(where.values())) == 3  # so that being together is no accident


def test_absent_set_and_unknown_split(built, tmp_path):
    path = tmp_path / "none"
    with pytest.raises(UserError, match=f"mmjax data build --src=openmoji --dst={path}"):
        read(path, "train")
    with pytest.raises(UserError, match=r"'dev'; have: train, validation, test, compositional"):
        read(built, "dev")


def test_build_touches_nothing_else(built, tmp_path):
    before = (built / "dataset_info.json").stat().st_mtime_ns
    openmoji.build(built)  # complete: returns at once
    assert (built / "dataset_info.json").stat().st_mtime_ns == before
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="something else"):
            openmoji.build(taken)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_damage_is_reported(built, catalogue, tmp_path):
    path = tmp_path / "set"
    openmoji.write(some(catalogue, 60), path)
    shard = next(path.glob("*-train*"))
    whole = shard.read_bytes()
    spoilt = bytearray(whole)
    spoilt[whole.index(b"IHDR")] ^= 1
    shard.write_bytes(spoilt)
    with pytest.raises(UserError, match=r"train, record \d+ is damaged"):
        list(read(path, "train"))
    assert list(read(path, "test"))
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        read(path, "train")
    (path / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read(path, "train")


def test_tensorflow_is_never_imported(built):
    code = (
        "import sys; from mmjax.data.sets import openmoji; openmoji.read(sys.argv[1], 'train')[0];"
        "assert 'tensorflow_datasets' in sys.modules; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, built], check=True)
    assert "tensorflow" not in sys.modules  # after whole builds in this process
