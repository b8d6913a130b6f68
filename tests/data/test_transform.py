"""Orders, dropped captions and conversations."""

import io
import json
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from mmjax.batch import EOS, SEP, Image, Sentinel, Text
from mmjax.data import tokenizer as bpe
from mmjax.data.formats.llava import items
from mmjax.data.pack import first_fit
from mmjax.data.record import Record
from mmjax.data.transform import (
    RECONSTRUCT,
    VICUNA,
    captioning,
    conversation,
    drop_caption,
    kind,
    one_question,
    order,
    reads,
    reconstruction,
)
from mmjax.error import UserError


def png(colour):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


A, B = Image(png("red")), Image(png("blue"))
RED, BLUE = Text("red"), Text("blue")
CAPTIONED = [(RED, A), (A, RED), (RED, BLUE, A), (A, B, RED, BLUE)]
INTERLEAVED = [(RED, A, BLUE), (A, RED, B), (RED, A, BLUE, B)]
ALONE = [(), (RED,), (A,), (RED, BLUE), (A, B)]
ASKED = replace(SEP, loss=False)


def unread(*parts):
    return tuple(replace(part, loss=False) for part in parts)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("document", CAPTIONED)
def test_text_stands_first_with_that_probability(document):
    texts = tuple(p for p in document if isinstance(p, Text))
    pictures = tuple(p for p in document if isinstance(p, Image))
    assert order(document, rng(), 1.0) == texts + pictures
    assert order(document, rng(), 0.0) == pictures + texts
    generator = rng()
    first = [order(document, generator, 0.8) == texts + pictures for _ in range(2000)]
    assert abs(np.mean(first) - 0.8) < 0.036
    again = rng()
    assert first == [order(document, again, 0.8) == texts + pictures for _ in range(2000)]


@pytest.mark.parametrize("document", [*INTERLEAVED, *ALONE, (*unread(A), RED), (*unread(RED), A)])
@pytest.mark.parametrize("text_first", [0.0, 1.0])
def test_documents_that_read_in_one_order_only_stay(document, text_first):
    assert order(document, rng(), text_first) == document


def test_every_document_takes_one_draw():
    for change in (order, drop_caption):
        for document in [*CAPTIONED, *INTERLEAVED, *ALONE]:
            generator, expected = rng(), rng()
            change(document, generator, 0.5)
            expected.random()
            assert generator.random() == expected.random()


@pytest.mark.parametrize("document", [*CAPTIONED, (*unread(RED), ASKED, A)])
def test_a_caption_is_dropped_with_that_probability(document):
    pictures = tuple(p for p in document if isinstance(p, Image))
    assert drop_caption(document, rng(), 1.0) == pictures != document
    assert drop_caption(document, rng(), 0.0) == document
    generator = rng()
    dropped = [drop_caption(document, generator, 0.1) == pictures for _ in range(2000)]
    assert abs(np.mean(dropped) - 0.1) < 0.027


@pytest.mark.parametrize("document", [*INTERLEAVED, *ALONE, (*unread(A), RED)])
def test_other_texts_are_never_dropped(document):
    assert drop_caption(document, rng(), 1.0) == document


def test_a_conversation_of_llavas(tmp_path):
    (tmp_path / "a.png").write_bytes(A.data)
    said = [
        ("system", "Be brief."), ("human", "<image>Which colour?"), ("gpt", "red"),
        ("human", "Sure?"), ("gpt", "yes"), ("human", "Thanks"),
    ]  # fmt: skip
    turns = [{"from": role, "value": text} for role, text in said]
    told = [{"id": "1", "image": "a.png", "conversations": turns}]
    (tmp_path / "chat.json").write_text(json.dumps(told))
    (item,) = items(tmp_path / "chat.json")
    found = conversation(item.read(), "sep")
    assert found == (
        *unread(Text("Be brief."), A, Text("Which colour?")), ASKED, RED, SEP,
        *unread(Text("Sure?")), ASKED, Text("yes"),
    )  # fmt: skip
    assert kind(found) == "image_to_text"


