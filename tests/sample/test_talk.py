"""Talking to a loaded Chameleon: what is asked and answered, streaming, infilling, mistakes."""

import dataclasses
import io
import itertools
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from tiny import tiny_chameleon_config, tiny_codec_config

import mmjax
from mmjax import config, run
from mmjax.batch import Image, Sentinel, Text
from mmjax.coding import tokenize
from mmjax.data import build, pipeline, source, spans
from mmjax.data import tokenizer as bpe
from mmjax.data.record import Record
from mmjax.data.resize import RESIZE
from mmjax.data.transform import conversation
from mmjax.error import UserError
from mmjax.run import prepare
from mmjax.sample import prompt, request, sizes, talk
from mmjax.train import train
from mmjax.trained import Trained

ONE = jax.devices()[:1]
WARM = {"temperature": 1.0, "image_temperature": 1.0, "guidance": 1.0, "text": 6}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """A Chameleon of two steps on coded scenes."""
    home = tmp_path_factory.mktemp("talk")
    build.build("scenes", home / "scenes", options={"count": 80, "size": 16, "level": 2})
    train(resolved(tiny_codec_config(home / "scenes")), home / "codec", ONE)
    changes = {"data__coded": True, "start": {"codec": str(home / "codec")}}
    small = {"steps": 2, "save_every": 2, "data__length": 64}
    e = resolved(tiny_chameleon_config(home / "scenes", **small | changes))
    tokenize(e.data, mmjax.load(home / "codec", devices=ONE))
    train(e, home / "chameleon", ONE)
    return home / "chameleon"


def resolved(c):
    return config.resolve(c, run.families())


@pytest.fixture(scope="module")
def model(workdir):
    return mmjax.load(workdir, devices=ONE)


@pytest.fixture(scope="module")
def photo(workdir) -> Path:
    """A picture of the set."""
    path = workdir.parent / "photo.png"
    path.write_bytes(pipeline.open_split(workdir.parent / "scenes", "train")[0].images[0])
    return path


def same(a, b) -> bool:
    """Whether two results are equal, parts and all."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and np.array_equal(a, b)


def is_picture(x) -> bool:
    return isinstance(x, np.ndarray) and (x.dtype, x.shape) == (np.uint8, (8, 8, 3))


@pytest.fixture(scope="module")
def prompts(photo):
    return [["a red circle", mmjax.IMAGE], [photo], ["a blue star"], [photo, "and", mmjax.IMAGE]]


@pytest.fixture(scope="module")
def first(model, prompts):
    return model.generate(prompts, [3, 4, 5, 6], **WARM)


def test_a_prompt_that_asks_for_a_picture_gets_one_and_others_get_text(first):
    assert [is_picture(x) for x in first] == [True, False, False, True]
    assert all(isinstance(x, str) for x in first[1:3]) and any(first[1:3])
    assert first[0].std() > 1 and not same(first[0], first[3])


def test_a_path_and_its_bytes_ask_for_the_same(model, prompts, photo, first):
    given = [
        [Text("a red circle"), mmjax.IMAGE],
        photo.read_bytes(),
        "a blue star",
        [Image(photo.read_bytes()), Text("and"), mmjax.IMAGE],
    ]
    assert same(model.generate(given, [3, 4, 5, 6], **WARM), first)
    slots = [prompts[0], [photo, mmjax.TEXT], ["a blue star", mmjax.TEXT], prompts[3]]
    assert same(model.generate(slots, [3, 4, 5, 6], **WARM), first)


def test_what_was_drawn_can_be_given_back(model, prompts, first):
    """As pixels, as a PIL.Image and as a file's bytes it is the same picture."""
    drawn, file = PIL.Image.fromarray(first[0]), io.BytesIO()
    drawn.save(file, "PNG")
    given = [[first[0]], [drawn], [file.getvalue()], prompts[1]]
    found = model.generate(given, [4] * 4, **WARM)
    assert found[0] == found[1] == found[2] and found[3] == first[1]
    vectors = model.embed(given)
    assert (vectors[:3] == vectors[0]).all() and (vectors[3] != vectors[0]).any()


