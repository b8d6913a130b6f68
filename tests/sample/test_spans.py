"""Talking to a loaded dial: pictures and captions at several alphas, mistakes."""

import jax
import numpy as np
import pytest
from tiny import ROOT, changed, tiny_codec, tiny_config

import mmjax
from mmjax import config, run
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evals import drawing
from mmjax.train import train

ONE = jax.devices()[:1]
OPTIONS = {"text": 6, "steps": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("dial")
    build.build("scenes", home / "scenes", options={"count": 80, "size": 16, "level": 2})
    return home


def patches(home, **changes):
    """Over a Transfusion: patches half way, text from left to right."""
    c = tiny_config(home / "scenes", steps=2, data__length=64)
    big = config.load(str(ROOT / "experiments" / "small_dial.py"))
    c.family, c.model = "dial", big.model.to_dict() | {"transfusion": c.model.to_dict()}
    return changed(c, changes)


def codes(home, **changes):
    """Over a Chameleon: codes and text half way."""
    c = patches(home, data__patch=2, data__shared_position=False)
    base = config.load(str(ROOT / "experiments" / "chameleon_scenes.py")).model.to_dict()
    small = {"decoder": c.model["transfusion"]["decoder"], "codec": tiny_codec()}
    c.model = c.model.to_dict() | {"transfusion": None, "chameleon": base | small}
    c.model.text_alpha = 0.5
    return changed(c, changes)


@pytest.fixture(scope="module", params=[patches, codes], ids=["patches", "codes"])
def model(request, home):
    workdir = home / request.param.__name__
    train(config.resolve(request.param(home), run.families()), workdir, ONE)
    return mmjax.load(workdir, devices=ONE)


def test_prompts_are_answered_with_pictures_or_text(home, model):
    photo = pipeline.open_split(home / "scenes", "train")[0].images[0]
    prompts = [["a red circle", mmjax.IMAGE], [photo], ["a blue star"], [photo, mmjax.IMAGE]]
    made = model.generate(prompts, [3, 4, 5, 6], temperature=1.0, **OPTIONS)
    shapes = [(x.dtype, x.shape) if isinstance(x, np.ndarray) else str for x in made]
    assert shapes == [(np.uint8, (8, 8, 3)), str, str, (np.uint8, (8, 8, 3))]
    again = model.generate(prompts[3:], [6], temperature=1.0, **OPTIONS)[0]
    assert np.abs(again.astype(int) - made[3]).max() <= 1
    other = model.generate(prompts, [7, 8, 9, 10], temperature=1.0, **OPTIONS)
    assert (other[0] != made[0]).any()


def test_it_is_evaluated(model, tmp_path):
    values = drawing.evaluate(model, 0, tmp_path)
    assert 0 <= values["drawn_choice_among_10"].value <= 1


def test_mistakes_are_named(home, model):
    photo = pipeline.open_split(home / "scenes", "train")[0].images[0]
    with pytest.raises(UserError, match="prompt 1 has a slot before its end; put the slot last"):
        model.generate([[mmjax.TEXT, photo]])
    with pytest.raises(UserError, match="it neither streams nor interleaves"):
        model.generate([[photo]], pictures=1)
    with pytest.raises(UserError, match="top_p is no option of a dial"):
        model.generate([[photo]], top_p=0.5)
