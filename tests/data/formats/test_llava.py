"""Conversations: turns and pictures in their places, loss on gpt's words alone."""

import json

import pytest
from pictures import outcome, picture

from mmjax.batch import Image, Text
from mmjax.data.formats import llava
from mmjax.error import UserError


def turns(*said):
    return [{"from": role, "value": text} for role, text in said]


@pytest.fixture
def write(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "images/a.png").write_bytes(picture(3))
    (tmp_path / "images/b.jpg").write_bytes(picture(2, "jpeg"))

    def write(*entries):
        (tmp_path / "chat.json").write_text(json.dumps(entries))
        return llava.items(tmp_path / "chat.json")

    return write


def test_turns_stay_as_they_are_and_pictures_come_in_their_places(write):
    said = turns(("system", "Be brief."), ("human", "<image>\nAnd <image>?"), ("gpt", "An owl. "),
                 ("human", "Sure?"), ("gpt", "Yes."))  # fmt: skip
    (item,) = write({"id": 7, "image": ["a.png", "b.jpg"], "conversations": said})
    record = item.read()
    assert (item.source, record.id) == ("chat.json:1", "7")
    assert record.document == (
        Text("Be brief.", loss=False),
        Image(picture(1), loss=False), Text("\nAnd ", loss=False),
        Image(picture(2, "jpeg"), loss=False), Text("?", loss=False),
        Text("An owl. "), Text("Sure?", loss=False), Text("Yes."),
    )  # fmt: skip
    assert record.facts["roles"] == ["system", *["human"] * 4, "gpt", "human", "gpt"]


def test_without_pictures_and_without_id(write):
    said = turns(("human", "Hi"), ("gpt", "Hello"))
    ((source, record),) = outcome(write({"conversations": said}))[0].items()
    assert record.id == source == "chat.json:1"
    assert record.document == (Text("Hi", loss=False), Text("Hello"))


CHAT = turns(("human", "<image>"), ("gpt", "x"))
DAMAGED = [
    (3, "not a JSON object"), ({"id": "x"}, "no list of conversations"),
    ({"conversations": CHAT}, "1 <image> but 0 pictures"),
    ({"image": ["a.png", "a.png"], "conversations": CHAT}, "1 <image> but 2 pictures"),
    ({"image": "a.png", "conversations": turns(("gpt", "x"))}, "0 <image> but 1 pictures"),
    ({"image": "c.png", "conversations": CHAT}, "c.png: no such file"),
    ({"image": "chat.json", "conversations": CHAT}, "not a picture"),
    ({"image": {"a": 1}, "conversations": CHAT}, "image is neither"),
    ({"conversations": []}, "no turn of gpt's"),
    ({"conversations": turns(("human", "x"))}, "no turn of gpt's"),
    ({"conversations": turns(("bot", "x"))}, "turn 1: 'bot' is none of"),
    ({"conversations": ["x"]}, "turn 1: 'None' is none of"),
    ({"conversations": turns(("gpt", "x"), ("gpt", " "))}, "turn 2: empty"),
    ({"conversations": turns(("gpt", "\ud800"))}, "turn 1 holds half a character"),
]  # fmt: skip


@pytest.mark.parametrize("entry, reason", DAMAGED, ids=[r for _, r in DAMAGED])
def test_a_damaged_conversation_is_named_and_the_next_lives(write, entry, reason):
    records, reasons = outcome(write(entry, {"image": "b.jpg", "conversations": CHAT}))
    assert list(records) == ["chat.json:2"]
    assert reason in reasons["chat.json:1"]


@pytest.mark.parametrize("name, text, message", [
    ("no.json", None, "does not exist"), ("a.json", "[1,", "not JSON"), ("a.json", "", "not JSON"),
    ("a.json", "{}", "no list"), ("a.json", "[]", "no list"), ("", None, "is a folder"),
])  # fmt: skip
def test_a_file_that_is_no_list_is_the_users_mistake(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        llava.items(tmp_path / name)
