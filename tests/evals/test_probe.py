"""The probe of hidden states: its regression on known states, and on tiny runs of both families."""

from dataclasses import replace
from itertools import pairwise

import flax.linen as nn
import jax
import numpy as np
import pytest
from reconstructing import CASES, blinded, pairs
from small import decoder_config

from mmjax.evals import EVALS, heldout, probe
from mmjax.evals.alignment import derangement, score
from mmjax.mesh import Rules, make_mesh
from mmjax.models.decoder import Decoder

RNG = np.random.default_rng(0)


def told(seen: float, n=400):
    """Errors by condition of states that hold `seen` times a picture, and all of its caption."""
    caption, picture = RNG.normal(size=(2 * n, 3)), RNG.normal(size=(2 * n, 6))
    wanted = picture + caption @ RNG.normal(size=(3, 6))
    into, words = RNG.normal(size=(6, 20)), RNG.normal(size=(3, 20))

    def states(picture):
        noise = 0.01 * RNG.normal(size=(len(picture), 20))
        return seen * picture @ into + caption @ words + noise

    x, alone = states(picture), states(0 * picture)
    other = np.concatenate([np.arange(n), n + derangement(np.zeros(n, int), 0)])
    after, blind = (probe.fit(some[:n], wanted[:n]) for some in (x, alone))
    guesses = {"true": after(x), "shuf": after(states(picture[other])), "prior": blind(alone)}
    return {name: ((y - wanted)[n:] ** 2).mean(1) for name, y in guesses.items()}


def test_states_that_hold_the_picture_score_one_and_others_nothing():
    whole, nothing = (score(**told(seen), seed=0) for seen in (1.0, 0.0))
    assert whole["ras"].low > 0.99
    for name in ("ras_shuf", "ras_prior"):
        assert abs(nothing[name].value) < 0.02 and nothing[name].low < 0.005
    assert told(0.0)["prior"].mean() > 0.5  # a caption says only a part


@pytest.mark.parametrize("family", CASES)
def test_a_run_is_probed_in_its_middle_and_at_its_end(family, reconstructing, tmp_path):
    model = reconstructing[family]
    found = EVALS["probe"](model, 0, tmp_path)
    which = ["ras", "ras_shuf", "ras_prior"]
    which += [f"ras_error_{condition}" for condition in ("true", "shuf", "prior")]
    names = {f"{n}_probe_{at}" for n in which for at in probe.LAYERS}
    assert set(found) == {n + s for n in names for s in heldout.splits(model).values()}
    for name, value in found.items():
        assert value.low <= value.value <= value.high and np.isfinite(value.value), name
    assert EVALS["probe"](model, 0, tmp_path) == found
    for suffix in heldout.splits(model).values():  # other states
        assert found[f"ras_probe_half{suffix}"] != found[f"ras_probe_last{suffix}"]


@pytest.mark.parametrize("family", CASES)
def test_words_that_cannot_see_score_nothing(family, reconstructing):
    """With attention's output at zero, states at words are those of the words alone."""
    model = reconstructing[family]
    records = pairs(model)
    other = derangement(np.zeros(len(records), int), 0)

    def errors(at):
        return probe.probe_errors(at, probe.fitted(at, records, 2), records, other, 2)

    blind, seeing = errors(blinded(model)), errors(model)
    np.testing.assert_allclose(blind["shuf"], blind["true"], rtol=1e-4)
    np.testing.assert_allclose(blind["prior"], blind["true"], rtol=1e-3)
    assert np.abs(seeing["shuf"] - seeing["true"]).max() > 1e-3


def test_a_number_that_never_changed_is_not_divided_by_nothing(reconstructing, monkeypatch):
    """One picture's white border that is a grey level off must not be all that counts."""
    model = reconstructing["transfusion"]
    records = pairs(model)
    other = derangement(np.zeros(len(records), int), 0)
    true = probe.targets(model, records)
    true[:, 0] = 255
    monkeypatch.setattr(probe, "targets", lambda trained, some: true)
    probes = probe.fitted(model, records, 2)
    before = probe.probe_errors(model, probes, records, other, 2)["true"]
    true[3, 0] = 254
    after = probe.probe_errors(model, probes, records, other, 2)["true"]
    assert 0 < after[3] - before[3] < 0.1


FORMS = {
    "plain": {},
    "post": {"norm": "post", "biases": ("attention", "mlp")},
    "untied": {"towers": 2, "untie": ("ffn", "o"), "untied_layers": (1, 2)},
}


@pytest.mark.parametrize("form", FORMS)
def test_blocks_above_the_probed_layer_do_nothing(form):
    """The states of `layers` blocks are those of a decoder that has no more."""
    c = decoder_config(depth=4, **FORMS[form])
    rules = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
    x = RNG.normal(size=(2, 5, 32)).astype(np.float32)
    mask, at = np.tril(np.ones((1, 5, 5), bool)), np.tile(np.arange(5, dtype=np.int32), (2, 1))
    tower = np.arange(5, dtype=np.int32)[None].repeat(2, 0) % 2
    decoder = Decoder(rules, "float32", c)
    params = nn.unbox(jax.jit(decoder.init)(jax.random.key(0), x, mask, at))["params"]

    @jax.jit
    def run(params, layers):
        cut = probe.below(params, layers)
        return decoder.apply({"params": cut}, x, mask, at, tower=tower)[0]

    whole = decoder.apply({"params": params}, x, mask, at, tower=tower)[0]
    np.testing.assert_allclose(run(params, 4), whole, atol=1e-5)
    scale = np.sqrt((x**2).mean(-1, keepdims=True) + c.eps)
    np.testing.assert_allclose(run(params, 0), x / scale, rtol=1e-4)
    if form != "untied":
        short = replace(c, depth=2)
        half = {**params, "blocks": jax.tree.map(lambda x: x[:2], params["blocks"])}
        want = Decoder(rules, "float32", short).apply({"params": half}, x, mask, at)[0]
        np.testing.assert_allclose(run(params, 2), want, atol=1e-5)
    found = [np.asarray(run(params, n)) for n in range(5)]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in pairwise(found))