def test_the_same_seed_gives_the_same_result(model, prompts, first):
    assert same(model.generate(prompts, [3, 4, 5, 6], **WARM), first)
    other = model.generate(prompts, [13, 14, 15, 16], **WARM)
    assert not any(same(a, b) for a, b in zip(first, other, strict=True))
    one, again, third = (model.generate(prompts, seed, **WARM) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, third)
    both = model.generate([prompts[3]] * 4, 1, **WARM)  # a seed for all: each draws its own
    assert not any(same(a, b) for a, b in itertools.combinations(both, 2))
    alike = model.generate([prompts[3]] * 4, [1, 1, 1, 2], **WARM)
    assert same(alike[0], alike[2]) and not same(alike[0], alike[3])


def test_a_result_does_not_depend_on_the_prompts_beside_it(model, prompts, first):
    turned = [2, 0, 3, 1]
    other = model.generate([prompts[i] for i in turned], [(3, 4, 5, 6)[i] for i in turned], **WARM)
    assert same(other, [first[i] for i in turned])
    beside = [prompts[2], prompts[0], prompts[3], ["two shapes"]]
    assert same(model.generate(beside, [9, 3, 9, 9], **WARM)[1], first[0])
    assert not same(model.generate(beside, [9, 4, 9, 9], **WARM)[1], first[0])


def test_a_result_depends_on_no_padding_slots_or_size_of_the_batch(model, prompts, photo, first):
    """Alone, and beside a prompt of two pictures that makes all rows longer."""
    longer = [photo, "and", photo, "and"]
    assert same(model.generate([prompts[3]], 6, **WARM)[0], first[3])
    assert same(model.generate([longer, prompts[3]], [1, 6], **WARM)[1], first[3])
    assert same(model.generate([prompts[1], longer], [4, 1], **WARM)[0], first[1])
    assert not same(model.generate([longer, prompts[3]], [1, 7], **WARM)[1], first[3])


def test_rows_over_four_devices_are_what_one_device_makes(workdir, prompts, first):
    wide = mmjax.load(workdir, devices=jax.devices()[:4])
    assert wide.run.rules.split("batch") == 4
    assert same(wide.generate(prompts, [3, 4, 5, 6], **WARM), first)


@pytest.fixture(scope="module")
def eager(model, photo):
    """The same weights, but BOI likelier than any word: pictures do begin."""
    v = model.run.model.parts.vocabulary
    outputs = model.embed([["a red circle"], [photo], ["a blue star"]]).mean(0)
    drawn = model.params["head"]["w"].at[:, v.boi].set(5.0 * outputs)
    return Trained(model.run, model.params | {"head": {"w": drawn}}, model.step)


def test_free_answers_are_lists_of_text_and_pictures(model, eager, prompts):
    asked = [prompts[1], prompts[2], prompts[0]]
    seen = set()
    for who in (model, eager):
        for seed in range(3):
            *free, drawn = who.generate(asked, seed, pictures=2, **WARM)
            assert is_picture(drawn)  # IMAGE still asks for one picture
            for parts in free:
                assert isinstance(parts, list)
                assert all(is_picture(p) or (isinstance(p, str) and p) for p in parts)
                texts = [isinstance(p, str) for p in parts]
                assert not any(a and b for a, b in itertools.pairwise(texts))
                seen.add(len(parts) - sum(texts))
    assert seen >= {0, 2} and max(seen) == 2


def test_an_answer_may_end_with_its_first_picture(eager, prompts):
    """Words that followed it are the only difference."""
    asked, drew = [prompts[1], prompts[2]], 0
    for seed in range(3):
        free = eager.generate(asked, seed, pictures=1, **WARM)
        ended = eager.generate(asked, seed, pictures=1, stop=1, **WARM)
        for parts, short in zip(free, ended, strict=True):
            at = next((i for i, part in enumerate(parts) if is_picture(part)), len(parts))
            assert same(short, parts[: at + 1])
            drew += at < len(parts) - 1
    assert drew


def test_streamed_text_ends_as_the_result(model, prompts, first, monkeypatch):
    monkeypatch.setattr(talk, "STREAMED", 3)
    heard: dict[int, list[str]] = {}
    stream = lambda number, text: heard.setdefault(number, []).append(text)  # noqa: E731
    found = model.generate(prompts, [3, 4, 5, 6], stream=stream, **WARM)
    assert same(found, first)
    assert set(heard) == {0, 1, 2, 3}
    for number, result in enumerate(found):
        assert heard[number][-1] == ("[picture]" if is_picture(result) else result)
        assert all(a != b for a, b in itertools.pairwise(heard[number]))
    assert min(len(heard[number]) for number in (1, 2)) > 1  # some of it before the end
    assert heard[0][0] == ""  # a picture that is not whole is not told