def test_pictures_that_answer_have_a_loss_and_those_that_ask_have_none():
    roles = ["gpt", "human", "human", "gpt", "gpt"]
    document = (Text("Hello"), RED, B, replace(A, loss=False), Text("here"))
    found = conversation(Record("1", document, {"roles": roles}), "sep")
    assert found == (*unread(RED, B), ASKED, A, Text("here"))  # nobody asked for "Hello"


def test_questions_about_a_picture():
    asked = [{"question": "How many?", "answer": 2, "kind": "count"}]
    asked += [{"question": "Which colour?", "answer": "red", "kind": "colour"}]
    record = Record("1", (Text("two red squares"), A), {"questions": asked})
    found = conversation(record, "sep")
    assert found == (
        *unread(A, Text("How many?")), ASKED, Text("2"), SEP,
        *unread(Text("Which colour?")), ASKED, RED,
    )  # fmt: skip
    assert Text("two red squares", loss=False) not in found  # it holds the answers


def test_pictures_of_prompts_are_told_from_those_of_answers():
    roles = ["human", "human", "gpt", "human"]
    said = Record("1", (RED, B, A, A), {"roles": roles})
    assert reads("sep", said) == [True, False, True]  # nobody answered the last
    asked = Record("2", (RED, A), {"questions": [{"question": "How many?", "answer": 2}]})
    assert reads("sep", asked) == reads("sep_one", asked) == [True]
    assert reads("sep_draw", asked) == reads("", asked) == [False]
    assert reads("", Record("3", (*unread(A), RED, B))) == [True, False]


def test_one_of_the_questions_is_drawn():
    known = [{"question": f"{n}?", "answer": str(n)} for n in range(3)]
    record = Record("1", (RED, A), {"questions": known, "concept": "red"})
    generator = rng()
    drawn = [one_question(record, generator) for _ in range(300)]
    assert all(r.document == record.document and r.facts["concept"] == "red" for r in drawn)
    said = [r.facts["questions"] for r in drawn]
    assert all(len(some) == 1 for some in said)
    assert all(70 < said.count([one]) < 130 for one in known)
    assert one_question(Record("2", (RED, A)), generator).facts == {}


@pytest.mark.parametrize(
    ("facts", "template", "message"),
    [
        ({}, "sep", "record 7 has no prompt with an answer"),
        ({"questions": []}, "sep", "record 7 has no prompt"),
        ({"roles": ["human", "human"]}, "sep", "record 7 has no prompt"),
        ({"roles": ["gpt", "human"]}, "sep", "record 7 has no prompt"),
        ({"roles": ["human"]}, "sep", "record 7 has 1 roles for 2 parts"),
        ({"roles": ["human", "gpt"]}, "alpaca", "template 'alpaca'"),
        ({"roles": ["human", "human"]}, "vicuna", "record 7 has no prompt"),
    ],
)
def test_records_that_are_no_conversation(facts, template, message):
    with pytest.raises(UserError, match=message):
        conversation(Record("7", (RED, BLUE), facts), template)
    assert conversation(Record("7", (RED, BLUE), {"roles": ["human", "gpt"]}), "sep")


def test_loss_lies_on_answers_alone_and_the_separator_is_one_sentinel():
    tokenizer = bpe.train(["red blue green <sep>"] * 3, 300)
    vocab = bpe.vocabulary(tokenizer)
    roles = ["human", "gpt", "human", "gpt"]
    record = Record("1", (Text("red <sep>"), BLUE, BLUE, A), {"roles": roles})
    piece = bpe.lay_out(conversation(record, "sep"), tokenizer, vocab, 2, True)
    at = np.flatnonzero(piece["tokens"] == vocab.sep)
    assert len(at) == 3  # the one that was typed is text
    assert piece["weight"][at].tolist() == [0, 1, 0]
    answer = slice(at[0] + 1, at[1])
    assert bpe.decode(tokenizer, piece["tokens"][answer]) == "blue"
    assert (piece["weight"][answer] == 1).all() and (piece["weight"][at[2] + 1 :] == 1).all()
    assert (piece["weight"][: at[0]] == 0).all() and (piece["weight"][at[1] + 1 : at[2]] == 0).all()


