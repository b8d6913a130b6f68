"""Prompts of `mmjax sample`: forms of a flag and of a JSONL line, mistakes by file and line."""

import dataclasses
import importlib
import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from absl import flags
from tiny import (
    tiny,
    tiny_chameleon_config,
    tiny_config,
    tiny_dial_config,
    tiny_flamingo_config,
    tiny_llava_config,
    tiny_oneflow_config,
)
from verb_flags import taken_back

from mmjax import __main__ as door
from mmjax.batch import EOS, SEP, Image
from mmjax.config import resolve
from mmjax.data.pixels import size_of
from mmjax.error import UserError
from mmjax.kind import KindConfig
from mmjax.models import abilities_of, family
from mmjax.run import families
from mmjax.sample.request import IMAGE, TEXT, parse
from mmjax.sample_config import Choice

TEXT_ALONE = '"a"'  # a line as it stands


@pytest.fixture(scope="module")
def verb():
    """The module; its flags are taken back after, as another verb defines some of them too."""
    with taken_back():
        yield importlib.import_module("mmjax.verbs.sample")


@pytest.fixture
def lines(tmp_path):
    """Writes rows, or lines as they are, into a file of prompts."""

    def write(*rows) -> str:
        file = tmp_path / "prompts.jsonl"
        file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
        return str(file)

    return write


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "Photo.PNG"
    PIL.Image.new("RGB", (4, 4)).save(path)
    return path


def test_text_asks_for_a_picture_and_a_picture_for_text(verb, photo):
    given = ["a red apple", str(photo), "png", "3 > 2. "]
    assert verb.read_prompts(given) == [
        ["a red apple", IMAGE], [photo], ["png", IMAGE], ["3 > 2. ", IMAGE],
    ]  # fmt: skip
    assert verb.read_prompts([]) == []
    assert [parse(p).draw for p in verb.read_prompts(given)] == [True, False, True, True]


@pytest.mark.parametrize(
    "ending", [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".JPG"]
)
def test_a_picture_is_known_by_its_ending_and_must_be_there(verb, tmp_path, ending):
    path = tmp_path / f"a b{ending}"
    with pytest.raises(UserError, match=f"^--prompt=.*: picture .*a b{ending} does not exist$"):
        verb.read_prompts(["text", str(path)])
    path.touch()
    said = f"^--prompt=.*: picture .*a b{ending}: a picture of 0 bytes cannot be"
    with pytest.raises(UserError, match=said):
        verb.read_prompts([str(path)])
    PIL.Image.new("RGB", (4, 4)).save(path, "PNG")
    assert verb.read_prompts([str(path)]) == [[path]]
    assert verb.read_prompts(["a drawing of a png"]) == [["a drawing of a png", IMAGE]]


def test_an_image_that_is_not_read_is_no_text(verb, tmp_path):
    path = tmp_path / "a.heic"
    assert verb.read_prompts([str(path)]) == [[str(path), IMAGE]]  # of no file it is words
    path.write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"a\.heic: .* not a picture of a known kind .*convert it"):
        verb.read_prompts([str(path)])


