"""English prose that every CPython brings along: its language reference (PSF licence).

`pydoc_data.topics` holds the pages that `help()` shows, as Sphinx wrote them for a terminal.
"""

import hashlib
import re
import textwrap
from collections.abc import Iterator
from functools import partial
from pydoc_data.topics import topics

from mmjax.batch import Text
from mmjax.data.formats.text import grouped
from mmjax.data.record import Item, Record

LONGEST = 1500  # characters of a record; a longer paragraph stands alone
TEST, VALIDATION = 0.08, 0.08  # shares of topics

_BLANK = re.compile(r"\n[ \t]*\n")
_UNDERLINE = re.compile(r"\n([*=\-~^+#])\1{2,}$")
_FOOTNOTE = re.compile(r"\s?\[\d+\](?=[\s.,;:)]|$)")
_MARK = re.compile(r"(?<![\w*])(\*\*?)([^\s*](?:[^*]*[^\s*])?)\1(?![\w*])")
_SENTENCE = re.compile(r"\W*[A-Z].*[.:;?!)”]|\W*\w.*\.", re.DOTALL)
_CODE = re.compile(r"^\s*(>>>|\.\.\.|#|@|def |class |import )", re.MULTILINE)
# Grammar, tables, rules, tracebacks, headings of footnotes.
_OTHER = re.compile(r"::=|^ *[+|]|^-\[|^=+( +=|$)|^Traceback", re.MULTILINE)


def items() -> Iterator[Item]:
    """Neighbouring paragraphs of one topic, together up to LONGEST characters; text alone.

    A topic lies in one split, and a paragraph that several topics share stands in the first.
    """
    seen: set[str] = set()
    for name, page in sorted(topics.items()):
        fresh = [text for text in paragraphs(page) if text not in seen]
        seen.update(text for text in fresh if len(text) > 60)  # not: "For example:"
        for number, text in enumerate(grouped(fresh, LONGEST), 1):
            id = f"{name}:{number}"
            read = partial(Record, id, (Text(text),), {"concept": name, "language": "en"})
            yield Item(f"topic {id}", read, _split(name))


def paragraphs(page: str) -> list[str]:
    """A page's paragraphs without markup; sentences on one line, examples line by line.

    Grammar and tables are left out.
    """
    return [text for raw in _BLANK.split(page) if (text := _clean(raw))]


def _clean(raw: str) -> str:
    text = _UNDERLINE.sub("", textwrap.dedent(raw.strip("\n")).strip())
    if _OTHER.search(text):
        return ""
    text = re.sub(r"^\[\d+\] ", "", text)  # a footnote itself
    if not is_prose(text):
        return text
    text = _MARK.sub(r"\2", _FOOTNOTE.sub("", text))
    return re.sub(r"\s+", " ", text)


def is_prose(text: str) -> bool:
    """Whether a paragraph is made of sentences, not of code."""
    tokens = [token.strip("\"'*“”‘’()[],.:;") for token in text.split()]
    words = sum(token.replace("-", "").isalpha() for token in tokens)
    return bool(_SENTENCE.fullmatch(text)) and words > len(tokens) / 2 and not _CODE.search(text)


def _split(topic: str) -> str:
    share = int.from_bytes(hashlib.sha256(f"prose/{topic}".encode()).digest()[:8], "big") / 2**64
    return "test" if share < TEST else "validation" if share < TEST + VALIDATION else "train"