def test_streamed_free_answers_show_where_pictures_are(eager, prompts):
    heard: dict[int, list[str]] = {}
    stream = lambda number, text: heard.setdefault(number, []).append(text)  # noqa: E731
    asked = [prompts[1], prompts[2], prompts[0]]
    found = eager.generate(asked, 0, pictures=2, stream=stream, **WARM)
    assert same(found, eager.generate(asked, 0, pictures=2, **WARM))
    for number, parts in enumerate(found[:2]):
        shown = " ".join("[picture]" if is_picture(p) else p for p in parts)
        assert heard[number][-1] == shown
    assert any("[picture]" in heard[number][-1] for number in (0, 1))


def test_numbers_of_streamed_prompts_count_on_over_batches(model, prompts, monkeypatch):
    monkeypatch.setattr(talk, "ROWS", 4)
    heard: dict[int, str] = {}
    seeds = [3, 4, 5, 6, 13, 14, 15, 16]
    found = model.generate(prompts * 2, seeds, stream=heard.__setitem__, **WARM)
    assert set(heard) == set(range(8))
    for number in (1, 2, 5, 6):
        assert heard[number] == found[number]
    assert found[1:3] != found[5:7]
    # A mistake is named by its number among all, and before any prompt is answered.
    heard.clear()
    with pytest.raises(UserError, match=r"^prompt 6 takes"):
        model.generate([*prompts, *prompts[:1], ["red " * 400]], stream=heard.__setitem__, **WARM)
    assert not heard


@pytest.fixture(scope="module")
def words(model):
    """Ids of two words, and their texts."""
    known = model.run.tokenizer
    return [(bpe.encode(known, text), text) for text in ("red", "a star")]


def test_split_tells_words_from_pictures(model, words):
    v, size, known = model.run.model.parts.vocabulary, 4, model.run.tokenizer
    (red, _), (star, _) = words
    codes = [v.codes + c for c in (3, 0, 2, 1)]
    picture = [v.boi, *codes, v.eoi]

    def split(*ids):
        found = talk.split(np.array(ids, np.int32), v, size, known)
        return [p if isinstance(p, str) else p.tolist() for p in found]

    code = [3, 0, 2, 1]
    assert split(*red) == ["red"]
    assert split(*red, v.eos) == split(*red, v.eos, v.pad, v.pad) == ["red"]
    assert split(*codes, v.eoi) == [code]  # BOI stood in the prompt
    assert split(*red, *picture, *star, v.eos) == ["red", code, "a star"]
    assert split(*picture, *picture) == [code, code]
    assert split(*codes, *codes) == [code, code]
    assert split(*red, v.boi, *codes[:3]) == ["red"]  # cut short while it is drawn
    assert split(*codes[:3]) == []
    assert split(*red, v.eoss) == split(*red, v.sep) == ["red"]
    assert split(v.eos) == split() == split(v.pad, v.pad) == []
    assert split(*red, *star) == ["red a star"]
    assert split(*red, v.masks[0], *star) == ["red", "a star"]
    last = v.codes + v.code_count - 1
    assert split(last, last, last, last) == [[v.code_count - 1] * 4]
    v = replace(v, codes=0, code_count=0)  # pictures that are denoised have numbers
    turns = [v.pad] * 5
    assert split(*red, v.boi, *turns, v.eoi, *star, v.boi, *turns, v.eoi) == ["red", 0, "a star", 1]
    assert split(*turns, v.eoi) == [0] and split(*red, v.boi, *turns) == ["red"]


