"""Weights of one modality each: against the dense decoder, path against path, on many devices."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from random_batch import VOCABULARY, random_batch
from repeats import repeat
from small import decoder_config, make, oneflow_config, oneflow_model, transfusion_config
from tiny import tiny_chameleon_config

from mmjax import config, run
from mmjax.batch import IMAGE, TEXT, Vocabulary, causal_mask
from mmjax.layers.grouped import BLOCK
from mmjax.layers.tower import route, shared_fraction, untied
from mmjax.mesh import Rules, make_mesh, shardings
from mmjax.models import chameleon, dial, language, transfusion
from mmjax.models.decoder import UNTIE, Decoder
from mmjax.step import gradients

ONE = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
DENSE = decoder_config()
ALL = decoder_config(towers=2, untie=UNTIE)
LENGTH = 4 * BLOCK


def inputs(seed=0, rows=2):
    """(x, mask, position, tower) of random layouts; the last row holds text only."""
    batch = random_batch(seed, rows=rows, length=LENGTH, slots=6)
    tower = np.array(batch.modality)
    tower[-1] = TEXT
    assert (tower == IMAGE).any()
    x = np.random.default_rng(seed).normal(size=(rows, LENGTH, 32)).astype(np.float32)
    return x, np.asarray(causal_mask(batch)), batch.position, tower


def init(c, seed=0, rules=ONE):
    x = jnp.zeros((rules.split("batch"), 1, 32))
    at = jnp.ones((1, 1, 1), bool), jnp.zeros(x.shape[:2], jnp.int32)
    return nn.unbox(jax.jit(Decoder(rules, "float32", c).init)(jax.random.key(seed), x, *at))


def apply(c, rules=ONE):
    module = Decoder(rules, "float32", c)
    return jax.jit(lambda p, x, mask, position, tower: module.apply(
        p, x, mask, position, tower=tower)[0])  # fmt: skip


def base(path):
    return (*path[:-1], path[-1].removesuffix("_1"))


def copied(c, dense):
    """Params of an untied decoder, every tower a copy of the dense one."""
    flat = flatten_dict(dense)
    shapes = flatten_dict(jax.eval_shape(partial(init, c)))
    return unflatten_dict({path: flat[base(path)] for path in shapes})


def moved(params, part):
    """The same with tower 1's weights of one part changed."""
    names = {
        "qkv": ("q_1", "k_1", "v_1"), "o": ("o_1",), "qk_norm": ("q_norm_scale_1", "k_norm_bias_1"),
        "attn_norm": ("attention_norm_1",), "ffn": ("gate_1", "up_1", "down_1"),
        "ffn_norm": ("mlp_norm_1",), "final_norm": ("final_norm_1",),
    }[part]  # fmt: skip
    flat = flatten_dict(params)
    assert set(names) <= {path[-1] for path in flat}
    noise = jax.random.normal(jax.random.key(9), ())
    return unflatten_dict({p: x + noise if p[-1] in names else x for p, x in flat.items()})


def test_nothing_untied_is_the_dense_decoder():
    assert decoder_config(towers=1, untie=()) == DENSE and DENSE.runs == [
        ("blocks", range(2), True)
    ]
    params, at = init(DENSE), inputs()
    assert not any(jax.tree.leaves(untied(params["params"])))
    names = {path[-1] for path in flatten_dict(params)}
    assert not any(name.endswith("_1") for name in names)
    run = apply(DENSE)
    np.testing.assert_array_equal(run(params, *at), run(params, *at[:3], None))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_equal_towers_are_the_dense_decoder(norm):
    dense, at = replace(DENSE, norm=norm), inputs()
    params = init(dense)
    want = apply(dense)(params, *at)
    same = copied(ALL, params)
    reference = apply(replace(ALL, norm=norm))(same, *at)
    np.testing.assert_array_equal(reference, want)  # bit for bit
    grouped = apply(replace(ALL, norm=norm, grouped=True))(same, *at)
    np.testing.assert_allclose(grouped, want, atol=2e-5)
    other = apply(replace(ALL, norm=norm))(moved(same, "o"), *at)
    assert np.abs(np.asarray(other - want)).max() > 1e-2


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("part", UNTIE)
def test_each_part_is_felt_through_pictures_only(part, grouped):
    c = replace(ALL, untie=(part,), grouped=grouped and part in ("qkv", "o", "ffn"))
    at, run = inputs(), apply(c)
    params = copied(c, init(DENSE))
    before, after = (np.asarray(run(p, *at)) for p in (params, moved(params, part)))
    difference = np.abs(after - before).max(-1)
    picture = at[3] == IMAGE
    assert (difference[-1] == 0).all()  # a row of text
    assert (difference[:-1][picture[:-1]] > 0).all()
    first = int(np.argmax(picture[0]))
    assert (difference[0, :first] == 0).all()
    if part == "final_norm":  # comes after attention, and moves nothing else
        assert (difference[~picture] == 0).all()


