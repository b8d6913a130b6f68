"""Tokenizers beside weights of others: how their texts begin and end, and tables too small."""

import json
from dataclasses import replace

import jax
import pytest
from test_conversion import theirs
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from verb_flags import taken_back

import mmjax
from mmjax import conversion
from mmjax.__main__ import run_verb
from mmjax.batch import Image, Text, Vocabulary
from mmjax.convert import words
from mmjax.data.tokenizer import lay_out, lay_out_all
from mmjax.error import UserError
from mmjax.run import read_vocabulary
from mmjax.sample import chat, talk

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
    """As SmolLM's kind, whose config.json has an id for it; and after the way out and in again."""
    source, rows = theirs("llama", tmp_path / "hub"), {}
    for name in ("none", "begins", "both"):
        t = tokenizer(template=TEMPLATES[name])
        t.save(str(source / "tokenizer.json"))
        work = conversion.convert(source, tmp_path / name, said=lambda _: None)
        v = read_vocabulary(work, 0)
        rows[name] = lay_out([Text("w5 w6")], t, v, 1, False, end=False)["tokens"].tolist()
    assert rows == {"none": [5, 6], "begins": [1, 5, 6], "both": [1, 1, 5, 6, 2]}
    out = conversion.convert(work, tmp_path / "out", said=lambda _: None)
    back = conversion.convert(out, tmp_path / "back", said=lambda _: None)
    assert read_vocabulary(back, 0) == v and v.opening == (1,) and v.closing == (2,)


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'w3 ' if m.role == 'user' else 'w4 ' }}"
    "{{ m.content }}</s>{% endfor %}{{ ' w4' if add_generation_prompt }}"
)


def test_an_imported_model_is_asked_by_its_tokenizers_template(tmp_path, capfd):
    """`chat` and `mmjax sample --chat`; the template goes in with the weights, and out again."""
    source = theirs("llama", tmp_path / "hub")
    tokenizer(template=TEMPLATES["begins"]).save(str(source / "tokenizer.json"))
    told = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (source / words.CONFIG).write_text(json.dumps(told))
    (source / chat.JINJA).write_text(TEMPLATE)
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    out = conversion.convert(work, tmp_path / "out", said=lambda _: None)
    for name in (words.CONFIG, chat.JINJA):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    model = mmjax.load(work, devices=jax.devices()[:1])
    asked = chat.ask(model.run, work, ["w5 </s>", "w6", "w7"])
    rows = talk.rows_of([asked], model.run.experiment.data, model.run)
    ids = rows.tokens[0][rows.segment[0] > 0].tolist()
    assert ids == [1, 3, 5, 0, 2, 4, 6, 2, 3, 7, 2, 4]  # the user's </s> is a word that is unknown
    assert asked.stops == (2,)
    told = model.chat(["w5 </s>", "w6", "w7"], text=6)
    assert [told] == model.generate([asked], text=6) and told
    last = told.split()[-1]  # as if the template wrote that behind answers
    ended = replace(asked, stops=(model.run.tokenizer.token_to_id(last),))
    assert model.generate([ended], text=6) == [told[: f"{told} ".index(f"{last} ")].strip()]
    with taken_back():
        how = [f"--workdir={work}", "--chat", "--prompt=w5", "--text=6", f"--out={tmp_path / 'x'}"]
        assert run_verb("sample", how) == 0
    (row,) = map(json.loads, (tmp_path / "x" / "samples.jsonl").read_text().splitlines())
    assert row == {"prompt": "w5", "text": model.chat("w5", text=6)}
    (work / chat.JINJA).unlink()
    (work / words.CONFIG).unlink()
    with taken_back():
        assert run_verb("sample", how) == 2
    assert (
        "has no chat_template beside its tokenizer; ask with `generate`" in capfd.readouterr().err
    )
