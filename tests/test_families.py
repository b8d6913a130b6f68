"""A family of a user's: from its own module alone it trains, is evaluated and sampled."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest
from tiny import ROOT, changed, tiny_config

import mmjax
from mmjax import config, evals, run
from mmjax.error import UserError
from mmjax.evals.value import Value
from mmjax.evaluate import evaluate
from mmjax.models import MODELS, abilities_of
from mmjax.train import train

ONE = jax.devices()[:1]
SMALL = {
    "steps": 20, "batch": 8, "data.length": 48, "data.images": 2, "data.window": 32,
    "data.image": 8, "data.patch": 4, "model.width": 16, "optim.peak": 1e-1, "optim.warmup": 2,
    "log_every": 5, "save_every": 20, "evals.documents": 16, "sample.text": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def bag(openmoji, tmp_path_factory):
    """(workdir, model) of examples/bag_of_words.py at toy size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        c = changed(config.load(str(ROOT / "examples" / "bag_of_words.py")), SMALL)
        c.data.sources.openmoji.path = str(openmoji)
        workdir = tmp_path_factory.mktemp("bag")
        train(config.resolve(c, run.families()), workdir, ONE)
        yield workdir, mmjax.load(workdir, devices=ONE)


def test_the_smallest_family_learns_and_is_measured(bag):
    workdir, _ = bag
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    found = evaluate(workdir)
    assert set(found) == {
        f"text_nll{n}{s}" for n in ("", "_alone", "_unigram") for s in ("", "_concepts")
    }
    assert found["text_nll"].value < np.log(1024) - 1  # less than knowing nothing
    # Images are passed over: a caption behind one is as likely as alone, but for its end.
    loss = evaluate(workdir, ["loss"])
    assert set(loss) == {"loss_text"} and abs(loss["loss_text"].value - rows[-1]["loss"]) < 2
    assert set(json.loads((workdir / "summary.json").read_text())) == {*found, *loss}


def test_it_writes_and_scores_a_bag(bag):
    _, model = bag
    first = model.generate([["man swimming"], ["a"]], seed=1)
    assert first == model.generate([["man swimming"], ["a"]], seed=1)
    assert all(isinstance(text, str) for text in first)
    assert first != model.generate([["man swimming"], ["a"]], seed=2)
    # The order of the words before does not matter, which words they are does.
    kept = model.score([["man red man red cat"], ["red man red man cat"], ["cat cat cat cat cat"]])
    one, two = kept[:2]
    assert np.isfinite(kept).all() and one != kept[2]
    np.testing.assert_allclose(
        one, model.score([["man red man red cat"]])[0], rtol=1e-5
    )  # of a batch of one
    assert abs(one - two) < abs(one - kept[2])


def test_what_it_does_not_offer_is_refused_by_name(bag):
    workdir, model = bag
    name = "examples.bag_of_words"
    for call, words in (
        (lambda: model.generate([["a", mmjax.IMAGE]]), f"a {name} draws no pictures"),
        (lambda: model.generate([["a"]], guidance=2.0), f"guidance is no option of a {name}"),
        (lambda: model.embed([["a"]]), f"a {name} embeds nothing"),
        (lambda: model.classify([b"x"], ["a"]), f"a {name} has no vectors to compare"),
        (lambda: evaluate(workdir, ["drawing"]), "--evals=drawing is unknown; examples.bag"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_a_family_that_says_nothing_has_its_loss(openmoji, tmp_path, monkeypatch):
    """A line in MODELS and a module of `Config` and `build`; or with an evaluation of its own."""
    from examples import bag_of_words as bag_module

    bare = types.SimpleNamespace(Config=bag_module.Config, build=bag_module.build)
    monkeypatch.setitem(MODELS, "bare", bare)
    c = tiny_config(openmoji)
    c.family, c.model, c.optim.kind = "bare", dict(width=4), "adamw"
    c.steps = c.save_every = 2
    e = config.resolve(c, run.families())
    train(e, tmp_path, ONE)
    assert set(evaluate(tmp_path)) == {"loss_text"}
    model = mmjax.load(tmp_path, devices=ONE)
    for call in (model.generate, model.score, model.embed):
        with pytest.raises(UserError, match="a bare "):
            call([["a"]])
    bare.abilities = lambda c: dataclasses.replace(
        bag_module.abilities(c),
        evals=(),
        own={
            "size": lambda trained, seed, out: {"width": Value(float(c.width), 1, seed, 0.0, 0.0)}
        },
    )
    assert evaluate(tmp_path)["width"].value == 4.0


def test_the_families_name_evaluations_there_are():
    files = [p for p in sorted((ROOT / "experiments").glob("*.py")) if p.stem.count("_") < 2]
    seen = set()
    for path in files:
        e = config.resolve(config.load(str(path)), run.families())
        can = abilities_of(e.family, e.model)
        assert set(can.evals) <= set(evals.EVALS), e.family
        assert list(evals.of(e))[-1] == "loss" and "loss" not in evals.usual(e)
        seen.add(e.family)
    assert seen == set(MODELS)


def test_a_module_that_is_no_family_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_pkg").mkdir()
    (tmp_path / "own_pkg" / "none.py").write_text("def build(c, vocabulary, rules): ...\n")
    (tmp_path / "own_pkg" / "lacks.py").write_text("import not_there_at_all\n")
    c = tiny_config()
    for family, words in (
        ("own_pkg.none", "has no Config; a family is a module with"),
        ("own_pkg.other", "is no module that Python finds"),
        ("no_such_pkg.other", "run from the directory it lies in, or install it"),
        ("../own_pkg/none.py", "is unknown; have: transfusion"),
    ):
        c.family = family
        with pytest.raises(UserError, match=words) as refused:
            config.resolve(c, run.families())
        assert "\n" not in str(refused.value)
    c.family = "own_pkg.lacks"  # there, but broken: its own error is what helps
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        config.resolve(c, run.families())
    for name in [n for n in sys.modules if n.startswith("own_pkg")]:
        del sys.modules[name]