def test_a_turned_photo_is_upright_by_whichever_prompt_it_is_named(verb, lines, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    turned = PIL.Image.open(tmp_path / "a.jpg")
    image = {"image": str(tmp_path / "a.jpg")}
    for prompt in (
        *verb.read_prompts([str(tmp_path / "a.jpg")]), *verb.read_jsonl(Path(lines(image))),
        [turned], [image_of(tmp_path / "a.jpg")],
    ):  # fmt: skip
        (part,) = parse(prompt).document
        assert size_of(part.data) == (8, 4)
    turned.close()


def image_of(path):
    return path.read_bytes()


def test_a_file_of_prompts_has_three_forms(verb, lines, photo):
    file = lines(
        {"text": "a red apple"},
        {"image": str(photo)},
        "",
        "   ",
        {"parts": [{"text": "before"}, {"image": str(photo)}, {"make": "image"}]},
        {"parts": [{"make": "text"}, {"image": str(photo)}]},
        {"parts": [{"text": "only text"}]},
        {"parts": []},
        {"text": "ünï\ncode"},
    )
    want = [
        ["a red apple", IMAGE],
        [photo],
        ["before", photo, IMAGE],
        [TEXT, photo],
        ["only text"],
        [],
        ["ünï\ncode", IMAGE],
    ]
    assert verb.read_jsonl(Path(file)) == want
    # Among other prompts it stands for its lines, in their place.
    assert verb.read_prompts(["first", file, "last"]) == [["first", IMAGE], *want, ["last", IMAGE]]
    # Of models that draw nothing a text alone asks for words; a picture is asked for by name.
    words = [["a red apple"], *want[1:6], ["ünï\ncode"]]
    assert verb.read_prompts(["first", file], draws=False) == [["first"], *words]


def test_a_model_that_only_writes_is_asked_for_words(verb, tmp_path, monkeypatch):
    asked = []

    class Writer:
        only_writes = True
        run = SimpleNamespace(experiment=tiny())

        def generate(self, prompts, *given, **options):
            del given, options
            asked.extend(prompts)
            return ["and so on"]

    monkeypatch.setattr(verb, "load", lambda workdir: Writer())
    flags.FLAGS(["sample", "--workdir=any", "--prompt=once", f"--out={tmp_path / 'out'}"])
    assert verb.main([]) == 0 and asked == [["once"]]
    (row,) = (tmp_path / "out" / "samples.jsonl").read_text().splitlines()
    assert json.loads(row) == {"prompt": "once", "text": "and so on"}


def test_a_line_may_name_the_kind_of_its_picture(verb, lines, photo):
    named = {"image": str(photo), "kind": "depth"}
    found = verb.read_prompts([lines(named, {"parts": [named, {"make": "image"}]})])
    given = Image(photo.read_bytes(), of="depth")
    assert found == [[given], [given, IMAGE]] != [[photo], [photo, IMAGE]]
    with pytest.raises(UserError, match=r"^picture .*/none.png does not exist$"):
        verb.read_prompts([lines({"image": "none.png", "kind": "depth"})])


def test_prompts_in_parts_ask_for_what_they_make(verb, lines, photo):
    found = verb.read_prompts([lines(
        {"parts": [{"text": "a"}, {"make": "image"}]},
        {"parts": [{"text": "a"}, {"make": "image"}, {"text": "b"}]},
        {"parts": [{"make": "text"}, {"image": str(photo)}]},
        {"parts": [{"text": "a"}]},
    )])  # fmt: skip
    assert [(r.draw, r.infill) for r in map(parse, found)] == [
        (True, False), (True, True), (False, True), (False, False),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"txt": "a"},
        {},
        {"text": "a", "image": "b.png"},
        {"text": 3},
        {"text": None},
        {"image": ["b.png"]},
        {"make": "video"},
        {"make": True},
        {"parts": "a"},
        {"parts": [{"text": "a"}, "b"]},
        {"parts": [{"parts": [{"text": "a"}]}]},
        {"parts": [{"text": "fine"}, {"make": "Image"}]},
        ["a"],
        3,
        None,
        TEXT_ALONE,
    ],
)
def test_a_line_of_no_form_is_named_by_file_and_line(verb, lines, row):
    file = lines({"text": "fine"}, "", row, {"text": "fine"})
    with pytest.raises(UserError) as error:
        verb.read_prompts([file])
    said = str(error.value)
    assert said.startswith(f'{file}:3 must be {{"text": ...}}, {{"image": "path"}} or ')
    assert "\n" not in said and len(said) < len(file) + 250
    parts = row.get("parts") if isinstance(row, dict) else None
    wrong = parts[-1] if isinstance(parts, list) else row  # of parts the one that is wrong
    assert said.endswith(f"not {wrong if row == TEXT_ALONE else json.dumps(wrong)}")


def test_a_long_wrong_line_is_cut_short(verb, lines):
    with pytest.raises(UserError) as error:
        verb.read_prompts([lines({"caption": "x" * 5000})])
    assert len(str(error.value)) < 500 and str(error.value).endswith("x" * 20)


@pytest.mark.parametrize(
    "line", ["{", '{"text": "a"} {"text": "b"}', "a red apple", "{'text': 'a'}"]
)
def test_a_line_that_is_no_json_is_named_by_file_and_line(verb, lines, line):
    file = lines({"text": "fine"}, line)
    with pytest.raises(UserError, match=r"prompts.jsonl:2 is not JSON: ") as error:
        verb.read_prompts([file])
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_are_named(verb, lines, tmp_path):
    with pytest.raises(UserError, match=r"^prompt file none.jsonl does not exist$"):
        verb.read_prompts(["none.jsonl"])
    with pytest.raises(UserError, match=r"^prompt file .* does not exist$"):
        verb.read_prompts([str(tmp_path / "folder.jsonl")])
    (tmp_path / "of.jsonl").mkdir()
    with pytest.raises(UserError, match=r"^prompt file .*of.jsonl cannot be read: Is a directory$"):
        verb.read_prompts([str(tmp_path / "of.jsonl")])
    with pytest.raises(UserError, match=r"^.*jsonl:1: picture .*/none.png does not exist$"):
        verb.read_prompts([lines({"parts": [{"text": "a"}, {"image": "none.png"}]})])
    with pytest.raises(UserError, match=r"^.*jsonl:1: picture .*/none.txt does not exist$"):
        verb.read_prompts([lines({"image": "none.txt"})])


