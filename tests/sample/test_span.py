"""Talking to a loaded dial: pictures as patches and as codes, text, mistakes."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import tiny_dial_config

import mmjax
from mmjax import config, run
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evals import EVALS
from mmjax.sample.span import written
from mmjax.train import train
from mmjax.trained import Trained

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("span")
    build.build("scenes", home / "scenes", options={"count": 80, "size": 16, "level": 2})
    return home


@pytest.fixture(scope="module", params=["transfusion", "chameleon"])
def model(home, request):
    """A dial of two steps on scenes; what begins at zero is redrawn, so that prompts matter."""
    c = tiny_dial_config(home / "scenes", request.param, steps=2, save_every=2, data__length=64)
    where = home / request.param
    train(config.resolve(c, run.families()), where, ONE)
    trained = mmjax.load(where, devices=ONE)
    params = dict(trained.params)
    if request.param == "transfusion":
        out = params["patch_out"]["patch"]
        params["patch_out"] = {"patch": 0.3 * jax.random.normal(jax.random.key(0), out.shape)}
    return Trained(trained.run, params, trained.step)


def is_picture(x) -> bool:
    return isinstance(x, np.ndarray) and (x.dtype, x.shape) == (np.uint8, (8, 8, 3))


def test_prompts_are_answered_with_a_picture_or_text(model, home):
    photo = home / "photo.png"
    photo.write_bytes(pipeline.open_split(home / "scenes", "train")[0].images[0])
    prompts = [["a red circle", mmjax.IMAGE], [photo], ["a blue star", mmjax.IMAGE]]
    hot = {"text": 6, "temperature": 1.0, "image_temperature": 1.0, "guidance": 1.0}
    made = model.generate(prompts, [3, 4, 5], **hot)
    assert [is_picture(x) for x in made] == [True, False, True]
    assert made[1]
    alone = model.generate(prompts[2:], [5], **hot)[0]
    assert np.abs(alone.astype(int) - made[2]).max() <= 1  # rounding of another batch
    assert (model.generate(prompts[:1], 9, **hot)[0] != made[0]).any()
    strong = model.generate(prompts[:1], [3], **hot | {"guidance": 4.0})[0]
    assert (strong != made[0]).any()


def limits(model: Trained) -> tuple[Trained, Trained]:
    """The dial at the base family's end, and the base family itself, of the same weights."""
    e = model.run.experiment
    base = "transfusion" if e.model.transfusion else "chameleon"
    alpha = {"text_alpha": 1.0, "image_alpha": float(base == "chameleon")}
    end = replace(e, model=replace(e.model, **alpha))
    plain = replace(e, family=base, model=e.model.base)
    params = {name: x for name, x in model.params.items() if name != "mask"}
    return (
        Trained(run.assemble(end, ONE), model.params, model.step),
        Trained(run.assemble(plain, ONE), params, model.step),
    )


def test_text_at_alpha_one_is_the_bases(model, home):
    """Word for word, where patches share positions and pictures are guided; and it is not void."""
    photo = home / "photo.png"
    photo.write_bytes(pipeline.open_split(home / "scenes", "train")[0].images[0])
    prompts = [["a red circle"], [photo], [photo, "a blue"]]
    greedy = {"text": 8, "temperature": 0.0, "guidance": 3.0}
    end, base = limits(model)
    made = end.generate(prompts, 0, **greedy)
    assert made == base.generate(prompts, 0, **greedy)
    assert len(set(made)) == len(made) and all(made)
    assert made != end.generate(prompts, 0, **greedy, text_guidance=5.0)


def test_mistakes_are_named(model):
    with pytest.raises(UserError, match="prompt 1 has a slot before its end; put the slot last"):
        model.generate([[mmjax.TEXT, "a star"]])
    with pytest.raises(UserError, match="top_k is no option of a dial"):
        model.generate([["a star"]], top_k=3)
    with pytest.raises(UserError, match="give no stream, pictures"):
        model.generate([["a star"]], pictures=1)
    if model.writes_codes:
        with pytest.raises(UserError, match="solver is no option of a dial"):
            model.generate([["a star", mmjax.IMAGE]], solver="heun")
    else:
        plain, heun, shifted = (
            model.generate([["a star", mmjax.IMAGE]], steps=2, **how)[0]
            for how in ({}, {"solver": "heun"}, {"shift": 4.0})
        )
        assert (plain != heun).any() and (plain != shifted).any()
    assert np.isfinite(model.score([["a star"]])).all()


def test_text_in_blocks_needs_lengths_that_are_known():
    flow = {"model__text_alpha": 0.5}
    e = config.resolve(tiny_dial_config(**flow), run.families())  # of a run that is there
    with pytest.raises(UserError, match=r"text_alpha=0.5 .*data.ends=1 each .*give data.ends=16"):
        train(e, "nowhere", ONE)
    for known in (flow | {"data__ends": 16}, {}):
        config.check_new(config.resolve(tiny_dial_config(**known), run.families()))


def test_evaluations_run(model, home):
    for name in ("drawing", "scenes"):
        found = EVALS[name](model, 0, home / "samples")
        assert found and all(np.isfinite(v.value) for v in found.values())
    coded = [name for name in found if name.startswith("drawn_all_codec")]
    assert bool(coded) is model.writes_codes  # what the codec makes of true pictures


def test_text_ends_with_its_first_eos():
    class Vocabulary:
        eos = 2

    class Tokenizer:
        """Ids as their decimal names."""

        def decode(self, ids, skip_special_tokens):
            return " ".join(map(str, ids))

    assert written(np.array([7, 8, 2, 9]), Vocabulary, Tokenizer()) == "7 8"
    assert written(np.array([7, 8]), Vocabulary, Tokenizer()) == "7 8"
