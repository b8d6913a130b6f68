"""Drawing pictures of a kind, in its own height and width."""

import io

import jax
import numpy as np
import PIL.Image
import pytest
from tiny import tiny_config

import mmjax
from mmjax import config, run
from mmjax.error import UserError
from mmjax.evals import drawing, heldout
from mmjax.trained import Trained


@pytest.fixture(scope="module")
def model(openmoji) -> Trained:
    c = tiny_config(openmoji)
    patch = c.data.patch
    c.data.sources.depths = c.data.sources.openmoji.copy_and_resolve_references()
    depth = {"height": 8, "width": 8, "patch": 2 * patch, "like": ""}
    wide = {"height": 8, "width": 16}
    c.data.kinds = {"wide": wide | {"patch": patch}, "depth": depth | {"sources": ("depths",)}}
    c.model.kinds = {"wide": wide, "depth": depth}
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
    with pytest.raises(UserError, match="kind='tall' is unknown; have: image, depth, wide"):
        model.generate([["a", mmjax.IMAGE]], kind="tall")


def test_a_modality_of_its_own_is_drawn_by_its_own_weights(model):
    """Both are 8 x 8; which weights matter says which kind was drawn."""

    def drawn(part: str | None, **options):
        params = dict(model.params)
        if part:
            old = params[part]["patch"]
            params[part] = {"patch": 0.3 * jax.random.normal(jax.random.key(0), old.shape)}
        return Trained(model.run, params, 0).generate([["a", mmjax.IMAGE]], 0, **options)[0]

    for options, own in (({"kind": "depth"}, "patch_out_depth"), ({}, "patch_out")):
        plain = drawn(None, **options)
        for part in ("patch_out_depth", "patch_out"):
            assert (drawn(part, **options) != plain).any() == (part == own)


def test_a_picture_that_is_read_takes_the_kind_of_its_aspect(model):
    rows = model.rows([[wide(), "a"]])
    assert rows.kind.tolist() == [[2]] and rows.pixels.shape[2:] == (8, 16, 3)
    assert (rows.image > 0).sum() == model.run.experiment.data.counts[2]


def test_a_picture_of_a_modality_of_its_own_is_read_as_what_it_says_it_is(model):
    square = model.generate([["a", mmjax.IMAGE]])[0]
    out = io.BytesIO()
    PIL.Image.fromarray(square).save(out, "PNG")
    plain, depth = (model.rows([[mmjax.Image(out.getvalue(), of=of), "a"]]) for of in ("", "depth"))
    assert (plain.kind.tolist(), depth.kind.tolist()) == ([[0]], [[1]])
    counts = model.run.experiment.data.counts
    assert [(r.image > 0).sum() for r in (plain, depth)] == [counts[0], counts[1]]
    assert counts[1] == counts[0] // 4
    given = mmjax.Image(out.getvalue(), of="depth")
    drawn = model.generate([[given, "a", mmjax.IMAGE]], seed=[3], kind="depth")[0]
    assert drawn.shape == (8, 8, 3)
    ways = model.embed([[given, "a"], [out.getvalue(), "a"], [given, "a"]])
    assert abs(ways[0] - ways[1]).max() > 1e-3 > 1e-5 > abs(ways[0] - ways[2]).max()
    with pytest.raises(UserError, match=r"prompt 1: kind='tall' .* have: image, depth, wide"):
        model.generate([[mmjax.Image(out.getvalue(), of="tall"), "a"]])


def test_each_kind_is_evaluated_with_its_own_weights_and_pictures(model, tmp_path):
    """OpenMoji is square, so that nothing is wide; `depths` holds the same pictures as depths."""
    old = model.params["patch_out_depth"]["patch"]
    own = {"patch": 0.3 * jax.random.normal(jax.random.key(0), old.shape)}
    model = Trained(model.run, {**model.params, "patch_out_depth": own}, 0)
    values = drawing.evaluate(model, 0, tmp_path)
    wanted = {f"drawn{k}_choice_among_10{s}" for k in ("", "_depth") for s in ("", "_concepts")}
    assert set(values) == wanted
    for name in ("drawn", "drawn_depth"):
        assert (tmp_path / f"{name}_compositional.png").is_file()
    number = heldout.names(model).index("depth")
    (plain, drawn), (depth, own) = (
        heldout.drawings(model, "compositional", 12, 0, k) for k in (0, number)
    )
    assert [r.caption for r in plain] == [r.caption for r in depth] and (drawn != own).any()
    assert heldout.draw(model, "compositional", 12, 0, heldout.names(model).index("wide")) == []
