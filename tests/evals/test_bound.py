"""The dial's bound: the likelihood at alpha = 1, and below it the mean of the training loss."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import tiny_dial_config

from mmjax import config, run
from mmjax.batch import Image, Text
from mmjax.data import build
from mmjax.evals import EVALS, bound, heldout, likelihood
from mmjax.sample import prompt
from mmjax.trained import Trained

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    home = tmp_path_factory.mktemp("bound") / "scenes"
    build.build("scenes", home, options={"count": 200, "size": 16, "level": 2})
    return home


@pytest.fixture(scope="module", params=["transfusion", "chameleon"])
def model(scenes, request) -> Trained:
    """Untrained, text and codes from left to right."""
    changes = {"data__length": 64, "model__text_alpha": 1.0, "evals__documents": 10}
    changes["model__image_alpha"] = 0.5 if request.param == "transfusion" else 1.0
    e = config.resolve(tiny_dial_config(scenes, request.param, **changes), run.families())
    one = run.prepare(e, ONE)
    return Trained(one, one.init().params, 0)


def turned(model: Trained, **changes) -> Trained:
    e = model.run.experiment
    other = replace(e, model=replace(e.model, form="block", **changes))
    return Trained(run.assemble(other, ONE), model.params, 0)


def documents(model: Trained, pictures=False) -> list:
    records = heldout.draw(model, "test", 8, 0)
    if pictures:
        return [[Text(r.caption, loss=False), Image(r.image)] for r in records]
    return [[Image(r.image, loss=False), Text(r.caption)] for r in records]


def test_at_alpha_one_it_is_the_likelihood(model, tmp_path):
    asked = documents(model)
    np.testing.assert_allclose(bound.nats(model, asked, 0), -model.score(asked), rtol=1e-4)
    values = bound.evaluate(model, 0, tmp_path)
    assert {"text_nll", "text_nll_concepts"} <= set(values) and values["text_nll"].value > 1
    if not model.writes_codes:
        assert not any(name.startswith("image") for name in values)
        return
    records = heldout.draw(model, "test", 10, 0)
    base = run.assemble(
        replace(model.run.experiment, family="chameleon", model=model.run.experiment.model.base),
        ONE,
    )
    params = {name: x for name, x in model.params.items() if name != "mask"}
    want = likelihood.code_values(Trained(base, params, 0), records, records, 0)["image_nll"]
    found = values["image_nll_concepts"]
    np.testing.assert_allclose(found.value, want.value, rtol=1e-4)


@pytest.mark.parametrize("two", [False, True])
def test_what_is_given_is_read_as_in_a_prompt(model, two):
    """At alpha = 0 both ways, but for two streams; and it is never masked."""
    codes = model.writes_codes
    if two and not codes:
        return  # nothing is masked
    some = turned(model, text_alpha=1.0, image_alpha=0.0, two_streams=two)
    asked = [[Image(d[0].data), d[1]] for d in documents(some)]
    found = bound.nats(some, asked, 0)
    np.testing.assert_allclose(found, -some.score(asked), rtol=1e-4)
    causal = bound.nats(turned(model, text_alpha=1.0, image_alpha=1.0), asked, 0)
    assert bool(np.abs(found - causal).max() > 1e-3) is not two
    if codes:  # codes from left to right after a text that was masked in training
        some = turned(model, text_alpha=0.0, image_alpha=1.0, two_streams=two)
        asked = [[Text(d[0].text), d[1]] for d in documents(some, pictures=True)]
        found = bound.nats(some, asked, 0, pictures=True)
        np.testing.assert_allclose(found, bound.nats(some, asked, 5, pictures=True), rtol=1e-5)


@pytest.mark.parametrize("two", [False, True])
def test_below_it_is_the_mean_of_the_training_loss(model, two):
    """Over many draws of both, documents and modalities apart; cut where weights are heavy."""
    codes = model.writes_codes
    alphas = {"text_alpha": 0.4, "image_alpha": 0.6 if codes else 0.0}
    some = turned(model, **alphas, two_streams=two)
    parts, data = some.run.model.parts, some.run.experiment.data
    for pictures in (False, True)[: 1 + codes]:
        asked = documents(some, pictures)
        found = np.stack([bound.nats(some, asked, seed, pictures) for seed in range(12)])
        rows = prompt.lay_out(asked, data, some.run.tokenizer, parts.vocabulary, False, end=True)

        names = "image/nll" if pictures else "text/nll"

        def one(key, rows=rows, names=names, asked=asked):
            keys = jax.random.split(key, len(asked))
            return some.run.model.loss(some.params, rows, keys)[names].sum

        drawn = np.asarray(
            jax.jit(lambda k: jax.lax.map(one, k))(jax.random.split(jax.random.key(1), 300))
        )
        total = found.sum(1)
        error = (drawn.var() / drawn.size + total.var() / total.size) ** 0.5
        assert abs(total.mean() - drawn.mean()) < 4 * error
        # Strata make it steadier than as many draws would.
        assert total.std() < 1.5 * drawn.std() / bound.CLOCKS**0.5


def test_every_dial_is_measured(model):
    assert EVALS["bound"] is bound.evaluate