def test_a_row_is_planned_by_what_is_asked(model, photo):
    parts = [["a", mmjax.IMAGE], ["a"], ["a", mmjax.SEP], [mmjax.TEXT, photo], [mmjax.IMAGE, photo]]
    asked = [request.parse(p) for p in parts]
    v = model.run.model.parts.vocabulary
    rows = talk.rows_of(asked, replace(model.run.experiment.data, spans=1.0), model.run)
    plan = talk.plan(asked, rows, talk.Wish(10, 2), 64, 16, model.run.model.parts)
    taken = np.asarray(rows.segment).sum(1)
    assert plan.left.tolist() == [17, 0, 0, 0, 17]
    assert plan.pictures.tolist() == [0, 2, 2, 2, 0]
    assert plan.until.tolist() == [1, 0, 0, 0, 1]
    stops = talk.plan(asked, rows, talk.Wish(10, 2, 2), 64, 16, model.run.model.parts)
    assert stops.until.tolist() == [1, 2, 2, 2, 1]
    assert plan.limit.tolist() == [17, 46, 46, min(46, 65 - taken[3]), 17]
    # No row grows beyond its length, whatever is asked.
    length = model.run.experiment.data.length
    vast = talk.Wish(100_000, 50)
    plan_ = talk.plan(asked, rows, vast, length, 16, model.run.model.parts)
    assert (plan_.words <= length).all() and (plan_.limit <= length).all()
    for wish, most in ((vast, length + 1), (talk.Wish(10, 0), taken.max() + 10 + 18)):
        room = talk.room(asked, rows, wish, length, model.run.model.parts)[0]
        total = rows.tokens.shape[1] + room
        assert min(most, length + 1) <= total == sizes.length_of(min(most, length + 1), length + 1)
    end = [v.eos, v.eos]
    assert plan.ends.tolist() == [end, end, [v.eos, v.sep], [v.eoss, v.eos], [v.eoss, v.eos]]


@pytest.fixture(scope="module")
def filler(model):
    """The same weights as a model of CM3's objective."""
    e = model.run.experiment
    other = dataclasses.replace(e, data=replace(e.data, spans=1.0))
    return Trained(prepare(other, ONE), model.params, model.step)


@pytest.mark.parametrize("draw", [False, True])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_prompt_with_a_hole_is_how_a_moved_span_was_trained_on(filler, photo, draw, at):
    """Up to the second mask, and for a picture its BOI, it is what `spans.move` makes."""
    data, known = filler.run.experiment.data, filler.run.tokenizer
    hole = Image(photo.read_bytes()) if draw else Text("a green ring")
    rest = [Text("a red star"), Image(photo.read_bytes()), Text("two shapes")]
    if draw and at == 1:
        rest = [Text("a red star"), Text("two shapes")]
    document = [*rest[:at], hole, *rest[at:]]
    v = bpe.vocabulary(known)
    whole = bpe.lay_out(document, known, v, data.patches, data.shared_position)
    parts = (document[:at], document[: at + 1])
    laid = bpe.lay_out_all(parts, known, v, data.patches, data.shared_position, end=False)
    span = (len(laid[0]["tokens"]), len(laid[1]["tokens"]))
    moved = spans.move(whole, [span], v)
    second = np.flatnonzero(moved["tokens"] == v.masks[0])[1]
    n = int(second) + 1 + draw

    slot = mmjax.IMAGE if draw else mmjax.TEXT
    asked = request.parse([*document[:at], slot, *document[at + 1 :]])
    assert (asked.draw, asked.infill) == (draw, True)
    rows = talk.rows_of([asked], data, filler.run)
    held = int(np.asarray(rows.segment).sum())
    assert held == n
    for name in ("tokens", "modality", "position", "image"):
        np.testing.assert_array_equal(getattr(rows, name)[0, :n], moved[name][:n], err_msg=name)
    assert moved["tokens"][n - 1] == (v.boi if draw else v.masks[0])
    # What is to be written is what was moved, then its end.
    left = whole["tokens"][span[0] + draw : span[1]].tolist()
    assert moved["tokens"][n:].tolist() == [*left, v.eoss, v.eos]
    assert rows.tokens[0, :n].tolist() != whole["tokens"][:n].tolist()


def test_holes_are_filled(filler, photo):
    text = ["a red circle and", mmjax.TEXT, photo]
    drawn, written = filler.generate([["left", mmjax.IMAGE, "right"], text], [1, 2], **WARM)
    assert is_picture(drawn) and isinstance(written, str)
    last = filler.generate([["left right", mmjax.IMAGE]], [1], **WARM)
    assert not same(last[0], drawn)


def test_models_of_moved_spans_are_guided_away_from_a_mask(model, filler):
    asked = [["a red star", mmjax.IMAGE]]
    plain, guided = (
        [trained.generate(asked, [3], **WARM | {"guidance": g})[0] for trained in (model, filler)]
        for g in (1.0, 4.0)
    )
    assert same(*plain) and not same(*guided)