def test_vicunas_words_around_two_answers_that_end_in_eos():
    tokenizer = bpe.train([f"{VICUNA} USER: ASSISTANT: red blue"] * 3, 500)
    vocab = bpe.vocabulary(tokenizer)
    record = Record(
        "1", (A, RED, BLUE, RED, BLUE), {"roles": ["human"] * 2 + ["gpt", "human", "gpt"]}
    )
    document = conversation(record, "vicuna")
    assert document == (
        *unread(Text(f"{VICUNA} USER:"), A, RED, Text("ASSISTANT:")), BLUE, EOS,
        *unread(Text("USER:"), RED, Text("ASSISTANT:")), BLUE,
    )  # fmt: skip
    piece = bpe.lay_out(document, tokenizer, vocab, 2, True)
    ends = np.flatnonzero(piece["tokens"] == vocab.eos)
    assert len(ends) == 2 and ends[1] == len(piece["tokens"]) - 1
    blue = bpe.encode(tokenizer, "blue")
    told = np.concatenate([np.arange(end - len(blue), end + 1) for end in ends])
    assert np.flatnonzero(piece["weight"]).tolist() == told.tolist()
    assert kind(document) == "image_to_text"


def test_as_many_conversations_a_row_as_fit():
    tokenizer = bpe.train(["red blue green"] * 3, 300)
    vocab, generator = bpe.vocabulary(tokenizer), rng()
    roles = {"roles": ["human", "gpt"]}
    records = [
        Record(str(n), (Text("red " * int(generator.integers(1, 9))), A if n % 3 else BLUE), roles)
        for n in range(60)
    ]
    told = [conversation(record, "sep") for record in records]
    lengths = [len(p["tokens"]) for p in bpe.lay_out_all(told, tokenizer, vocab, 4, True)]
    slots = [sum(isinstance(part, Image) for part in document) for document in told]
    rows = first_fit(lengths, slots, 64, 8)
    assert sorted(n for row in rows for n in row) == list(range(60))
    used = [sum(lengths[n] for n in row) for row in rows]
    assert max(used) <= 64 and max(sum(slots[n] for n in row) for row in rows) <= 8
    assert len(rows) <= -(-sum(lengths) // 64) + 1 < 60  # one a row would take 60


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ((), "text"),
        ((RED, BLUE), "text"),
        ((*unread(RED), ASKED, BLUE), "text"),
        ((A, B), "image"),
        ((RED, A), "text_to_image"),
        ((RED, A, B), "text_to_image"),
        ((A, RED), "image_to_text"),
        (unread(A, RED), "image_to_text"),
        ((*unread(RED), ASKED, A), "text_to_image"),
        ((*unread(RED), ASKED, A, SEP, *unread(BLUE), ASKED, B), "text_to_image"),
        ((*unread(RED, A), ASKED, BLUE), "image_to_text"),
        ((*unread(A, RED), ASKED, BLUE, SEP, *unread(RED), ASKED, BLUE), "image_to_text"),
        ((*unread(RED), ASKED, A, BLUE), "interleaved"),
        ((*unread(RED, A), ASKED, B), "interleaved"),
        ((RED, A, BLUE), "interleaved"),
        ((A, RED, B), "interleaved"),
    ],
)
def test_what_a_document_teaches(document, expected):
    assert kind(document) == expected


REGISTERED = Sentinel("registers", loss=False)