LAYOUTS = {"mixed": None, "text": TEXT, "pictures": IMAGE}


def layout(name, seed, rows=2):
    x, mask, position, tower = inputs(seed, rows)
    return x, mask, position, tower if LAYOUTS[name] is None else np.full_like(tower, LAYOUTS[name])


@partial(jax.jit, static_argnums=(0, 1))
def output_and_gradient(c, rules, params, x, mask, position, tower):
    def objective(params, x):
        y, _ = Decoder(rules, "float32", c).apply(params, x, mask, position, tower=tower)
        return jnp.sum(jnp.sin(3 * y)), y

    (_, y), grads = jax.value_and_grad(objective, (0, 1), has_aux=True)(params, x)
    return y, grads


@pytest.mark.parametrize("changes", [{}, {"untie": ("ffn",)}, {"untie": ("qkv", "qk_norm", "o")}])
@pytest.mark.parametrize("name", LAYOUTS)
def test_grouped_equals_reference(name, changes):
    c = replace(ALL, **changes)
    params = init(c)
    for seed in range(3 if name == "mixed" else 1):
        at = layout(name, seed)
        assert route(ONE, jnp.asarray(at[3]), 2, True).order is not None
        want = output_and_gradient(c, ONE, params, *at)
        got = output_and_gradient(replace(c, grouped=True), ONE, params, *at)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), got, want)
        for path, grad in flatten_dict(got[1][0]).items():
            used = {1: at[3] == IMAGE, 0: at[3] == TEXT}[int(path[-1].endswith("_1"))].any()
            if flatten_dict(untied(params["params"]))[path[1:]]:
                assert (np.abs(grad).max() > 0) == used  # zeros, not NaN, where no token went


def test_grouped_is_replayed_where_activations_are_not_kept():
    """Under `remat` a block's backward pass runs it again: same output, same gradients."""
    c = replace(ALL, grouped=True)
    params, at = init(c), layout("mixed", 2)
    want = output_and_gradient(c, ONE, params, *at)
    got = output_and_gradient(replace(c, remat=True), ONE, params, *at)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)
    other = output_and_gradient(replace(c, remat=True), ONE, params, *layout("mixed", 1))
    assert np.abs(other[0] - want[0]).max() > 0.1


@pytest.mark.parametrize("mesh", [(2, 2, 2), repeat((8, 1, 1)), repeat((2, 4, 1))])
def test_grouped_on_eight_devices_equals_one(mesh):
    """Each data shard sorts its own tokens."""
    c = replace(ALL, grouped=True)
    rules = Rules(make_mesh(*mesh))
    at = layout("mixed", 1, rows=8)
    found = jax.jit(partial(route, rules, towers=2, grouped=True))(at[3])
    assert found.order is not None and int(found.order.max()) == at[3].size // rules.split("batch")
    params = init(c)
    want = output_and_gradient(ALL, ONE, params, *at)
    rows = rules.sharding("batch")
    there = jax.tree.map(lambda x: jax.device_put(x, rows), at)
    x = jnp.zeros((8, 1, 32)), jnp.ones((1, 1, 1), bool), jnp.zeros((8, 1), jnp.int32)
    boxed = jax.eval_shape(Decoder(rules, "float32", c).init, jax.random.key(0), *x)
    placed = jax.device_put(params, shardings(rules.mesh, nn.get_partition_spec(boxed)))
    got = output_and_gradient(c, rules, placed, *there)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), got, want)


def test_few_tokens_are_not_sorted():
    assert route(ONE, jnp.zeros((4, 1), jnp.int32), 2, True).order is None
    assert route(ONE, jnp.zeros((1, LENGTH), jnp.int32), 2, False).order is None
    many = Rules(make_mesh(8, 1, 1))
    assert (
        route(many, jnp.zeros((4, LENGTH), jnp.int32), 2, True).order is None
    )  # rows do not divide


def test_layers_that_are_not_untied_are_those_of_a_dense_decoder():
    c = decoder_config(depth=4, towers=2, untie=("ffn",), untied_layers=(1, 2), unroll=4)
    assert [(n, list(r), u) for n, r, u in c.runs] == [
        ("blocks_0", [0], False), ("blocks_1", [1, 2], True), ("blocks_2", [3], False),
    ]  # fmt: skip
    dense = init(replace(DENSE, depth=4))
    flat = flatten_dict(dense)
    shapes = jax.eval_shape(partial(init, c))
    assert "up_1" not in shapes["params"]["blocks_0"]["mlp"]
    parts = {}
    for path in flatten_dict(shapes):
        run = next((r for n, r, _ in c.runs if n == path[1]), None)
        name = ("blocks" if run else path[1], *base(path)[2:])
        x = flat[("params", *name)]
        parts[path] = x if run is None else x[run[0] : run[-1] + 1]
    at, params = inputs(), unflatten_dict(parts)
    want = apply(replace(DENSE, depth=4, unroll=4))(dense, *at)
    np.testing.assert_allclose(apply(c)(params, *at), want, atol=2e-5)
    other = apply(c)(moved(params, "ffn"), *at)
    assert np.abs(np.asarray(other - want)[0]).max() > 1e-2


