"""Talking to a loaded OneFlow: pictures, captions, free answers, mistakes."""

import jax
import numpy as np
import pytest
from tiny import ROOT, tiny_config

import mmjax
from mmjax import config, run
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evals import scenes
from mmjax.train import train

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A OneFlow of two steps on scenes."""
    home = tmp_path_factory.mktemp("insert")
    build.build("scenes", home / "scenes", options={"count": 80, "size": 16, "level": 2})
    c = tiny_config(home / "scenes", steps=2, data__length=64)
    big = config.load(str(ROOT / "experiments" / "small_oneflow.py"))
    decoder = c.model.decoder.to_dict()
    c.family = "oneflow"
    c.model = big.model.to_dict() | {"decoder": decoder, "image": 8, "patch": 4}
    train(config.resolve(c, run.families()), home / "run", ONE)
    return home


@pytest.fixture(scope="module")
def model(home):
    return mmjax.load(home / "run", devices=ONE)


def is_picture(x) -> bool:
    return isinstance(x, np.ndarray) and (x.dtype, x.shape) == (np.uint8, (8, 8, 3))


def test_prompts_are_answered_with_pictures_or_text(home, model):
    photo = pipeline.open_split(home / "scenes", "train")[0].images[0]
    prompts = [["a red circle", mmjax.IMAGE], [photo], ["a blue star"]]
    made = model.generate(prompts, [3, 4, 5], text=12, steps=8)
    assert [is_picture(x) for x in made] == [True, False, False]
    again = model.generate(prompts, [3, 4, 5], text=12, steps=8)
    assert (made[0] == again[0]).all() and made[1:] == again[1:]
    other = model.generate(prompts, [6, 7, 8], text=12, steps=8)
    assert (made[0] != other[0]).any()
    free = model.generate([["a blue star"]], 1, pictures=1, text=12, steps=8)
    assert isinstance(free[0], list)


def test_it_is_evaluated_by_what_it_draws_and_writes(model, tmp_path):
    values = scenes.evaluate(model, 0, tmp_path)
    assert {"drawn_all_test", "written_all_test"} <= set(values)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda m: m.generate([["a"]], temperature=1.0), "temperature is no option of a oneflow"),
        (lambda m: m.generate([["a"]], stream=print), "does not stream"),
        (lambda m: m.score([["a"]]), "has no likelihood of a text"),
    ],
)
def test_what_it_cannot_do_is_said(model, ask, words):
    with pytest.raises(UserError, match=words):
        ask(model)
