"""Talking to a loaded Transfusion: pictures, captions, free answers, mistakes."""

import jax
import numpy as np
import pytest
from tiny import tiny

import mmjax
from mmjax.data import build, pipeline
from mmjax.data import tokenizer as bpe
from mmjax.error import UserError
from mmjax.evals import scenes
from mmjax.train import train
from mmjax.trained import Trained

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A Transfusion of two steps on scenes."""
    home = tmp_path_factory.mktemp("draw")
    build.build("scenes", home / "scenes", options={"count": 80, "size": 16, "level": 2})
    train(tiny(home / "scenes", steps=2, data__length=64), home / "run", ONE)
    return home


@pytest.fixture(scope="module")
def model(home):
    """The run, its output layer and head redrawn so that prompts and words matter."""
    trained = mmjax.load(home / "run", devices=ONE)
    out = trained.params["patch_out"]["patch"]
    noise = 0.3 * jax.random.normal(jax.random.key(0), out.shape)
    return Trained(trained.run, trained.params | {"patch_out": {"patch": noise}}, trained.step)


@pytest.fixture(scope="module")
def photo(home):
    path = home / "photo.png"
    path.write_bytes(pipeline.open_split(home / "scenes", "train")[0].images[0])
    return path


def is_picture(x) -> bool:
    return isinstance(x, np.ndarray) and (x.dtype, x.shape) == (np.uint8, (8, 8, 3))


def test_prompts_are_answered_with_pictures_or_text(model, photo):
    prompts = [["a red circle", mmjax.IMAGE], [photo], ["a blue star"], [photo, mmjax.IMAGE]]
    made = model.generate(prompts, [3, 4, 5, 6], temperature=1.0, text=6)
    assert [is_picture(x) for x in made] == [True, False, False, True]
    alone = model.generate(prompts[3:], [6])[0]
    assert np.abs(alone.astype(int) - made[3]).max() <= 1  # rounding of another batch
    other = model.generate([["a small star", mmjax.IMAGE], *prompts[1:]], [3, 4, 5, 6])
    assert (other[0] != made[0]).any()
    reseeded = model.generate(prompts[:1], 9)[0]
    assert (reseeded != made[0]).any()


@pytest.mark.parametrize("count", [3, 4])
def test_any_number_of_devices_gives_the_same(home, photo, count):
    """Weights of width 32 are split over four devices and lie whole on each of three."""
    prompts = [["a red circle", mmjax.IMAGE], [photo], ["a blue star"]]
    one = mmjax.load(home / "run", devices=ONE)
    many = mmjax.load(home / "run", devices=jax.devices()[:count])
    sharding = many.params["decoder"]["blocks"]["mlp"]["up"].sharding
    assert len(sharding.device_set) == count
    assert sharding.is_fully_replicated == (count == 3)
    a, b = (m.generate(prompts, 2, text=6, temperature=0.5) for m in (one, many))
    assert a[1:] == b[1:] and np.abs(a[0].astype(int) - b[0]).max() <= 1
    assert np.asarray(a[0]).std() > 0.5  # hardly trained, but not one colour


def test_options_of_the_solver_change_the_picture(model):
    prompt = [["a red circle", mmjax.IMAGE]]
    plain = model.generate(prompt)[0]
    ways = (
        {"steps": 2}, {"solver": "heun"}, {"shift": 3.0}, {"guidance": 1.0},
        {"guidance_start": 0.9}, {"guidance_least": 0.0},
    )  # fmt: skip
    for way in ways:
        assert (model.generate(prompt, **way)[0] != plain).any(), way
    np.testing.assert_array_equal(model.generate(prompt, solver="ddim")[0], plain)  # flow path


def test_a_picture_may_fill_the_row(model):
    """A prompt that leaves room for its patches alone is drawn, one token more is refused."""
    run = model.run
    room = run.experiment.data.length - run.model.parts.config.tokens - 2  # BOS and BOI
    text = next(
        t for n in range(200) if len(bpe.encode(run.tokenizer, t := " ".join(["red"] * n))) == room
    )
    full, again = (model.generate([[text, mmjax.IMAGE]], seed)[0] for seed in (1, 2))
    assert is_picture(full) and (full != again).any()
    with pytest.raises(UserError, match="shorten it by 1 tokens"):
        model.generate([[text + ".", mmjax.IMAGE]])


def test_free_answers_hold_text_and_pictures(model, photo):
    v = model.run.model.parts.vocabulary
    outputs = model.embed([["a red circle"], [photo], ["a blue star"]]).mean(0)
    drawn = model.params["head"]["w"].at[:, v.boi].set(5.0 * outputs)
    eager = Trained(model.run, model.params | {"head": {"w": drawn}}, model.step)
    heard = []
    answers = eager.generate(
        [["a blue star"], [photo]], 1, pictures=2, stream=lambda n, text: heard.append((n, text)),
        temperature=1.0, text=8,
    )  # fmt: skip
    drawn = [[p for p in parts if isinstance(p, np.ndarray)] for parts in answers]
    assert max(len(p) for p in drawn) == 2 and all(is_picture(p) for some in drawn for p in some)
    assert {n for n, _ in heard} == {0, 1} and any("[picture]" in text for _, text in heard)


def test_drawings_are_judged_by_the_oracle(model, tmp_path):
    values = scenes.evaluate(model, 0, tmp_path)
    assert values["drawn_all_true_test"].value > 0.5 > values["drawn_all_test"].value
    assert not any("codec" in name for name in values)
    assert set(model.drawn) and all(
        (tmp_path / f"scenes_drawn_{s}.png").is_file() for s in ("test",)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": -3}, "steps=-3 must be at least 1"),
        ({"solver": "rk45"}, "solver='rk45' is unknown; have: euler, heun, ddim"),
        ({"guidance_start": 2.0}, "guidance_start=2.0 must lie between 0 and 1"),
        ({"shift": 0.0}, "shift=0.0 must be above 0"),
        ({"image_top_k": 3}, "image_top_k is no option of a transfusion; have: guidance,"),
    ],
)
def test_a_wrong_option_is_named(model, options, words):
    with pytest.raises(UserError) as error:
        model.generate([["a", mmjax.IMAGE]], **options)
    assert words in str(error.value)


def test_a_hole_takes_a_model_that_fills_holes(model, photo):
    with pytest.raises(UserError, match="has a slot before its end"):
        model.generate([[mmjax.IMAGE, photo]])
