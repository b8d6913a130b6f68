"""Pictures of one concept in several drawing styles: icon sets joined to Unicode's names (CLDR).

The pictures are the packages @iconify-json/STYLE, the words emojibase-data, both from npm. Five of
the seven styles (7,501 pictures) are MIT or Apache-2.0; twemoji (CC-BY-4.0) and openmoji
(CC-BY-SA-4.0) make 11,948. `resvg_py` renders them.
"""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import resvg_py
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmjax.batch import Image, Text
from mmjax.data.formats.files import Tree, existing, rest, there_is, walk
from mmjax.data.record import Item, Record
from mmjax.data.sets.cldr import Emoji, Names, names
from mmjax.error import UserError, near

# Icon set -> how captions call its style.
STYLES: Mapping[str, str] = {
    "noto": "shaded",
    "fluent-emoji": "glossy",
    "fluent-emoji-flat": "flat",
    "fluent-emoji-high-contrast": "black and white",
    "fxemoji": "pastel",
    "twemoji": "simple",
    "openmoji": "outlined",
}
PERMISSIVE = ("noto", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast", "fxemoji")
# All its concepts are drawn in other styles too, so that keeping it from training takes away a
# style and no concept. (noto alone has the flags; fxemoji has signs of its own.)
HELD_OUT = "fluent-emoji-high-contrast"
TEST, VALIDATION = 0.06, 0.04  # shares of concepts
TAGS = 3  # of the keywords, in a caption at most

_TONE = re.compile(r"(.+?)-(?:medium-)?(?:light|medium|dark)")
_NAMES_A_FILE = re.compile(r"href\s*=\s*[\"']\s*(?!#|data:)")  # not within the drawing itself
_TONE_CODE = re.compile(r"-1f3f[b-f]\b")


@dataclass(frozen=True)
class Icon:
    """A drawing of a style, not rendered yet; `svg` fits it into a square."""

    style: str
    name: str
    svg: str
    emoji: Emoji
    license: str


def items(
    path: Path,
    styles: Sequence[str] | None = None,
    held_out: str = HELD_OUT,
    size: int = 64,
    follow_links: bool = False,
) -> Iterator[Item]:
    """Pictures with captions like "a flat drawing of a raccoon; animal, curious".

    Facts: `concept` (one for all styles, genders and ways to face), `style`, `label`, `tags`,
    `group`, `subgroup`, `license`. Skin tones are left out, and what an icon set hides as
    superseded. Splits go by concept, 90 % train, 4 % validation, 6 % test; a train concept's
    picture in the style held out stands in the split `style`, or in `test` where no other style
    draws the concept: training sees neither that style nor another picture of it.

    Args:
        path: folder with the unpacked packages, however deep.
        styles: keys of STYLES; by default the permissive ones.
        held_out: the style kept from training; "" for none.
        size: of the pictures, size x size x RGB on white, PNG.

    Raises:
        UserError: for an unknown style or a package that is missing or damaged.
    """
    styles = PERMISSIVE if styles is None else tuple(styles)
    if unknown := [style for style in styles if style not in STYLES]:
        hint = f"{near(unknown[0], STYLES)}; have: {', '.join(STYLES)}"
        raise UserError(f"no icon set {unknown[0]!r} is known{hint}")
    if held_out and held_out not in styles:
        raise UserError(f"held-out style {held_out!r} is not among {', '.join(styles)}")
    if [*styles] == [held_out]:
        raise UserError(f"--held_out={held_out} keeps the only style from training; add --styles")
    tree = walk(existing(Path(path), folder=True), follow_links)
    folders = _folders(tree, styles)
    words = names(folders["emojibase-data"])
    icons = [icon for style in styles for icon in read(folders[style], words)]
    used = {f for f in tree.files if not folders.keys().isdisjoint(_homes(f, folders))}
    return itertools.chain(_items(icons, held_out, size), rest(tree, used))


def _homes(file: Path, folders: Mapping[str, Path]) -> list[str]:
    return [name for name, folder in folders.items() if folder in file.parents]


def _items(icons: Sequence[Icon], held_out: str, size: int) -> Iterator[Item]:
    concepts = _concepts(icons)
    seen = {c for icon, c in zip(icons, concepts, strict=True) if icon.style != held_out}
    for icon, concept in zip(icons, concepts, strict=True):
        split = split_of(concept)
        if icon.style == held_out and split == "train":
            split = "style" if concept in seen else "test"
        source = f"{icon.style}/{icon.name}"
        yield Item(source, partial(_record, icon, concept, size), split)


def _folders(tree: Tree, styles: Sequence[str]) -> dict[str, Path]:
    """Icon set, and "emojibase-data" -> its folder.

    Raises:
        UserError: naming the commands that fetch what is missing.
    """
    path, known = tree.root, tree.files
    found = {_json(f)["prefix"]: f.parent for f in known if f.name == "info.json" and _is_set(f)}
    for file in (f for f in known if f.parts[-2:] == ("en", "data.json")):
        if (file.parent / "messages.json").is_file():
            found["emojibase-data"] = file.parent
    missing = [name for name in (*styles, "emojibase-data") if name not in found]
    if missing:
        packages = [n if n == "emojibase-data" else f"@iconify-json/{n}" for n in missing]
        commands = f"npm pack {' '.join(packages)} && for f in *.tgz; do mkdir -p ${{f%.tgz}} && "
        raise UserError(
            f"{path} lacks {', '.join(missing)}{there_is(tree)}; there, run `{commands}tar xf $f "
            "-C ${f%.tgz}; done`"
        )
    return found


def _is_set(info: Path) -> bool:
    return info.with_name("icons.json").is_file()


def _json(file: Path) -> Any:
    """Its contents.

    Raises:
        UserError: if it is damaged.
    """
    try:
        return json.loads(file.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{file} is damaged ({error}); unpack its package again") from error


def read(folder: Path, words: Names) -> list[Icon]:
    """The icons of a set that are in use and have no skin tone, sorted by name.

    Raises:
        UserError: if a file is damaged, or the set names no licence.
    """
    data, info = _json(folder / "icons.json"), _json(folder / "info.json")
    chars = _json(folder / "chars.json") if (folder / "chars.json").is_file() else {}
    try:
        style, license = data["prefix"], info["license"]["spdx"]
        codes: dict[str, str] = {}
        for code, name in sorted(chars.items()):
            codes.setdefault(name, code)
        also: dict[str, list[str]] = {}
        for alias, entry in sorted(data.get("aliases", {}).items()):
            if entry.keys() == {"parent"}:  # else it is turned or flipped
                also.setdefault(entry["parent"], []).append(alias)
        found = []
        for name, icon in sorted(data["icons"].items()):
            code = codes.get(name, "")
            if not icon.get("hidden") and not _is_toned(name, code, data["icons"]):
                emoji = words.find(code, [name, *also.get(name, ())])
                found.append(Icon(style, name, _svg(icon, data), emoji, license))
        return found
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is no icon set ({error!r}); unpack it again") from error


def _is_toned(name: str, code: str, icons: Mapping[str, Any]) -> bool:
    """Whether a drawing differs from another one by skin tone ("police-car-light" does not)."""
    if "skin-tone" in name or _TONE_CODE.search(code):
        return True
    tone = _TONE.fullmatch(name)
    return tone is not None and f"{tone[1]}-medium-dark" in icons


def _svg(icon: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """An icon as a document of its own; black where it says "the colour of the text"."""
    box = {**{"left": 0, "top": 0, "width": 16, "height": 16}, **data, **icon}
    view = " ".join(str(box[side]) for side in ("left", "top", "width", "height"))
    body = icon["body"].replace("currentColor", "#000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="1" height="1" viewBox="{view}">{body}</svg>'
    )


def _concepts(icons: Sequence[Icon]) -> list[str]:
    """The concept of each icon; concepts drawn alike in a style (Chad and Romania) are one."""
    labels = sorted({icon.emoji.concept for icon in icons})
    rank = {label: i for i, label in enumerate(labels)}
    drawing: dict[str, int] = {}
    drawn = [drawing.setdefault(icon.svg, len(labels) + len(drawing)) for icon in icons]
    shown = [rank[icon.emoji.concept] for icon in icons]
    size = len(labels) + len(drawing)
    edges = coo_array((np.ones(len(icons)), (shown, drawn)), shape=(size, size))
    _, group = connected_components(edges, directed=False)
    first: dict[int, str] = {}
    for i, label in enumerate(labels):
        first.setdefault(group[i], label)
    return [first[group[i]] for i in shown]


def split_of(concept: str) -> str:
    """ "train", "validation" or "test", by a hash."""
    share = _share(concept)
    return "test" if share < TEST else "validation" if share < TEST + VALIDATION else "train"


def _share(text: str) -> float:
    """Text -> [0, 1), evenly, by its hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _record(icon: Icon, concept: str, size: int) -> Record:
    emoji = icon.emoji
    facts = {
        "concept": concept,
        "style": icon.style,
        "label": emoji.label,
        "tags": list(emoji.tags),
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "license": icon.license,
    }
    document = (Text(caption_of(icon.style, emoji)), Image(render(icon.svg, size)))
    return Record(f"{icon.style}/{icon.name}", document, facts)


def render(svg: str, size: int) -> bytes:
    """An SVG of a square -> PNG, size x size x RGB, on white.

    Raises:
        ValueError: if it cannot be drawn.
    """
    if _NAMES_A_FILE.search(svg):  # which resvg would read, wherever it lies
        raise ValueError("it names another file, which is not read")
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise ValueError(f"cannot be drawn: {error}") from error
    out = io.BytesIO()
    with PIL.Image.open(io.BytesIO(drawn)) as picture:
        picture.convert("RGB").save(out, "PNG")
    return out.getvalue()


def caption_of(style: str, emoji: Emoji) -> str:
    """ "a flat drawing of a raccoon; animal, curious": one of three forms, by a hash."""
    how = STYLES[style]
    drawing = f"{_article(how)} {how} drawing"
    known = set(re.findall(r"\w+", emoji.label.lower()))
    tags = [tag for tag in emoji.tags if not known.issuperset(re.findall(r"\w+", tag.lower()))]
    more = ", ".join(sorted(tags, key=lambda tag: _share(f"{style} {tag}"))[:TAGS])
    form = int(3 * _share(f"{style} {emoji.label}"))
    if form == 0 and emoji.group:
        return f"{title(emoji.label)}, {drawing} from {emoji.group}, {emoji.subgroup}"
    if form == 1 and more:
        return f"{drawing}: {title(emoji.label)} ({more})"
    return f"{drawing} of {noun(emoji.label)}" + (f"; {more}" if more else "")


def title(label: str) -> str:
    """ "flag: Chad" -> "flag of Chad", "family: man, boy" -> "family (man, boy)"."""
    kind, colon, rest = label.partition(": ")
    return f"flag of {rest}" if kind == "flag" else f"{kind} ({rest})" if colon else label


def noun(label: str) -> str:
    """ "raccoon" -> "a raccoon", "flag: Chad" -> "the flag of Chad", "grapes" -> "grapes"."""
    if label.startswith("flag: "):
        return f"the {title(label)}"
    kind = label.partition(": ")[0]
    head = re.split(r" (?:with|of|in|on|behind|from|without) ", kind)[0].split(" ")[-1]
    plural = re.search(r"[^su]s$", head) or kind.split(" ")[0] in ("people", "men", "women")
    # A name of its own ("Santa Claus") takes no article; neither does "1st place medal".
    bare = plural or not label[:1].islower()
    return title(label) if bare else f"{_article(label)} {title(label)}"


def _article(noun: str) -> str:
    return "an" if noun[:1] in "aeiou" else "a"
