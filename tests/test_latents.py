"""Transfusion on the latents of a KL codec: read from disk or made on the way, drawn and scored."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from test_coding import ONE, experiment
from tiny import changed, tiny_codec, tiny_codec_config, tiny_config

import mmjax
from mmjax import coding, start
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evals import likelihood
from mmjax.run import prepare
from mmjax.train import train

KL = tiny_codec(kind="kl", codes=0)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Scenes, a codec of latents trained three steps, and the latents."""
    home = tmp_path_factory.mktemp("latents")
    build.build("scenes", home / "scenes", options={"count": 80, "size": 16, "level": 2})
    train(experiment(tiny_codec_config(home / "scenes", model__codec=KL)), home / "codec", ONE)
    trained = mmjax.load(home / "codec", devices=ONE)
    coding.tokenize(latent(home, coded=False).data, trained)
    return home


def latent(home, coded: bool, **changes):
    """A Transfusion on 4 x 4 latents of 4 numbers, one a patch."""
    c = tiny_config(home / "scenes", steps=2, data__length=64, data__patch=2, model__patch=2)
    c.model.codec = KL
    c.data.coded = coded
    c.start = {"codec": str(home / "codec")}
    return experiment(changed(c, changes))


def first(e) -> tuple:
    """(the run, its first batch)."""
    run = prepare(e, ONE)
    stream = pipeline.train_batches(e.data, run.tokenizer, e.batch, e.steps, e.seed)
    batch = next(stream)
    stream.close()
    return run, batch


def test_latents_on_disk_give_the_loss_of_pictures_encoded_on_the_way(home):
    found = {}
    for coded in (True, False):
        run, batch = first(latent(home, coded))
        state = start.begin(run, run.init())
        start.check_codes(run, state)
        keys = jax.random.split(jax.random.key(0), len(batch.tokens))
        assert batch.pixels.dtype == (np.float16 if coded else np.uint8)
        found[coded] = jax.jit(run.model.loss)(state.params, batch, keys)["image"].sum
        fresh = jax.jit(run.model.loss)(run.init().params, batch, keys)["image"].sum
        if not coded:
            assert abs(float(fresh - found[coded])) > 1e-2  # another codec, other latents
    np.testing.assert_allclose(found[True], found[False], rtol=2e-3)


def test_a_model_of_latents_draws_pixels_scores_and_keeps_the_codec(home, tmp_path):
    train(latent(home, True), tmp_path / "run", ONE)
    model = mmjax.load(tmp_path / "run", devices=ONE)
    codec = mmjax.load(home / "codec", devices=ONE)
    for mine, theirs in zip(
        jax.tree.leaves(model.params["codec"]), jax.tree.leaves(codec.params["codec"]), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    pictures = model.generate([["a red circle", mmjax.IMAGE], ["a blue star", mmjax.IMAGE]])
    assert all((p.dtype, p.shape) == (np.uint8, (8, 8, 3)) for p in pictures)
    assert (pictures[0] != pictures[1]).any()
    values = likelihood.evaluate(model, 0, tmp_path)
    assert 0 < values["image_flow_loss"].value < 50
    assert values["image_flow_loss_linear"].value < values["image_flow_loss_zero"].value


def test_what_does_not_fit_is_refused(home):
    run = prepare(latent(home, True, model__codec=None, start={}), ONE)
    with pytest.raises(UserError, match="this transfusion does not read the latents"):
        start.check_codes(run, None)
    with pytest.raises(UserError, match=re.escape("model.codec.quantiser.kind='vq' makes codes")):
        latent(home, False, model__codec=tiny_codec())
    with pytest.raises(UserError, match=r"model.patch=1 a multiple of 2"):
        latent(home, False, model__patch=1, data__patch=1, data__length=256)
    e = latent(home, True)
    other = dataclasses.replace(e, start={})
    with pytest.raises(UserError, match="was coded by another codec"):
        run = prepare(other, ONE)
        start.check_codes(run, run.init())
