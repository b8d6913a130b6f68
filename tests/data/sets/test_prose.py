"""The language reference as records of text."""

import collections
import re
from pydoc_data.topics import topics as pages

import pytest

from mmjax.batch import Text
from mmjax.data.sets import prose
from mmjax.data.sets.prose import is_prose, paragraphs

PAGE = """\
The "assert" statement
**********************

Assertions are *useful*; see **PEP 3115** and the
notes on "__debug__" [2].

   assert_stmt ::= "assert" expression

For example:

   if __debug__:
       if not expression: raise AssertionError

+------+-----+
| a    | b   |
+------+-----+

-[ Footnotes ]-

[2] It is "True" unless
    "-O" is given.
"""


def test_markup_goes_and_sentences_stay():
    assert paragraphs(PAGE) == [
        'The "assert" statement',
        'Assertions are useful; see PEP 3115 and the notes on "__debug__".',
        "For example:",
        "if __debug__:\n    if not expression: raise AssertionError",
        'It is "True" unless "-O" is given.',
    ]


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("Class creation can be customized heavily.", True),
        ("*width* is a decimal integer defining the width.", True),
        ("for x in range(3):\n    print(x)", False),
        (">>> d = {}\n>>> # a comment on it.", False),
        ("str.center(width[, fillchar])", False),
        ("x[0] = y[1:2]; z.f(1).", False),
    ],
)
def test_sentences_and_code(text, prose):
    assert is_prose(text) is prose


@pytest.fixture(scope="module")
def read():
    return [(item.split, item.read()) for item in prose.items()]


def test_real_sentences_survive(read):
    text = "\n".join(record.caption for _, record in read)
    for sentence in (
        "Assert statements are a convenient way to insert debugging assertions into a program:",
        "Class creation can be customized heavily using metaclasses.",
        "Every object has an identity, a type and a value.",
        "else:\n    SUITE",
    ):
        assert sentence in text
    for leftover in ("::=", "+----", "Footnotes ]"):
        assert leftover not in text
    assert not re.search(r"^[*=~^-]{3,}$", text, re.MULTILINE)
    # Emphasis is left where it may be Python: in code, headings and lists.
    emphasis = re.compile(r"\*\w+\*")
    assert len(emphasis.findall(text)) < 0.1 * len(emphasis.findall("".join(pages.values())))
    assert 250_000 < len(text) < 600_000


def test_records_are_paragraphs_of_one_topic(read):
    lengths = [len(record.caption) for _, record in read]
    assert sum(lengths) / len(read) > 0.6 * prose.LONGEST
    for _, record in read:
        (part,) = record.document
        assert isinstance(part, Text) and part.text == part.text.strip() != ""
        assert len(part.text) <= prose.LONGEST or "\n\n" not in part.text
        assert record.id.split(":")[0] == record.facts["concept"]
    assert len({record.id for _, record in read}) == len(read)


def test_no_topic_and_no_paragraph_in_two_splits(read):
    topics, texts = collections.defaultdict(set), collections.defaultdict(set)
    for split, record in read:
        topics[record.facts["concept"]].add(split)
        for text in record.caption.split("\n\n"):
            if len(text) > 60:
                texts[text].add(split)
    assert max(map(len, topics.values())) == max(map(len, texts.values())) == 1
    size = collections.Counter()
    for split, record in read:
        size[split] += len(record.caption)
    assert 10_000 < min(size["validation"], size["test"]) < size["train"] / 3