def test_pictures_of_prompts_are_read_as_in_the_prompts_of_training(model):
    e = model.run.experiment
    wide = np.random.default_rng(0).integers(0, 255, (8, 24, 3), np.uint8)
    document = [request.as_part(wide), Text("what?")]
    for mode in ("", "pil_lanczos_pad"):
        c = replace(e.data, coded=False, resize_prompt=mode)
        how = c, model.run.tokenizer, model.run.model.parts.vocabulary, False
        read = prompt.lay_out([document], *how).pixels[0, 0]
        scored = prompt.lay_out([document], *how, end=True).pixels[0, 0]
        drawn = prompt.lay_out([document[::-1]], *how, end=True).pixels[0, 0]
        assert (read == RESIZE[mode or e.data.resize](wide, 8)).all() and (scored == read).all()
        assert (drawn == RESIZE[e.data.resize](wide, 8)).all()
    assert (read != drawn).any()


def refusal(trained, *prompts, **options) -> str:
    with pytest.raises(UserError) as error:
        trained.generate(list(prompts), **options)
    said = str(error.value)
    assert said and "\n" not in said
    return said


def test_a_prompt_that_is_too_long_says_by_how_many_tokens(model):
    long = "a red circle and a blue star " * 20
    n = len(bpe.encode(model.run.tokenizer, long)) + 1  # BOS
    limit = model.run.experiment.data.length
    said = refusal(model, ["fine"], [long])
    assert said == f"prompt 2 takes {n} of {limit} positions; shorten it by {n - limit} tokens"
    said = refusal(model, [long, mmjax.IMAGE])  # BOI and the codes to come
    assert said == f"prompt 1 takes {n + 17} of {limit} positions; " + (
        f"shorten it by {n + 17 - limit} tokens"
    )


def test_a_prompt_just_short_enough_is_answered(model):
    """By the tokens told, it fits: a picture and all."""
    known, text = model.run.tokenizer, ""
    while len(bpe.encode(known, text + " red")) + 18 <= model.run.experiment.data.length:
        text += " red"
    (made,) = model.generate([[text, mmjax.IMAGE]], **WARM)
    assert is_picture(made)
    assert "shorten it by 1 tokens" in refusal(model, [text + " red", mmjax.IMAGE])


def test_a_picture_that_cannot_be_read_names_its_prompt(model, photo, tmp_path):
    bad = tmp_path / "bad.png"
    cut = photo.read_bytes()[:-40]
    bad.write_bytes(cut)
    said = refusal(model, [photo], ["text", mmjax.IMAGE], [bad])
    assert said.startswith(f"prompt 3: picture {bad}: a picture of {len(cut)} bytes cannot be")
    said = refusal(model, [photo], ["text", mmjax.IMAGE], [cut])
    assert said.startswith(f"prompt 3: a picture of {len(cut)} bytes cannot be decoded: ")
    why = "not a picture of a known kind (PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF); convert it"
    said = refusal(model, [b"no picture"])
    assert said == f"prompt 1: a picture of 10 bytes cannot be decoded: {why}"
    bad.write_bytes(b"a red apple")
    said = refusal(model, ["text", mmjax.IMAGE], [bad])
    assert said.startswith(f"prompt 2: picture {bad}: a picture of 11 bytes cannot be decoded: not")


def test_a_codec_without_its_decoder_draws_nothing(model, photo):
    """As Hugging Face's Chameleon comes: its codes cannot be shown."""
    run = model.run
    parts = run.model.parts._replace(config=replace(run.model.parts.config, draws=False))
    imported = replace(run.experiment, model=replace(run.experiment.model, draws=False))
    blind = Trained(
        replace(run, model=run.model._replace(parts=parts), experiment=imported),
        model.params,
        model.step,
    )
    for said in (
        refusal(blind, ["a", mmjax.IMAGE]), refusal(blind, ["a"], pictures=1),
    ):  # fmt: skip
        assert said.startswith("a chameleon whose codec was imported without a decoder draws no")
    assert isinstance(blind.generate([[photo]], **WARM)[0], str)


