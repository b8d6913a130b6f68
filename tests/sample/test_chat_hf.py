"""Random prompts and conversations have the ids of `transformers`, for tokenizers of every kind."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_chat import GOLDEN, PHOTO, beside, ids_of, opened, run_of
from tokenizers import Tokenizer

from mmjax.batch import Image, Text
from mmjax.convert import words
from mmjax.sample import chat

pytestmark = pytest.mark.hf
# Without what theirs takes for a token: what a user says is text here alone.
WORDS = ["a", "red", " ring", " ", "  ", "\n", "é", "🍎", "user", "b", "<", "/s", "|", "[", "INST"]
SAID = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), min_size=1, max_size=6).map("".join)
MARKED = [*json.loads(GOLDEN["kinds"]["prefixed_none"]["tokenizer"])["added_tokens"]]


@pytest.fixture(params=[kind for kind in GOLDEN["kinds"] if kind.endswith("_both")])
def both(request, tmp_path):
    """(A run and its workdir, what is known of its tokenizer, theirs)."""
    transformers = pytest.importorskip("transformers")
    about = GOLDEN["kinds"][request.param]
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(about["tokenizer"]), **about["config"]
    )
    return opened(beside(tmp_path, about)), tmp_path, about, theirs


def is_plain(text: str) -> bool:
    return not any(token["content"] in text for token in MARKED)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.lists(SAID | st.none(), min_size=1, max_size=5))
def test_prompts(both, parts):
    run, _, _, theirs = both
    alternating = [p for i, p in enumerate(parts) if p is None or i == 0 or parts[i - 1] is None]
    whole = "".join("<image>" if p is None else p for p in alternating)
    if not all(p is None or is_plain(p) for p in alternating):
        return
    document = [Image(b"") if p is None else Text(p) for p in alternating]
    assert ids_of(run, document) == theirs(whole).input_ids


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(said=st.lists(SAID.filter(is_plain), min_size=1, max_size=3), picture=st.booleans())
@pytest.mark.parametrize("name", GOLDEN["templates"])
def test_conversations(both, name, said, picture):
    run, home, about, theirs = both
    said, source = said[: len(said) // 2 * 2 or 1], GOLDEN["templates"][name]
    said = said[: len(said) - 1 + len(said) % 2]
    beside(home, about, source)
    picture &= name == "parts"
    roles = ["user", "assistant", "user"]
    turns = [{"role": r, "content": [t]} for r, t in zip(roles, said, strict=False)]
    listed = name == "parts"
    given_ = [
        {"role": r, "content": [{"type": "text", "text": t}] if listed else t}
        for r, t in zip(roles, said, strict=False)
    ]
    if picture:
        turns[0]["content"].insert(0, PHOTO)
        given_[0]["content"].insert(0, {"type": "image"})
    how = {"chat_template": source, "add_generation_prompt": True, "return_dict": False}
    asked = chat.ask(run, home, turns)
    wanted = theirs.apply_chat_template(given_, tokenize=True, **how)
    assert ids_of(run, asked.document, asked.begin) == wanted


@pytest.mark.parametrize("template", ["sep", "vicuna"])
def test_what_goes_out_has_the_same_ids_there(template, tmp_path):
    """A tokenizer that was trained here, loaded by theirs: prompts and conversations."""
    transformers = pytest.importorskip("transformers")
    ours = run_of(template)
    for name, content in words.sent(ours.tokenizer, ours.model.parts.vocabulary, template).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("what is it?").input_ids == ids_of(ours, [Text("what is it?")])
    turns = ["what is it?", "red", " and\nblue? "]
    told = [{"role": "assistant" if n % 2 else "user", "content": t} for n, t in enumerate(turns)]
    wanted = theirs.apply_chat_template(
        told, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ids_of(ours, chat.ask(ours, None, turns).document) == wanted
