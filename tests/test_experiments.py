"""Every experiment file: it resolves, builds without allocating, and matches its text snapshot."""

import difflib
import json
import runpy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import ROOT

from mmjax import config, optim, run, values
from mmjax.batch import Vocabulary
from mmjax.data import pipeline
from mmjax.data.pack import Shape, empty_rows
from mmjax.mesh import Rules, make_mesh
from mmjax.models import MODELS
from mmjax.step import abstract_state, train_step

FILES = sorted((ROOT / "experiments").glob("*.py"))
GOLDEN = ROOT / "tests" / "golden"


RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))


def built(path):
    """(experiment, model) of a file, on one device, with a vocabulary of 1,024 words."""
    e = config.resolve(config.load(str(path)), run.families())
    codes = getattr(e.model, "codes", 0)
    vocabulary = Vocabulary(1024 + codes, codes=1024, code_count=codes)
    return e, MODELS[e.family].build(e.model, vocabulary, RULES)


def snapshot(path) -> str:
    """The resolved config, and every parameter's path, shape, dtype, layout and initial spread."""
    e, model = built(path)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    lines = [json.dumps(values.to_dict(e), indent=1), ""]
    total = 0
    specs = jax.tree.leaves(
        model.specs, is_leaf=lambda s: isinstance(s, jax.sharding.PartitionSpec)
    )
    for (where, x), spec in zip(jax.tree_util.tree_leaves_with_path(shapes), specs, strict=True):
        name = "/".join(str(p.key) for p in where)
        layout = ",".join(str(axis or "-") for axis in spec)
        lines.append(f"{name:45s} {x.shape!s:22s} {x.dtype} ({layout})")
        total += int(np.prod(x.shape))
    return "\n".join([*lines, f"parameters: {total:,}", ""])


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_experiment_matches_its_snapshot(path, update_golden):
    text, golden = snapshot(path), GOLDEN / f"{path.stem}.txt"
    if update_golden:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert golden.exists(), f"no {golden}; run `make golden` and read what it wrote"
    change = "\n".join(difflib.unified_diff(golden.read_text().split("\n"), text.split("\n"), n=0))
    assert not change, f"if this change is meant, run `make golden`:\n{change}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_an_experiments_step_traces_at_its_own_size_and_dtype(path):
    """Nothing is allocated: a 34B's step as well as a small one's, in bf16 where it says so."""
    e, model = built(path)
    tx = optim.optimizer(e.optim, e.steps, model.rates)
    state = abstract_state(model, tx, e.optim.ema, RULES)
    rows = jax.eval_shape(lambda: batch_of(e, 2 * e.accumulate))
    step = partial(train_step, model, tx, optim.schedule(e.optim, e.steps), e.optim.ema)
    new, metrics = jax.eval_shape(partial(step, e.accumulate, e.seed), state, rows)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(new)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(state)
    ]
    assert metrics["loss"].shape == () and metrics["loss"].dtype == "float32"


def batch_of(e, count: int):
    """Rows as the experiment's data come: pixels, or what a codec makes of them."""
    c, codec = e.data, getattr(e.model, "codec", None)
    shape = pipeline.plain_shape(c, c.length, c.images)
    if c.coded:
        shape = Shape(c.length, c.images, 0)
        if not codec.codes:
            shape = Shape(c.length, c.images, codec.side, codec.quantiser.width, "float16")
    return jax.tree.map(jnp.asarray, empty_rows(count, shape, 0))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_data_engine_knows_what_an_experiment_names(path):
    pipeline.check(config.resolve(config.load(str(path)), run.families()).data)


def test_a_renamed_parameter_would_show():
    text = snapshot(FILES[0])
    assert "decoder/blocks/mlp/up" in text and "parameters:" in text
    assert text.replace("mlp/up", "mlp/upper") != text


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_misspelt_override_is_refused_with_the_nearest_name(path):
    c = config.load(str(path))
    assert isinstance(c, ConfigDict)
    c.lock()
    with pytest.raises(AttributeError, match="optim"):
        c.optimm = 1
    with pytest.raises(TypeError):
        c.steps = "many"


def test_both_stages_of_chameleon_7b_hold_the_same_share_of_pictures():
    """And the second gives half its tokens to what the first was made of."""
    path = ROOT / "experiments" / "chameleon_7b.py"
    named = runpy.run_path(str(path))
    stages, shares = config.load(str(path)).data.stages, []
    for stage in (stages.first, stages.second):
        tokens = {n: w * named["DOCUMENTS"][n][0] for n, w in stage.weights.items()}
        assert sum(tokens.values()) == pytest.approx(1.0)
        shares.append(tokens)
    first, second = shares
    assert named["drawn"](first) == pytest.approx(named["drawn"](second), rel=1e-9)
    assert 0.2 < named["drawn"](first) < 0.5 and min(second.values()) > 0
    for name, tokens in named["FIRST"].items():
        assert first[name] == pytest.approx(tokens / 4.8) == pytest.approx(2 * second[name])
