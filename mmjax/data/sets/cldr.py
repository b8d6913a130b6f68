"""What emoji are called: Unicode's names, keywords and groups, from the package emojibase-data."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmjax.error import UserError

# Persons drawn with a gender, and those without: code points in hex.
_NEUTRAL = {
    **dict.fromkeys(("1f468", "1f469"), "1f9d1"),  # man, woman -> person
    **dict.fromkeys(("1f466", "1f467"), "1f9d2"),  # boy, girl -> child
    **dict.fromkeys(("1f474", "1f475"), "1f9d3"),  # old man, old woman -> older person
    **dict.fromkeys(("1f934", "1f478"), "1fac5"),  # prince, princess -> person with crown
    **dict.fromkeys(("1f46b", "1f46c"), "1f46d"),  # holding hands
    **dict.fromkeys(("1f6b9", "1f6ba"), "1f6bb"),  # men's and women's room -> restroom
    **dict.fromkeys(("1f385", "1f936"), "1f9d1-200d-1f384"),  # Santa and Mrs. Claus
    "1f57a": "1f483",  # man, woman dancing
}
_DETAIL = re.compile(r"-fe0f|-200d-(2640|2642)|-200d-27a1|-1f3f[b-f]")
# Other names of emoji, the nearest to CLDR's first.
_SHORTCODES = ("cldr", "emojibase", "emojibase-legacy", "github", "iamcal", "joypixels")
_SHORT = {"of", "up", "on", "in", "at", "to", "no", "ok", "id", "go"}


@dataclass(frozen=True)
class Emoji:
    """A name and what goes with it; without `code`, of something that is no emoji.

    Attributes:
        label: "raccoon". concept: as in `concept_of`. tags: keywords, "curious".
        group, subgroup: "animals and nature", "mammals"; "" where there is none.
    """

    label: str
    concept: str
    tags: tuple[str, ...] = ()
    group: str = ""
    subgroup: str = ""


@dataclass(frozen=True)
class Names:
    """Emoji by code points ("1f99d"), by squeezed name, by the words of their label; all words."""

    codes: Mapping[str, Emoji]
    squeezed: Mapping[str, Emoji]
    bags: Mapping[tuple[str, ...], Emoji]
    words: frozenset[str]

    def find(self, code: str, names: Iterable[str]) -> Emoji:
        """What an icon shows, by its code points if there are any, or else by its names.

        An icon that is no emoji ("penoverstampedenvelope") is named by the words in its name.
        """
        if known := self.codes.get(code.replace("-fe0f", "")):
            return known
        for name in names:
            if known := self.squeezed.get(_squeezed(name)):
                return known
        words = self.segmented(next(iter(names)))
        label = " ".join(words)
        return self.bags.get(tuple(sorted(words))) or Emoji(label, label)

    def segmented(self, name: str) -> list[str]:
        """ "heartblue2" -> heart, blue, 2: the fewest known words; what has none stays whole."""
        out = []
        for piece in re.findall(r"[0-9]+|[^\W0-9_]+", name.lower()):
            best: dict[int, list[str]] = {0: []}
            for end in range(1, len(piece) + 1):
                ways = [
                    best[start] + [piece[start:end]]
                    for start in best
                    if piece[start:end] in self.words
                ]
                if ways:
                    best[end] = min(ways, key=len)
            out += best.get(len(piece)) or [piece]
        return out


def names(folder: Path) -> Names:
    """Reads emojibase-data's directory of one language ("en").

    Raises:
        UserError: if a file of it is damaged.
    """
    try:
        entries = json.loads((folder / "data.json").read_text("utf-8"))
        messages = json.loads((folder / "messages.json").read_text("utf-8"))
        groups, subgroups = (
            {m["order"]: m["message"].replace("&", "and") for m in messages[key]}
            for key in ("groups", "subgroups")
        )
        labels = {_plain(e["hexcode"]): e["label"].replace("’", "'") for e in entries}
        family = next(m["order"] for m in messages["subgroups"] if m["key"] == "family")
        codes = {}
        for e in entries:
            code, label = _plain(e["hexcode"]), e["label"].replace("’", "'")
            codes[code] = Emoji(
                label,
                label.partition(":")[0]
                if e.get("subgroup") == family
                else concept_of(code, labels),
                tuple(e.get("tags", ())),
                groups.get(e.get("group"), ""),
                subgroups.get(e.get("subgroup"), ""),
            )
        return _indexed(codes, _shortcodes(folder, codes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is damaged ({error!r}); unpack emojibase-data again") from error


def _plain(hexcode: str) -> str:
    return hexcode.lower().replace("-fe0f", "")


def concept_of(code: str, labels: Mapping[str, str]) -> str:
    """What an emoji shows whatever the gender, skin tone and direction: a label, or else a code.

    "1f468-200d-1f3a8" (man artist) -> "artist".
    """
    bare = "-".join(_NEUTRAL.get(c, c) for c in _DETAIL.sub("", code).split("-"))
    return labels.get(bare) or labels.get(_DETAIL.sub("", code)) or bare


def _shortcodes(folder: Path, codes: Mapping[str, Emoji]) -> list[tuple[str, Emoji]]:
    found = []
    for name in _SHORTCODES:
        file = folder / "shortcodes" / f"{name}.json"
        table = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        for code, short in table.items():
            if known := codes.get(_plain(code)):
                found += [(s, known) for s in ([short] if isinstance(short, str) else short)]
    return found


def _indexed(codes: Mapping[str, Emoji], short: Iterable[tuple[str, Emoji]]) -> Names:
    """The same emoji by everything they are called; the first to have a name keeps it."""
    squeezed: dict[str, Emoji] = {}
    bags: dict[tuple[str, ...], Emoji] = {}
    words: set[str] = set(_SHORT)
    for emoji in codes.values():
        squeezed.setdefault(_squeezed(emoji.label), emoji)
        bags.setdefault(tuple(sorted(_words(emoji.label))), emoji)
        for text in (emoji.label, *emoji.tags):
            words.update(w for w in _words(text) if len(w) > 2)
    for code, emoji in codes.items():
        official = [unicodedata.name(chr(int(c, 16)), "") for c in code.split("-")]
        words.update(w for name in official for w in _words(name) if len(w) > 2)
        if len(official) == 1:
            squeezed.setdefault(_squeezed(official[0]), emoji)
    for name, emoji in short:
        squeezed.setdefault(_squeezed(name), emoji)
    return Names(codes, squeezed, bags, frozenset(words))


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", _ascii(text))


def _squeezed(text: str) -> str:
    """ "1st-place medal" -> "1stplacemedal"."""
    return "".join(_words(text))