def test_a_slot_too_many_is_named_by_file_and_line(verb, lines):
    twice = {"parts": [{"make": "image"}, {"make": "text"}]}
    with pytest.raises(UserError, match=r"^.*jsonl:2 may hold one slot, but parts 1 and 2 are"):
        verb.read_prompts([lines({"text": "a"}, twice)])


def test_only_a_line_feed_ends_a_line(verb, tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"text": "one\u2028two"}, {"text": "three\x85four"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    assert verb.read_prompts([str(path)]) == [[row["text"], IMAGE] for row in rows]
    path.write_bytes(b'{"text": "a"}\r\n{"text": "b"}')  # as Windows ends them; none at the end
    assert verb.read_prompts([str(path)]) == [["a", IMAGE], ["b", IMAGE]]


def test_a_file_of_prompts_that_is_no_text_is_one_line(verb, tmp_path):
    path = tmp_path / "photo.jsonl"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UserError, match=r"photo.jsonl") as error:
        verb.read_prompts([str(path)])
    assert "\n" not in str(error.value)


def test_one_part_is_text_a_path_or_a_slot(verb):
    at = "here", Path("home")
    assert verb.one_part({"text": ""}, *at) == ""
    assert verb.one_part({"image": "a.png"}, *at) == Path("home/a.png")
    assert verb.one_part({"image": "/a.png"}, *at) == Path("/a.png")
    assert verb.one_part({"make": "image"}, *at) is IMAGE
    assert verb.one_part({"make": "text"}, *at) is TEXT
    with pytest.raises(UserError, match=r"^here must be "):
        verb.one_part({"make": "sound"}, *at)