def test_numbers_of_numpy_are_numbers(model, photo):
    warm = WARM | {"text": np.int64(4), "temperature": np.float32(1.0)}
    assert same(model.generate([[photo]], **warm), model.generate([[photo]], **WARM | {"text": 4}))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (
            ["a", mmjax.IMAGE, "b", mmjax.TEXT],
            ["prompt 1 may hold one slot", "parts 2 and 4 are mmjax.IMAGE and mmjax.TEXT"],
        ),
        (
            ["a", mmjax.IMAGE, "b"],
            ["prompt 1 has a slot before its end", "data.spans", "last"],
        ),
        ([mmjax.TEXT, "b"], ["prompt 1 has a slot before its end"]),
        ([Path("none.png")], ["prompt 1: picture none.png does not exist"]),
        (["a", 3], ["prompt 1: a prompt holds text, pictures and a slot, not int"]),
        (["a", None], ["not NoneType"]),
        ({"text": "a"}, ["prompt 1 must be a list of text, pictures", "not a dict"]),
        (None, ["prompt 1 must be a list of text, pictures", "not a NoneType"]),
        ([Path("x" * 300 + ".png")], ["x.png cannot be read: ", "file name too long"]),
        ([Path(__file__) / "a.png"], ["a.png does not exist"]),
        ([Path("/")], ["picture / cannot be read: / is a directory"]),
        (np.zeros((4, 4), np.uint8), ["prompt 1: a picture's pixels are uint8 [h, w, 3], not"]),
        ([np.zeros((4, 4, 3))], ["are uint8 [h, w, 3], not float64 [4, 4, 3]"]),
        ([np.zeros((0, 4, 3), np.uint8)], ["not uint8 [0, 4, 3]"]),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_one_clear_line(model, prompt, words):
    said = refusal(model, prompt)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"temprature": 1.0},
            ["temprature is no option of a chameleon; have: ", "image_temperature", "top_p"],
        ),
        ({"image_contrast": 1.0}, ["image_contrast is no option"]),
        ({"temperature": -1.0}, ["temperature=-1.0 must lie between 0 and"]),
        ({"image_top_p": 0.0}, ["image_top_p=0.0 must lie between"]),
        ({"top_p": 1.5}, ["top_p=1.5 must lie between"]),
        ({"top_k": 2.5}, ["top_k=2.5 must be a whole number"]),
        ({"image_min_p": 2.0}, ["image_min_p=2.0 must lie between 0 and 1"]),
        ({"image_top_k": 0.5}, ["image_top_k=0.5 must be a whole number"]),
        ({"text": 2.5}, ["text=2.5 must be a whole number"]),
        ({"temperature": "hot"}, ["temperature='hot' must be a number"]),
        ({"guidance": "x"}, ["guidance='x' must be a number"]),
        ({"image_top_k": None}, ["image_top_k=None must be a number"]),
        ({"pictures": -1}, ["pictures=-1 must be a whole number, 0 or more"]),
        ({"pictures": 1.5}, ["pictures=1.5 must be a whole number, 0 or more"]),
        ({"stop": 1}, ["stop=1 must be a whole number, 0 to pictures=0"]),
        ({"pictures": 2, "stop": 2.0}, ["stop=2.0 must be a whole number, 0 to pictures=2"]),
        ({"pictures": True}, ["pictures=True must be a whole number, 0 or more"]),
        ({"pictures": "2"}, ["pictures='2' must be a whole number, 0 or more"]),
        ({"seed": "a"}, ["seed='a' must be a whole number"]),
        ({"seed": None}, ["seed=None must be a whole number"]),
    ],
)
def test_a_wrong_option_is_named(model, options, words):
    said = refusal(model, ["a", mmjax.IMAGE], **options)
    assert all(word in said for word in words), said


def test_seeds_must_be_as_many_as_prompts(model, prompts):
    for seeds in ([1], [1, 2, 3]):
        assert "seeds for 2 prompts" in refusal(model, prompts[0], prompts[2], seed=seeds)
    assert "seed=-1 must lie between" in refusal(model, prompts[0], seed=-1)


def test_nothing_asked_gives_nothing(model):
    assert model.generate([]) == []


@pytest.mark.parametrize("prompts", ["a red circle", b"a picture", Path("a.png"), mmjax.IMAGE])
def test_one_prompt_is_no_list_of_prompts(model, prompts):
    for ask in (model.generate, model.score, model.embed):
        with pytest.raises(UserError, match=r"^give a list of prompts, such as .*, not a \w+$"):
            ask(prompts)


