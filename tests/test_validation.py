"""The loss of held-out documents while training: the same ones each time, of every family."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny as tinies
from tiny import tiny

from mmjax import config, plot, train, validation
from mmjax.data import pipeline
from mmjax.log import MetricsFile
from mmjax.models import MODELS
from mmjax.run import families, prepare

MAKERS = {
    "transfusion": tinies.tiny_config,
    "chameleon": tinies.tiny_chameleon_config,
    "oneflow": tinies.tiny_oneflow_config,
    "dial": tinies.tiny_dial_config,
    "codec": tinies.tiny_codec_config,
    "clip": tinies.tiny_clip_config,
    "llava": tinies.tiny_llava_config,
    "flamingo": tinies.tiny_flamingo_config,
}


def run_of(e):
    return prepare(e, jax.devices()[:1])


@pytest.mark.parametrize("family", MAKERS)
def test_every_family_has_rows_and_a_loss_of_them(family, openmoji):
    """Traced and not run: what a family's loss gives is looked at in its own tests."""
    c = MAKERS[family](openmoji)
    c.data.sources.openmoji.template = ""  # there are no questions to its pictures
    run = run_of(config.resolve(c, families()))
    rows = validation.packed(run)
    batches = list(validation.batches(run, rows))
    assert 1 <= len(batches) <= validation.BATCHES
    assert all((batch.segment > 0).any() for batch in batches)
    model = MODELS[family].build(
        validation.undropped(run.experiment.model), run.vocabulary, run.rules
    )
    keys = jax.random.split(jax.random.key(0), len(batches[0].tokens))
    terms = jax.eval_shape(model.loss, run.abstract.params, batches[0], keys)
    assert {name for name, t in terms.items() if t.sum.ndim == 0} >= set(model.weights)


def test_documents_are_those_of_the_validation_split_and_always_the_same(openmoji):
    e = tiny(openmoji)
    first, second = (validation.packed(run_of(e)) for _ in range(2))
    other = validation.packed(run_of(dataclasses.replace(e, seed=5)))  # of the run, not of these
    pieces = [[p for row in rows for p in row] for rows in (first, second, other)]
    assert 10 <= len(pieces[0]) <= e.evals.documents
    for a, b, c in zip(*pieces, strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        np.testing.assert_array_equal(a["tokens"], c["tokens"])
    held = pipeline.open_split(openmoji, "validation")
    known = {image for record in held for image in record.images}
    shown = {bytes(picture.data) for p in pieces[0] for picture in p["pictures"]}
    assert shown and shown <= known


def test_nothing_is_dropped_and_nothing_else_changes():
    old = tiny(model__decoder__dropout=0.1).model
    new = validation.undropped(old)
    assert new.decoder.dropout == 0.0
    back = dataclasses.replace(new, decoder=dataclasses.replace(new.decoder, dropout=0.1))
    assert back == old


def test_without_a_validation_split_it_is_said(openmoji, monkeypatch):
    run = run_of(tiny(openmoji, evals__every=2))
    monkeypatch.setattr(pipeline, "splits", lambda path: ["train", "test"])
    said: list[str] = []
    assert train.validation_of(run, said.append) is None
    assert len(said) == 1 and "config.evals.every=2" in said[0] and "`validation`" in said[0]
    assert train.validation_of(run_of(tiny(openmoji)), pytest.fail) is None  # not asked for


def test_curves_are_drawn_of_what_there_is(tmp_path):
    plot.losses(tmp_path)
    assert not (tmp_path / plot.CURVES).exists()
    file = MetricsFile(tmp_path)
    file.write({"step": 1, "loss": 2.0, "text/nll": 1.0})
    plot.losses(tmp_path)
    plain = (tmp_path / plot.CURVES).stat().st_size
    file.write({"step": 2, "loss": 1.0, "text/nll": 1.0, "validation/loss": None})
    file.write({"step": 3, "loss": 1.0, "validation/loss": 1.5, "validation/text/nll": 1.0})
    file.close()
    plot.losses(tmp_path)
    assert (tmp_path / plot.CURVES).stat().st_size > 1.5 * plain  # a second panel
