"""Talking to a loaded OneFlow: pictures, captions, free answers, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import VOCABULARY
from tiny import tiny_oneflow_config

import mmjax
from mmjax import config, run
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evals import EVALS
from mmjax.sample.answer import split
from mmjax.train import train
from mmjax.trained import Trained

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A OneFlow of two steps on scenes."""
    home = tmp_path_factory.mktemp("answer")
    build.build("scenes", home / "scenes", options={"count": 80, "size": 16, "level": 2})
    c = tiny_oneflow_config(home / "scenes", steps=2, save_every=2, data__length=64)
    train(config.resolve(c, run.families()), home / "run", ONE)
    return home


@pytest.fixture(scope="module")
def model(home):
    """The run, its layers that begin near zero redrawn so that prompts matter and words come."""
    trained = mmjax.load(home / "run", devices=ONE)
    params = dict(trained.params)
    out = params["patch_out"]["patch"]
    params["patch_out"] = {"patch": 0.3 * jax.random.normal(jax.random.key(0), out.shape)}
    params["gaps"] = params["gaps"] | {"bias": jnp.array([-2.0, 1.0])}
    return Trained(trained.run, params, trained.step)


@pytest.fixture(scope="module")
def photo(home):
    path = home / "photo.png"
    path.write_bytes(pipeline.open_split(home / "scenes", "train")[0].images[0])
    return path


def is_picture(x) -> bool:
    return isinstance(x, np.ndarray) and (x.dtype, x.shape) == (np.uint8, (8, 8, 3))


def test_prompts_are_answered_with_pictures_or_text(model, photo):
    prompts = [["a red circle", mmjax.IMAGE], [photo], ["a blue star"], [photo, mmjax.IMAGE]]
    made = model.generate(prompts, [3, 4, 5, 6], text=6)
    assert [is_picture(x) for x in made] == [True, False, False, True]
    assert made[1] and made[2]
    alone = model.generate(prompts[3:], [6])[0]
    assert np.abs(alone.astype(int) - made[3]).max() <= 1  # rounding of another batch
    assert model.generate(prompts[1:2], [4], text=6)[0] == made[1]
    other = model.generate([["a small star", mmjax.IMAGE], *prompts[1:]], [3, 4, 5, 6], text=6)
    assert (other[0] != made[0]).any()
    assert (model.generate(prompts[:1], 9)[0] != made[0]).any()
    plain = model.generate(prompts[:1], 3, guidance=1.0)[0]
    assert (plain != model.generate(prompts[:1], 3, guidance=4.0)[0]).any()


def test_free_answers_hold_text_and_pictures(model):
    params = dict(model.params)
    boi = model.run.model.parts.vocabulary.boi
    params["head"] = {"w": params["head"]["w"].at[:, boi].mul(8.0)}
    eager = Trained(model.run, params, model.step)
    made = eager.generate([["a red circle"]] * 3, 0, pictures=1, text=8)
    assert any(is_picture(x) for parts in made for x in parts)
    assert any(isinstance(x, str) for parts in made for x in parts)
    assert all(sum(map(is_picture, parts)) <= 1 for parts in made)


def test_mistakes_are_named(model, photo):
    with pytest.raises(UserError, match="prompt 1 has a slot before its end; put the slot last"):
        model.generate([[mmjax.TEXT, photo]])
    with pytest.raises(UserError, match="temperature is no option of a oneflow"):
        model.generate([[photo]], temperature=1.0)
    with pytest.raises(UserError, match="a oneflow has no likelihood"):
        model.score([["a red circle"]])
    with pytest.raises(UserError, match="of a oneflow comes in no order"):
        model.generate([[photo]], stream=lambda number, text: None)


def test_evaluations_run(model, home):
    found = EVALS["drawing"](model, 0, home / "samples")
    assert found and all(np.isfinite(v.value) for v in found.values())


def test_a_row_is_split_into_what_is_new():
    class Tokenizer:
        """Ids as their decimal names."""

        def decode(self, ids, skip_special_tokens):
            return " ".join(map(str, ids))

    v = VOCABULARY
    tokens = np.array([v.bos, 7, 8, v.boi, 0, 0, v.eoi, 9, v.boi, 0, 0, v.eoi, 10, v.pad])
    image = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 2, 2, 0, 0, 0])
    given = np.arange(14) < 2
    assert split(tokens, image, given, v, Tokenizer()) == ["8", 1, "9", 2, "10"]
    given = (np.arange(14) == 0) | ((np.arange(14) > 2) & (np.arange(14) < 7))
    assert split(tokens, image, given, v, Tokenizer()) == ["7 8", "9", 2, "10"]
