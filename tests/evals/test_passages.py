"""Likelihood of plain text: of sources that have it, against the model run whole."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny import tiny

import mmjax
from mmjax.data import build
from mmjax.evals import passages
from mmjax.train import train

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two steps on scenes; beside them prose, which it does not read."""
    home = tmp_path_factory.mktemp("passages")
    build.build("scenes", home / "scenes", options={"count": 60, "size": 16, "level": 1})
    lines = [f"The fox number {i} jumps over the lazy dog.\n\nIt runs away." for i in range(40)]
    (home / "notes").mkdir()
    for i, line in enumerate(lines):
        (home / "notes" / f"{i}.txt").write_text(line)
    build.build(
        str(home / "notes"), home / "prose", "text", shares={"validation": 0.1, "test": 0.4}
    )
    sources = {
        name: dict(path=str(home / name), weight=1.0, template="", balance=False)
        for name in ("scenes", "prose")
    }
    stages = dict(whole=dict(until=1.0, weights=dict(scenes=1.0, prose=0.0)))
    train(tiny(data__sources=sources, data__stages=stages, steps=2), home / "run", ONE)
    return mmjax.load(home / "run", devices=ONE)


def test_text_sources_are_scored_and_others_are_not(model, tmp_path):
    values = passages.evaluate(model, 0, tmp_path)
    assert set(values) == {"passage_nll_prose", "passage_nll_prose_words"}
    found = values["passage_nll_prose"]
    texts = passages.passages(model, "prose", "test", 16, 0)
    assert found.n == len(texts) > 3
    tokens = [len(model.run.tokenizer.encode(t).ids) + 1 for t in texts]
    nats = -model.score([[t] for t in texts]).sum()
    np.testing.assert_allclose(found.value, nats / sum(tokens), rtol=1e-5)
    assert found.low < found.value < found.high


def test_words_alone_are_what_a_model_that_never_opens_a_picture_would_give_them(model, tmp_path):
    boi = model.run.model.parts.vocabulary.boi
    before = passages.evaluate(model, 0, tmp_path)
    head = model.params["head"]
    w = np.array(head["w"])

    def with_column(scale):
        changed = w.copy()
        changed[:, boi] = scale * w[:, boi]
        return replace(model, params=model.params | {"head": head | {"w": changed}}, drawn={})

    eager = passages.evaluate(with_column(30.0), 0, tmp_path)
    assert abs(eager["passage_nll_prose"].value - before["passage_nll_prose"].value) > 1e-3
    assert eager["passage_nll_prose_words"] == before["passage_nll_prose_words"]
    assert before["passage_nll_prose_words"].value < before["passage_nll_prose"].value


def test_a_source_of_pictures_has_no_passages(model):
    assert passages.passages(model, "scenes", "test", 16, 0) == []
