"""Conversations are asked as a model was trained: by its data's template or its tokenizer's."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from tiny import tiny_config, tiny_llava_config
from tokenizers import AddedToken, Tokenizer

import mmjax
from mmjax import config
from mmjax import run as runs
from mmjax.batch import EOS, SEP, Image, Text, Vocabulary
from mmjax.convert import words
from mmjax.data import tokenizer as bpe
from mmjax.data.record import Record
from mmjax.data.transform import conversation
from mmjax.error import UserError
from mmjax.run import GIVEN
from mmjax.sample import chat, request
from mmjax.sample.rendered import Message, Template, end_of, write

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "hf_words.json").read_text())
PHOTO = PIL.Image.new("RGB", (8, 8), "red")


def beside(place: Path, about: dict, template: str = "") -> Path:
    """A workdir of imported weights as far as its texts go."""
    place.mkdir(exist_ok=True)
    (place / "tokenizer.json").write_text(about["tokenizer"])
    told = about["config"] | ({"chat_template": template} if template else {})
    (place / words.CONFIG).write_text(json.dumps(told))
    image = Tokenizer.from_str(about["tokenizer"]).token_to_id("<image>")
    (place / GIVEN).write_text(json.dumps({"image_token_index": image}))
    return place


def opened(place: Path, family: str = "language") -> SimpleNamespace:
    """A run as far as its texts go."""
    tokenizer = bpe.load(place / "tokenizer.json")
    raw = Tokenizer.from_file(str(place / "tokenizer.json"))
    none = dict.fromkeys(("boi", "eoi", "sep", "eoss"), -1)
    bos, eos = (raw.token_to_id(name) for name in ("<s>", "</s>"))
    v = Vocabulary(raw.get_vocab_size(), pad=0, bos=bos, eos=eos, **none)
    files = {p.name: p.read_bytes() for p in place.iterdir()}
    v = words.processed(v, files, place)
    data = SimpleNamespace(sources={"own": SimpleNamespace(template="")})
    e = SimpleNamespace(family=family, data=data)
    parts = SimpleNamespace(vocabulary=v)
    return SimpleNamespace(experiment=e, model=SimpleNamespace(parts=parts), tokenizer=tokenizer)


def ids_of(run, document, begin=True) -> list[int]:
    """What is fed to the model, with the image's id where a picture stands."""
    v, t = run.model.parts.vocabulary, run.tokenizer
    (laid,) = bpe.lay_out_all([document], t, v, 1, False, end=False, begin=begin)
    image = t.token_to_id("<image>") or -1
    return np.where(laid["image"] > 0, image, laid["tokens"]).tolist()


@pytest.mark.parametrize("kind", GOLDEN["kinds"])
def test_prompts_and_conversations_have_the_ids_of_transformers(kind, tmp_path):
    """Of every kind of tokenizer: what stands around texts and behind pictures, and templates."""
    about = GOLDEN["kinds"][kind]
    run = opened(beside(tmp_path, about))
    for prompt in about["prompts"]:
        document = [Image(b"") if part is None else Text(part) for part in prompt["parts"]]
        assert ids_of(run, document) == prompt["ids"], prompt
    for told in about["chats"]:
        beside(tmp_path, about, GOLDEN["templates"][told["template"]])
        turns = [
            {"role": role, "content": [PHOTO if p is None else p for p in parts]}
            for role, parts in told["said"]
        ]
        asked = chat.ask(run, tmp_path, turns)
        assert ids_of(run, asked.document, asked.begin) == told["ids"], told


def test_golden_kinds_differ():
    """The comparison above can fail: what stands around texts, and behind pictures, differs."""
    kinds = GOLDEN["kinds"]
    first = [kinds[f"in_one_piece_{a}"]["prompts"][1]["ids"] for a in ("none", "begins", "both")]
    assert first[1] == [1, *first[0]] and first[2] == [1, *first[0], 2]
    behind, spaced = (kinds["in_one_piece_none"]["prompts"][n]["ids"] for n in (1, 2))
    assert behind != spaced and kinds["prefixed_none"]["prompts"][1]["ids"] != behind