def test_only_whole_documents_have_a_score(model, filler, photo):
    for slots in (["a", mmjax.IMAGE], [mmjax.TEXT, "a"]):
        for ask in (model.score, filler.score, model.embed):
            with pytest.raises(UserError, match=r"^document 2 has a slot"):
                ask([["a", photo], slots])
    for ask in (model.score, model.embed):
        with pytest.raises(UserError, match=r"^no documents were given"):
            ask([])


def test_a_picture_one_may_not_read_is_named(monkeypatch, photo):
    def forbidden(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(source, "opened", forbidden)
    said = r"^a prompt: picture .*photo.png cannot be read: photo.png: permission denied$"
    with pytest.raises(UserError, match=said):
        request.parse([photo])


def test_an_empty_prompt_is_begun_from_nothing(model, prompts):
    found = model.generate([[], [mmjax.IMAGE], mmjax.IMAGE, prompts[3]], [1, 2, 2, 1], **WARM)
    assert isinstance(found[0], str) and is_picture(found[1])
    assert same(found[1], found[2])


def test_requests_say_what_is_given_and_what_is_to_be_made(photo):
    ask = request.parse(["a", photo, mmjax.IMAGE])
    assert (ask.draw, ask.infill, ask.answer) == (True, False, False)
    assert list(ask.document) == [Text("a"), Image(photo.read_bytes())]
    assert request.parse("a") == request.parse(["a"]) == request.parse(["a", mmjax.TEXT])
    assert request.parse(["a", mmjax.SEP]).answer and not request.parse([mmjax.SEP, "a"]).answer
    hole = request.parse(["a", mmjax.TEXT, "b"])
    mask = Sentinel("mask")
    assert list(hole.document) == [Text("a"), mask, Text("b"), mask]
    assert (hole.draw, hole.infill) == (False, True)
    first = request.parse([mmjax.IMAGE, "b"])
    assert (first.draw, first.infill) == (True, True) and first.document[0] == mask
    assert repr(mmjax.IMAGE) == "mmjax.IMAGE" and repr(mmjax.TEXT) == "mmjax.TEXT"


def test_a_conversation_is_given_as_training_had_it(photo):
    """Its prompts have no loss, its answers have, as in a record whose last answer is left out."""
    said = ("what is it", "a dot", "which", "red")
    facts = {"roles": ["human", "human", "gpt", "human", "gpt"]}
    parts = [photo, *said]
    record = Record("1", (Image(photo.read_bytes()), *map(Text, said)), facts)
    asked = request.parse([photo, said[0], mmjax.SEP, said[1], mmjax.SEP, said[2], mmjax.SEP])
    assert tuple(request.turns(asked)) == conversation(record, "sep")[:-1]
    assert all(part.loss for part in asked.document)  # a score is of all words
    plain = request.parse(parts)
    assert request.turns(plain) == plain.document


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contrast": 2.0}, "contrast=2.0 must lie between 0 and 1"),
        ({"contrast": -1.0}, "contrast=-1.0 must lie between 0 and 1"),
        ({"contrast": 0.5, "contrast_k": 0}, "contrast_k=0 must be at least 1"),
        ({"text": 0}, "text=0 must be at least 1"),
        ({"guidance": -1.0}, "guidance=-1.0 must be at least 0"),
        ({"guidance": float("nan")}, "guidance=nan must be at least 0"),
        ({"guidance": float("inf")}, "guidance=inf must be at least 0, finite"),
    ],
)
def test_a_scale_out_of_range_is_named(model, options, words):
    assert words in refusal(model, ["a", mmjax.IMAGE], **options)


def test_contrast_chooses_among_what_is_as_likely_as_the_kth_code(model):
    """At alpha 1 that is the likeliest alone for k = 1, as without contrast or guidance."""
    asked = [["a", mmjax.IMAGE], ["b", mmjax.IMAGE]]
    plain = model.generate(asked, guidance=1.0, image_temperature=0.0)
    one, many = (
        model.generate(asked, contrast=1.0, contrast_k=k, image_temperature=0.0) for k in (1, 6)
    )
    assert same(one, plain) and not same(many, plain)


def test_half_a_character_is_refused(model):
    assert "cannot be encoded" in refusal(model, ["\ud800", mmjax.IMAGE])
