"""Tokenizers beside weights of others: how their texts begin and end, and tables too small."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from test_conversion import theirs
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import mmjax
from mmjax import conversion
from mmjax.batch import Image, Text, Vocabulary
from mmjax.convert import words
from mmjax.data.tokenizer import lay_out, lay_out_all
from mmjax.error import UserError

TEMPLATES = {
    "none": None,
    "begins": "<s> $A",
    "ends": "$A </s>",
    "both": "<s> <s> $A </s>",
}


def tokenizer(size: int = 48, template: str | None = None) -> Tokenizer:
    """`size` words, w3, w4, ..."""
    names = ["[UNK]", "<s>", "</s>", *(f"w{n}" for n in range(3, size))]
    t = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, "[UNK]"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.add_special_tokens(["<s>", "</s>"])
    if template:
        special = [("<s>", 1), ("</s>", 2)]
        t.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return t


@pytest.mark.parametrize(
    ("template", "told", "around"),
    [
        ("none", {}, ([], [])),
        ("begins", {}, ([1], [])),
        ("ends", {}, ([], [2])),
        ("both", {}, ([1, 1], [2])),
        ("none", {"add_bos_token": True, "bos_token": "<s>"}, ([1], [])),
        ("none", {"add_bos_token": True, "bos_token": {"content": "<s>"}}, ([1], [])),
        ("begins", {"add_bos_token": False, "bos_token": "<s>"}, ([], [])),
        ("none", {"add_bos_token": True}, ([], [])),
        ("begins", {"add_eos_token": True, "eos_token": "</s>"}, ([], [2])),
        ("begins", {"bos_token": "<s>"}, ([1], [])),
    ],
)
def test_a_tokenizers_post_processing_decides_what_stands_around_a_text(template, told, around):
    """Not config.json, which names ids whether or not texts have them."""
    t = tokenizer(template=TEMPLATES[template])
    beside = {"tokenizer.json": t.to_str().encode(), words.CONFIG: json.dumps(told).encode()}
    v = Vocabulary(48, pad=0, bos=1, eos=2, boi=-1, eoi=-1, sep=-1, eoss=-1)
    found = words.processed(v, beside, None)
    before, behind = around
    prompt = [Text("w5 w6"), Image(b""), Text("w7")]
    ids = lay_out(prompt, t, found, 1, False, end=False)["tokens"].tolist()
    assert ids == [*before, 5, 6, 0, 7, *behind]
    assert not before or found.bos == before[0]
    whole = lay_out(prompt, t, found, 1, False)  # it ends once
    assert whole["tokens"].tolist() == [*before, 5, 6, 0, 7, 2]
    assert whole["weight"].tolist() == [0] * len(before) + [1] * 5
    some = lay_out_all([prompt] * 2, t, found, 1, False, end=False, begin=[True, False])
    assert [x["tokens"].tolist() for x in some] == [ids, [5, 6, 0, 7]]


def test_files_that_are_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        words.read({"tokenizer.json": b"{"}, tmp_path)
    for content, said in ((b"{", "is damaged"), (b"[]", "holds a list")):
        with pytest.raises(UserError, match=rf"tokenizer_config\.json {said}"):
            words.settings({words.CONFIG: content}, tmp_path)
    assert words.read({}, tmp_path) is None and words.settings({}, tmp_path) == {}


def test_a_tokenizer_larger_than_its_table_is_refused(tmp_path):
    """It was converted, and what was sampled was ''."""
    source = theirs("llama", tmp_path / "hub")
    tokenizer(60).save(str(source / "tokenizer.json"))
    said = r"tokenizer.json has 60 ids, but the table of these weights has 48 rows, so 12 words"
    with pytest.raises(UserError, match=said):
        conversion.convert(source, tmp_path / "work", said=lambda _: None)
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]
    t = tokenizer(48)
    t.add_special_tokens(["<|more|>", "<|pad|>"])  # no text has these ids
    t.save(str(source / "tokenizer.json"))
    conversion.convert(source, tmp_path / "work", said=lambda _: None)


def test_bos_that_the_tokenizer_does_not_add_is_not_added(tmp_path):
    """As SmolLM's kind, whose config.json has an id for it; and both ways out and in again."""
    source, rows = theirs("llama", tmp_path / "hub"), {}
    for name in ("none", "begins", "both"):
        tokenizer(template=TEMPLATES[name]).save(str(source / "tokenizer.json"))
        work = conversion.convert(source, tmp_path / name, said=lambda _: None)
        again = conversion.convert(work, tmp_path / f"{name}_out", said=lambda _: None)
        back = conversion.convert(again, tmp_path / f"{name}_back", said=lambda _: None)
        models = [mmjax.load(place, devices=jax.devices()[:1]) for place in (work, back)]
        v, same = (model.run.model.parts.vocabulary for model in models)
        assert v == same
        (laid,) = np.asarray(models[0].laid([["w5 w6"]]).tokens)
        rows[name] = laid[: (laid != v.pad).sum()].tolist()
    assert rows == {"none": [5, 6, 2], "begins": [1, 5, 6, 2], "both": [1, 1, 5, 6, 2]}
    assert replace(v, bos=-1, opening=(), closing=()) != v