def small(template: str, **names) -> Template:
    """A template over three tokens; what stands behind <|user|> loses white space."""
    tokens = {
        5: AddedToken("<|user|>", rstrip=True),
        6: AddedToken("<|end|>"),
        7: AddedToken("<im>"),
    }
    return Template(template, "chat_template.jinja", names, tokens, "<im>", begins=False)


EACH = "{% for m in messages %}<|user|>\n{{ m['content'] | trim }}<|end|>{% endfor %}"


def asked(*texts) -> list[Message]:
    return [Message("user", [Text(text) for text in texts])]


def said(written) -> list:
    return [part.text if isinstance(part, Text) else part.id for part in written.document]


@pytest.mark.parametrize(
    "text",
    ["<|end|>", "a <im> b", "<|user|>", "\ue0000\ue001", "\ue000", "<|end|><|end|>", "x{{ 1 }}"],
)
def test_what_a_user_says_is_no_token_of_the_template(text):
    assert said(write(small(EACH), asked(f"  {text} "))) == [5, text, 6]


def test_templates_that_are_none_or_refuse_are_named():
    for source, words_ in (
        ("{% for %}", "is no chat_template"),
        ("{{ raise_exception('no system') }}", "refuses this conversation: no system"),
        ("{{ messages.nothing.more }}", "refuses this conversation"),
        ("{{ messages[7].content }}", "refuses this conversation"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation"),
        ("{{ 1 + 'a' }}", "refuses this conversation"),
    ):
        with pytest.raises(UserError, match=f"^chat_template.jinja {words_}") as error:
            write(small(source), asked("a"))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="writes 0 of <im> for 1 pictures; ask with `generate`"):
        write(small(EACH), [Message("user", [Image(b""), Text("a")])])


def test_words_alone_go_to_templates_of_strings_and_of_lists_of_parts():
    parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert said(write(small(parts), asked("a", "b"))) == ["ab"]
    assert said(write(small(EACH), asked("a", "b"))) == [5, "ab", 6]
    quiet = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    messages = [Message("system", [Text("s")]), *asked("a")]
    assert said(write(small(quiet), messages)) == ["a"]  # it leaves the system's out


def test_what_ends_an_answer_is_what_the_template_writes_behind_it():
    assert end_of(small(EACH), asked("a")) == (6,)
    assert end_of(small("{{ messages[-1].content }}"), asked("a")) == ()
    alone = "{% if messages[1:] %}{{ raise_exception('one') }}{% endif %}"
    assert end_of(small(alone), asked("a")) == ()


def run_of(*templates: str, family: str = "llava"):
    """A run trained on conversations by these templates, as far as its texts go."""
    c = (tiny_llava_config if family == "llava" else tiny_config)()
    source = c.data.sources.openmoji.to_dict()
    c.data.sources = {f"s{n}": source | {"template": t} for n, t in enumerate(templates)}
    t = bpe.train(["USER: ASSISTANT: red blue what is it?"] * 3, 320)
    parts = SimpleNamespace(vocabulary=bpe.vocabulary(t))
    e = config.resolve(c, runs.families())
    return SimpleNamespace(experiment=e, tokenizer=t, model=SimpleNamespace(parts=parts))


@pytest.mark.parametrize("template", ["sep", "sep_one", "vicuna"])
def test_ids_asked_are_ids_trained(template):
    """Up to each answer, as the record of the whole conversation has them in training."""
    run, own = run_of(template), {"sep_one": "sep"}.get(template, template)
    photo = Image(b"x")
    turns = [[photo, "what is it?"], "red", ["and", "this?"], "blue", "what?"]
    parts = [photo, *map(Text, ("what is it?", "red", "and", "this?", "blue", "what?", "it"))]
    roles = ["human", "human", "gpt", "human", "human", "gpt", "human", "gpt"]
    document = conversation(Record("1", tuple(parts), {"roles": roles}), own)
    v = run.model.parts.vocabulary
    trained = bpe.lay_out(document, run.tokenizer, v, 4, False)
    for count, answer in ((1, 2), (3, 5), (5, 7)):
        found = chat.ask(run, None, turns[:count])
        laid = bpe.lay_out(found.document, run.tokenizer, v, 4, False, end=False)
        n = len(laid["tokens"])
        for name in ("tokens", "modality", "image", "position"):
            np.testing.assert_array_equal(laid[name], trained[name][:n], err_msg=name)
        assert (trained["weight"][n], trained["weight"][n - 1]) == (1, 0)
        assert bpe.encode(run.tokenizer, parts[answer].text)[0] == trained["tokens"][n]
        assert found.answer == (own == "sep") and found.document[-1] == (
            SEP if own == "sep" else Text("ASSISTANT:")
        )