def reconstructions(bottleneck, count=2000, record=None):
    """Documents of one picture; -> each as (what stands before the answer, answer)."""
    generator, record = rng(), record or Record("1", (RED, A))
    made = [reconstruction(record, generator, bottleneck, 2) for _ in range(count)]
    return [(document[:-1], document[-1]) for document in made]


@pytest.mark.parametrize(
    ("bottleneck", "read", "behind"),
    [
        ("none", replace(A, loss=False), ()),
        ("lowres", replace(A, loss=False, shrink=2), ()),
        ("registers", replace(A, loss=False), (REGISTERED,)),
    ],
)
def test_a_picture_is_read_and_asked_for_and_only_the_answer_has_a_loss(bottleneck, read, behind):
    made = reconstructions(bottleneck)
    assert all(answer == A for _, answer in made)
    requests = [
        before[-1].text for before, _ in made if before and before[-1] not in (read, *behind)
    ]
    assert set(requests) == set(RECONSTRUCT)
    assert abs(len(requests) / len(made) - 0.9) < 0.027
    seen = [before[:1] == (read,) for before, _ in made]
    assert abs(np.mean(seen) - 0.9) < 0.027
    for (before, _), sees in zip(made, seen, strict=True):
        head = (read,) * sees + behind
        assert before[: len(head)] == head and len(before) <= len(head) + 1
        assert not any(part.loss for part in before)
    both = [not sees and before == behind for (before, _), sees in zip(made, seen, strict=True)]
    assert 0 < np.mean(both) < 0.03  # independent of each other: one in a hundred
    assert made == reconstructions(bottleneck) and kind((*made[0][0], A)) != "image_to_text"


def test_any_picture_of_a_record_is_reconstructed_by_itself():
    made = reconstructions("none", 200, Record("1", (A, RED, B)))
    assert {answer.data for _, answer in made} == {A.data, B.data}
    for before, answer in made:
        assert all(part.data == answer.data for part in before if isinstance(part, Image))


def test_captioning_reads_pictures_and_writes_texts():
    assert captioning(Record("1", (RED, *unread(BLUE), A, B))) == (*unread(A, B), RED, BLUE)
    assert kind(captioning(Record("1", (RED, A)))) == "image_to_text"


@pytest.mark.parametrize(
    "make", [captioning, lambda record: reconstruction(record, rng(), "none", 2)]
)
def test_a_record_without_a_picture_is_refused(make):
    with pytest.raises(UserError, match=r"record 9 has no picture, which the template '\w+' needs"):
        make(Record("9", (RED,)))
    assert make(Record("9", (RED, A)))


def test_registers_are_ids_of_their_own_without_a_loss():
    tokenizer = bpe.train(["red blue green"] * 3, 300)
    plain = bpe.vocabulary(tokenizer, codes=5)
    document = reconstruction(Record("1", (A,)), rng(3), "registers", 2)
    with pytest.raises(
        UserError, match=r"no mmjax.REGISTERS; train with data.bottleneck='registers'"
    ):
        bpe.lay_out(document, tokenizer, plain, 2, True)
    vocab = bpe.vocabulary(bpe.with_registers(tokenizer), codes=5)
    assert len(set(vocab.registers)) == 16 == vocab.size - plain.size == vocab.codes - plain.codes
    assert vocab.registers[0] == plain.codes and set(vocab.registers) <= set(vocab.sentinels)
    piece = bpe.lay_out(document, tokenizer, vocab, 2, True)
    at = np.flatnonzero(np.isin(piece["tokens"], vocab.registers))
    assert piece["tokens"][at].tolist() == list(vocab.registers)
    assert (piece["weight"][at] == 0).all() and (np.diff(at) == 1).all()
    # Typed within a text they are text, and none is ever said.
    assert not set(vocab.registers) & set(bpe.encode(tokenizer, "red <register:0>"))
    assert bpe.decode(tokenizer, vocab.registers) == ""
    assert bpe.vocabulary(bpe.with_registers(tokenizer), codes=5) == vocab