def test_paths_are_relative_to_the_file_of_prompts(verb, lines, photo, monkeypatch, tmp_path):
    file = lines({"image": photo.name}, {"image": photo.name, "kind": "depth"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verb.read_prompts([file]) == [[photo], [Image(photo.read_bytes(), of="depth")]]


class Fake:
    """Answers as a model would, and notes what it was asked."""

    only_writes = False

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), None
        self.run = SimpleNamespace(experiment=tiny())

    def generate(self, prompts, seed, pictures, stream, stop, **options):
        self.asked = prompts, seed, pictures, stop, options
        if stream is not None:
            stream(0, "a red")
        return self.answers


@pytest.fixture
def sample(verb, monkeypatch, capsys):
    """Runs `mmjax sample` with a model's answers -> what was asked, exit code, stdout, stderr."""

    def call(answers, *argv):
        fake = Fake(*answers)
        monkeypatch.setattr(verb, "load", lambda workdir: fake)
        flags.FLAGS.unparse_flags()
        for flag in verb.flags.FLAGS.get_key_flags_for_module(verb):
            flag.unparse()
        code = door.run_verb("sample", ["--workdir=run", *argv])
        return fake.asked, code, *capsys.readouterr()

    return call


DRAWN = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


def test_answers_are_written_and_told(sample, lines, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "made"
    PIL.Image.fromarray(DRAWN).save(photo)
    file = lines({"parts": [{"text": "a"}, {"image": str(photo)}]})
    argv = ["--prompt=a cat", f"--prompt={photo}", f"--prompt={file}"]
    argv += ["--pictures=2", "--stop=1", "--stream"]
    answers = [DRAWN, ["a ring", DRAWN, "é"], []]
    asked, code, said, told = sample(answers, *argv, f"--out={out}", "--image_repetition=1.5")
    assert code == 0
    assert asked == (
        [["a cat"], [photo], ["a", photo]], 0, 2, 1, {"image_repetition": 1.5},
    )  # fmt: skip
    assert told == "0: a red\n"
    assert said.splitlines() == [
        "a cat -> 000.png", f"{photo} -> a ring | 001_1.png | é", f"a + {photo} -> ",
    ]  # fmt: skip
    assert {p.name for p in out.iterdir()} == {
        "000.png", "001_1.png", "samples.jsonl", "sheet.png",
    }  # fmt: skip
    assert [json.loads(row) for row in (out / "samples.jsonl").read_text().splitlines()] == [
        {"prompt": "a cat", "image": "000.png"},
        {
            "prompt": str(photo),
            "parts": [{"text": "a ring"}, {"image": "001_1.png"}, {"text": "é"}],
        },
        {"prompt": ["a", str(photo)], "parts": []},
    ]
    np.testing.assert_array_equal(PIL.Image.open(out / "001_1.png"), DRAWN)


def test_a_seed_for_all_or_one_a_prompt(sample, tmp_path):
    argv = ["--prompt=a", "--prompt=b", f"--out={tmp_path / 'made'}"]
    for given, want in (([], 0), (["--seed=7"], 7), (["--seed=7", "--seed=8"], [7, 8])):
        assert sample([DRAWN, DRAWN], *argv, *given)[0][1] == want


def test_every_option_of_generate_is_a_flag(verb):
    assert family.CHOICE == tuple(f.name for f in fields(Choice))
    wanted = {"text"}
    made = tiny_config, tiny_chameleon_config, tiny_oneflow_config, tiny_dial_config
    for config in (*made, tiny_llava_config, tiny_flamingo_config):
        e = resolve(config(), families())
        wanted |= set(abilities_of(e.family, e.model).options)
    known = {f.name for f in flags.FLAGS.get_key_flags_for_module(verb)}
    assert wanted <= known and set(verb.SCALES) <= wanted


def test_a_place_that_cannot_be_written_is_one_line(sample, tmp_path):
    (tmp_path / "file").touch()
    argv = ["--prompt=a", f"--out={tmp_path / 'file' / 'made'}"]
    _, code, said, told = sample([DRAWN], *argv)
    assert (code, said) == (2, "")
    assert told.startswith("mmjax sample: cannot write --out=") and told.count("\n") == 1
    assert "Not a directory; name another directory" in told


def test_a_file_without_a_prompt_is_refused(verb, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text("\n\n")
    with pytest.raises(UserError, match=r"^prompt file .*none.jsonl holds no prompt$"):
        verb.read_prompts([str(path)])


def test_a_prompts_picture_is_shown_as_the_model_reads_it(verb, tmp_path, monkeypatch):
    """In the shape of its kind, whether that follows from its aspect or is said."""
    wide = tmp_path / "wide.png"
    PIL.Image.new("RGB", (40, 20), "red").save(wide)
    kinds = {"wide": KindConfig(8, 16, 4), "depth": KindConfig(4, 4, 4, "", ("openmoji",))}
    data = dataclasses.replace(tiny().data, kinds=kinds)
    shown = []
    monkeypatch.setattr(verb, "sheet", lambda cells, *_: shown.extend(c.pictures for c in cells))
    monkeypatch.setattr(verb, "OUT", SimpleNamespace(value=str(tmp_path / "out")))
    prompts = [[wide], [Image(wide.read_bytes(), of="depth"), "a", TEXT], ["a"]]
    verb.write(prompts, ["b"] * 3, data)
    assert [[p.shape for p in pictures] for pictures in shown] == [[(8, 16, 3)], [(4, 4, 3)], []]
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert rows[1] == {"prompt": ["depth picture", "a"], "text": "b"}


def test_conversations_of_flags_and_files(verb, photo, lines):
    """What flags give is one question; rows of files are conversations, or one question each."""
    one = [{"role": "user", "content": [photo, "which colour?"]}]
    assert verb.read_chats([str(photo), "which colour?"]) == [one]
    told = [
        {"role": "user", "content": [{"image": photo.name}, {"text": "a"}]},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "<sep>"},
    ]
    rows = {"messages": told}, {"parts": [{"text": "a"}, {"image": photo.name}]}, {"text": "c"}
    found = verb.read_chats([lines(*rows), "d"])
    assert found == [
        [
            {"role": "user", "content": [photo, "a"]}, {"role": "assistant", "content": ["b"]},
            {"role": "user", "content": ["<sep>"]},
        ],
        [{"role": "user", "content": ["a", photo]}],
        [{"role": "user", "content": ["c"]}],
        [{"role": "user", "content": ["d"]}],
    ]  # fmt: skip
    assert verb.spoken(found[0]) == [photo, "a", "b", "<sep>"]
    assert verb.prompt_files([lines(*rows)])[1:] == [photo, photo]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "conversation 1: a conversation is a list of turns"),
        ({"messages": "a"}, "jsonl:1: messages must be a list"),
        ({"messages": [{"role": "user"}]}, "conversation 1: turn 1 must be"),
        ({"messages": [{"role": "user", "content": 5}]}, "conversation 1: turn 1: a prompt holds"),
        ({"messages": [{"role": "user", "content": [5]}]}, "jsonl:1 must be"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "the last is the user's"),
        ({"parts": 5}, "jsonl:1: parts must be a list"),
        ({"what": "a"}, "jsonl:1 must be"),
    ],
)
def test_conversations_that_are_none_are_refused_by_their_place(verb, lines, row, said):
    with pytest.raises(UserError, match=said):
        verb.read_chats([lines(row)])


def test_sentinels_in_files_are_values_and_text_is_text(verb, lines):
    rows = [{"text": "<sep>"}, {"sentinel": "sep"}, {"text": "a"}, {"sentinel": "eos"}]
    (prompt,) = verb.read_prompts([lines({"parts": rows})])
    assert prompt == ["<sep>", SEP, "a", EOS] and [str(p) for p in prompt[1::2]] == [
        "mmjax.SEP", "mmjax.EOS",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r'jsonl:1 must be .*"sentinel": "eos"'):
        verb.read_prompts([lines({"parts": [{"sentinel": "bos"}]})])
