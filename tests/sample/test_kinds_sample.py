"""Drawing pictures of a kind, in its own height and width."""

import io

import numpy as np
import PIL.Image
import pytest
from tiny import tiny_config

import mmjax
from mmjax import config, run
from mmjax.error import UserError
from mmjax.trained import Trained


@pytest.fixture(scope="module")
def model(openmoji) -> Trained:
    c = tiny_config(openmoji)
    patch = c.data.patch
    c.data.kinds = {"wide": {"height": 8, "width": 16, "patch": patch}}
    c.model.kinds = {"wide": {"height": 8, "width": 16}}
    made = run.prepare(config.resolve(c, run.families()))
    return Trained(made, made.init().params, 0)


def wide() -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_picture_comes_out_in_its_kinds_shape(model):
    assert model.generate([["a", mmjax.IMAGE]], kind="wide")[0].shape == (8, 16, 3)
    assert model.generate([["a", mmjax.IMAGE]])[0].shape == (8, 8, 3)
    with pytest.raises(UserError, match="kind='tall' is unknown; have: image, wide"):
        model.generate([["a", mmjax.IMAGE]], kind="tall")


def test_a_picture_that_is_read_takes_the_kind_of_its_aspect(model):
    rows = model.rows([[wide(), "a"]])
    assert rows.kind.tolist() == [[1]] and rows.pixels.shape[2:] == (8, 16, 3)
    assert (rows.image > 0).sum() == model.run.experiment.data.counts[1]