def test_a_question_is_what_generate_is_asked_with_a_separator():
    run = run_of("sep")
    assert chat.ask(run, None, [["what?", PHOTO]]) == request.parse(["what?", PHOTO, mmjax.SEP])
    drawn = chat.ask(run, None, [["what?", mmjax.IMAGE]])
    assert drawn == request.parse(["what?", mmjax.SEP, mmjax.IMAGE]) and drawn.draw
    assert EOS in chat.ask(run_of("vicuna"), None, ["a", "b", "c"]).document


def test_turns_in_every_spelling():
    for turns in ("a", ["a"], [["a"]], [{"role": "user", "content": "a"}], Text("a")):
        assert chat.read(turns) == ([Message("user", [Text("a")])], False)
    messages, draw = chat.read([["a", PHOTO], "b", ["c", mmjax.IMAGE]])
    assert [m.role for m in messages] == ["user", "assistant", "user"] and draw
    assert [len(m.parts) for m in messages] == [2, 1, 1]
    told = [{"role": "system", "content": ["s"]}, {"role": "user", "content": [PHOTO]}]
    assert [m.role for m in chat.read(told)[0]] == ["system", "user"]


@pytest.mark.parametrize(
    ("turns", "words_"),
    [
        ([], "a conversation is a list of turns"),
        (5, "a conversation is a list of turns, the user's first, not 5"),
        (["a", "b"], "the last is the user's"),
        ([PHOTO, "what?"], "of one turn with several parts, give a list in a list"),
        ([{"role": "assistant", "content": "a"}], "turns are those of assistant"),
        ([{"role": "user", "content": "a"}] * 2, "take turns"),
        ([{"role": "bot", "content": "a"}], "turn 1 must be {'role': one of system, user"),
        ([{"role": "user"}], "turn 1 must be"),
        ([{"role": "user", "content": "a"}, "b"], "all {'role', 'content'}, or none"),
        ([[mmjax.SEP]], "turn 1 holds .*sep.*, but turns hold text and pictures"),
        ([["a", mmjax.IMAGE, "b"]], "turn 1 holds mmjax.IMAGE"),
        ([[5]], "turn 1: a prompt holds text, pictures and a slot, not int"),
        ([5], "turn 1: a prompt holds"),
        ([[]], "turn 1 is empty"),
        ([[Path("nowhere.png")]], "turn 1: .*nowhere.png does not exist"),
    ],
)
def test_what_is_no_conversation_is_refused_in_one_line(turns, words_):
    with pytest.raises(UserError, match=f"^a conversation: .*{words_}") as error:
        chat.ask(run_of("sep"), None, turns)
    assert "\n" not in str(error.value)


def test_models_that_were_trained_on_no_conversation_are_refused_by_name(tmp_path):
    for templates in (("",), ("caption",), ("reconstruct",)):
        with pytest.raises(UserError, match=f"{tmp_path} was trained on no conversations"):
            chat.ask(run_of(*templates), tmp_path, "a")
    with pytest.raises(UserError, match="conversations of two templates, sep and vicuna"):
        chat.ask(run_of("sep", "vicuna"), tmp_path, "a")
    assert chat.template_of(run_of("sep_draw", "", "sep"), tmp_path) == "sep"