def test_shared_fraction_of_the_weights_on_a_way():
    """Untying the MLP leaves a third shared where it is twice as large as attention."""
    square = dict(width=64, kv_heads=4, mlp=64 * 8 // 3)

    def fraction(*parts, **more):
        towers = 2 if parts else 1
        c = decoder_config(**square, towers=towers, untie=parts, **more)
        x = jnp.zeros((1, 1, 64)), jnp.ones((1, 1, 1), bool), jnp.zeros((1, 1), jnp.int32)
        boxed = jax.eval_shape(Decoder(ONE, "float32", c).init, jax.random.key(0), *x)
        return shared_fraction(nn.unbox(boxed)["params"])

    assert fraction() == 1 and fraction(*UNTIE) == 0
    assert abs(fraction("ffn") - 1 / 3) < 0.01
    assert abs(fraction("qkv", "o") - 2 / 3) < 0.01
    assert abs(fraction("ffn", untied_layers=(1,)) - 2 / 3) < 0.01


@pytest.mark.parametrize("family", ["transfusion", "oneflow", "dial", "language"])
def test_families_give_pictures_their_tower(family):
    """A batch without pictures leaves tower 1 with a gradient of zero, one with them does not."""
    c = transfusion_config(dict(towers=2, untie=UNTIE))
    model, params = make(c)
    if family == "dial":
        model = dial.build(
            dial.Config(c, None, 0.5, 0.5, "ramp", "elbo", "linear"), VOCABULARY, ONE
        )
        params = params | {"mask": jnp.ones(32)}
    elif family == "oneflow":
        model, params = oneflow_model(oneflow_config(decoder=ALL))
    elif family == "language":
        model = language.build(language.Config(ALL, 0.0), VOCABULARY, ONE)
        params = {name: params[name] for name in ("embed", "decoder", "head")}
    batch = random_batch(3, rows=4)
    keys = jax.random.split(jax.random.key(0), 4)
    grad = jax.jit(lambda b: gradients(model, params, b, keys, 1)[0]["decoder"])
    words = batch._replace(modality=np.zeros_like(batch.modality), image=np.zeros_like(batch.image))
    for b, pictured in ((batch, True), (words, False)):
        flat = flatten_dict(grad(b))
        moved = {path for path, x in flat.items() if np.abs(x).max() > 0}
        # Words alone are compared by a language model: no output of a picture is read.
        unread = {("final_norm_1",)} if family == "language" else set()
        wanted = {path for path in flat if pictured or not path[-1].endswith("_1")}
        assert wanted - unread <= moved <= wanted


def test_chameleon_gives_pictures_their_tower():
    """A batch without pictures leaves tower 1 with a gradient of zero, one with them does not."""
    v = Vocabulary(52, masks=(7, 8), codes=40, code_count=12)
    c = config.resolve(tiny_chameleon_config(), run.families()).model
    shape = replace(c.decoder, towers=2, untie=UNTIE, grouped=True)
    model = chameleon.build(replace(c, decoder=shape), v, ONE)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = random_batch(3, length=LENGTH, slots=2, patches=16, size=8)
    keys = jax.random.split(jax.random.key(0), 2)
    grad = jax.jit(lambda b: gradients(model, params, b, keys, 1)[0]["decoder"])
    words = batch._replace(modality=np.zeros_like(batch.modality), image=np.zeros_like(batch.image))
    for name, x in flatten_dict(grad(batch)).items():
        assert np.abs(x).max() > 0, name
    for name, x in flatten_dict(grad(words)).items():
        assert (np.abs(x).max() > 0) == (not name[-1].endswith("_1")), name


def test_transfusion_denoises_with_the_tower_of_pictures():
    """The first picture sees the same in a row of its own noise and as a copy behind the row."""
    batch = random_batch(3)
    found = {}
    for context in ("noisy", "clean"):
        model, params = make(
            transfusion_config(dict(towers=2, untie=UNTIE), context=context, context_time=0.0)
        )
        signal = model.parts.signal(params, batch)
        t = jnp.full(signal.shape[:2], 0.3)

        def velocity(params, model=model, signal=signal, t=t):
            return transfusion.denoise(model.parts, params, batch, signal, t)[1].velocity[0, 0]

        found[context] = np.asarray(jax.jit(velocity)(params))
        params["decoder"] = moved(params["decoder"], "o")
        changed = np.asarray(jax.jit(velocity)(params))
        assert np.abs(changed - found[context]).max() > 1e-2
    np.testing.assert_allclose(found["clean"], found["noisy"], atol=2e-5)