def test_where_an_imported_models_template_lies(tmp_path):
    """A file of its own first; of several in one the default; Chameleon's is its separator."""
    about = GOLDEN["kinds"]["prefixed_none"]
    run = opened(beside(tmp_path, about))
    with pytest.raises(UserError, match="has no chat_template beside its tokenizer"):
        chat.template_of(run, tmp_path)
    run.model.parts.vocabulary = replace(run.model.parts.vocabulary, sep=7)
    assert chat.template_of(run, tmp_path) == "sep"
    beside(tmp_path, about, "from config")
    assert chat.template_of(run, tmp_path).source == "from config"
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": several}))
    assert chat.template_of(run, tmp_path).source == "d"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": several[:1]}))
    with pytest.raises(UserError, match="has chat_templates tool_use and none by default"):
        chat.template_of(run, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert chat.template_of(run, tmp_path).source == "from jinja"
    with pytest.raises(UserError, match=r"asks for words, not for a picture"):
        chat.ask(run, tmp_path, [["a", mmjax.IMAGE]])


def test_a_processors_template_is_begun_with_bos_unless_it_writes_one(tmp_path):
    """As `transformers` has it: of pictures with the tokenizer's own BOS, of words without."""
    about = GOLDEN["kinds"]["prefixed_begins"]
    for template, family, begin in (
        ("{{ messages[0].content }}", "language", False),
        ("{{ messages[0].content }}", "llava", True),
        ("{{ bos_token + messages[0].content }}", "llava", False),
    ):
        run = opened(beside(tmp_path, about, template), family)
        found = chat.ask(run, tmp_path, "a red")
        assert found.begin is begin
        ids = ids_of(run, found.document, found.begin)
        assert (ids[0] == 1) == (family == "llava") and ids.count(1) <= 1


@pytest.mark.parametrize("template", ["sep", "vicuna"])
def test_what_was_trained_here_is_asked_the_same_when_it_went_out(template, tmp_path):
    """Its tokenizer's files for `transformers` say how, and where a text begins."""
    run = run_of(template)
    v = run.model.parts.vocabulary
    for name, content in words.sent(run.tokenizer, v, template).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / GIVEN).write_text(json.dumps({"image_token_index": v.size - 1}))
    out = run_of("")
    files = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert words.processed(replace(v, bos=-1), files, tmp_path) == v
    tokenizer = bpe.load(tmp_path / "tokenizer.json")
    assert bpe.vocabulary(tokenizer) == v
    for turns in (
        "what is it?", [[PHOTO, "what?"]], ["a ", " b", "<sep>"], [["red", PHOTO, "what\n", "it"]],
        [{"role": "system", "content": "be red"}, {"role": "user", "content": ["a", PHOTO]}],
        [[PHOTO], "red blue", ["it", PHOTO]],
    ):  # fmt: skip
        laid = []
        for where, t in ((run, run.tokenizer), (out, tokenizer)):
            asked = chat.ask(where, tmp_path, turns)
            how = v, 4, False, False, 1, [asked.begin]
            (one,) = bpe.lay_out_all([asked.document], t, *how)
            laid.append([one[name].tolist() for name in ("tokens", "image", "position")])
        assert laid[0] == laid[1], turns
    assert chat.ask(out, tmp_path, "a").stops == (v.sep if template == "sep" else v.eos,)


def test_a_template_goes_out_with_tokenizers_of_ours_alone():
    """Others begin texts otherwise than after a space, and would have other ids."""
    about = GOLDEN["kinds"]["prefixed_begins"]
    t = bpe.with_sentinels(Tokenizer.from_str(about["tokenizer"]))
    told = {n: json.loads(x) for n, x in words.sent(t, bpe.vocabulary(t), "vicuna").items()}
    assert "chat_template" not in told[words.CONFIG]
    assert told["tokenizer.json"]["post_processor"] == json.loads(t.to_str())["post_processor"]
    run = run_of("sep")
    found = words.sent(run.tokenizer, run.model.parts.vocabulary, "")
    assert "chat_template" not in json.loads(found[words.CONFIG])
