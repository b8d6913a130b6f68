"""bf16: nothing is added up in it, in any family's forward or backward pass; float16 is refused."""

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.extend.core import jaxprs_in_params

from mmjax.error import UserError
from mmjax.layers.encoder import EncoderConfig
from mmjax.layers.weight import Layer
from mmjax.models.tokens import Embed

ADDS = ("reduce_sum", "scatter-add", "scatter_add", "cumsum", "cumlogsumexp", "reduce_window_sum")


def narrow_sums(jaxpr, found=None) -> list[str]:
    """What a program adds up in bf16, other than pairs and matrix products."""
    found = [] if found is None else found
    for eqn in jaxpr.eqns:
        outs = [v.aval for v in eqn.outvars if hasattr(v.aval, "dtype")]
        half = any(a.dtype == jnp.bfloat16 for a in outs)
        if eqn.primitive.name == "reduce_sum" and outs[0].size == eqn.invars[0].aval.size:
            half = False  # over an axis of one
        if eqn.primitive.name in ADDS and half:
            at = jax._src.source_info_util.summarize(eqn.source_info)
            found.append(f"{eqn.primitive.name} {[v.aval.str_short() for v in eqn.invars]} {at}")
        if eqn.primitive.name == "scan":
            found += kept_in_bf16(eqn)
        for inner in jaxprs_in_params(eqn.params):
            narrow_sums(inner, found)
    return found


def kept_in_bf16(eqn) -> list[str]:
    """Sums that a loop carries in bf16 and does nothing else with: gradients of its constants."""
    body = eqn.params["jaxpr"].jaxpr
    consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    out = []
    for given, made in zip(body.invars[consts : consts + carries], body.outvars, strict=False):
        if given.aval.dtype != jnp.bfloat16:
            continue
        uses = [e for e in body.eqns if any(v is given for v in e.invars)]
        if len(uses) == 1 and uses[0].primitive.name == "add_any" and uses[0].outvars[0] is made:
            out.append(f"carried sum {given.aval.str_short()}")
    return out


def traced(name: str) -> list[str]:
    """`narrow_sums` of the gradient of a family's loss in bf16; nothing is compiled."""
    e, model = families.of.__wrapped__(name, "bfloat16")
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = families.batch_of(e, 2)
    return narrow_sums(jax.make_jaxpr(lambda p: families.gradient(model, p, batch))(params).jaxpr)


@pytest.mark.parametrize("name", families.VARIANTS)
def test_nothing_is_added_up_in_bf16(name):
    assert not traced(name)


def test_the_search_finds_sums_in_bf16(monkeypatch):
    """Were tables, biases, scales and gates cast before they are looked up or broadcast."""
    exact = Layer.weight
    monkeypatch.setattr(Layer, "weight", lambda self, *args: exact(self, *args[:4]))
    with jax.numpy_dtype_promotion("standard"):
        found = traced("language")
    assert any(one.startswith("scatter-add") for one in found)  # the embedding


def looked_up(table, tokens, old: bool):
    if old:
        return jnp.take(table.astype(jnp.bfloat16), tokens, axis=0)
    layer = Embed(families.RULES, "bfloat16", *table.shape)
    return layer.apply({"params": {"table": table}}, tokens)


@pytest.mark.parametrize(("old", "least", "most"), [(False, 0.0, 1e-5), (True, 0.3, 1.0)])
def test_embedding_gradients_of_many_tokens(old, least, most):
    """32,768 tokens of which one in four is the same: what bf16 cannot count."""
    rng = np.random.default_rng(0)
    tokens = (rng.zipf(1.3, 32768) - 1).clip(max=999).astype(np.int32)
    g = jnp.asarray(1.0 + rng.normal(size=(32768, 16)), jnp.bfloat16)

    @jax.jit
    def gradient(table, tokens, g):
        made, back = jax.vjp(lambda table: looked_up(table, tokens, old), table)
        assert made.dtype == jnp.bfloat16
        return back(g)[0]

    exact = np.zeros((1000, 16))
    np.add.at(exact, tokens, np.asarray(g, np.float64))
    found = np.asarray(gradient(jnp.zeros((1000, 16)), tokens, g), np.float64)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert least <= error <= most


@pytest.mark.slow  # the search above guards the same line without compiling
@pytest.mark.parametrize("name", families.VARIANTS)
def test_gradients_in_bf16_are_those_in_f32(name):
    (e, half), (_, full) = families.of(name, "bfloat16"), families.of(name)
    params = jax.jit(full.init)(jax.random.key(0))

    @jax.jit
    def both(params, batch):
        return tuple(families.gradient(model, params, batch) for model in (half, full))

    a, b = (flatten_dict(g, sep="/") for g in both(params, families.batch_of(e, 64)))
    for path, exact in b.items():
        x, y = np.asarray(a[path], np.float64), np.asarray(exact, np.float64)
        assert np.linalg.norm(x - y) <= 0.1 * np.linalg.norm(y) + 1e-6, path


def test_float16_is_refused_wherever_a_precision_is_configured():
    for name in ("language", "chameleon", "clip", "llava"):
        with pytest.raises(UserError, match=r"dtype='float16' needs loss scaling.*give 'bfloat16'"):
            families.of.__wrapped__(name, "float16")
    decoder = dict(width=32, depth=1, heads=2, mlp=48, activation="gelu", eps=1e-5)
    with pytest.raises(UserError, match=r"encoder\.dtype='float16' needs loss scaling"):
        EncoderConfig(**decoder, remat=False, unroll=1, dtype="float16")
    with pytest.raises(UserError, match=r"encoder\.dtype='half' is unknown; have: float32, bf"):
        EncoderConfig(**decoder, remat=False, unroll=1, dtype="half")


def products(jaxpr) -> list[tuple]:
    """(dtypes, precision) of every product of a program."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated", "ragged_dot_general"):
            found.append(({str(v.aval.dtype) for v in eqn.invars[:2]}, eqn.params["precision"]))
        for inner in jaxprs_in_params(eqn.params):
            found += products(inner)
    return found


@pytest.mark.parametrize("name", ["transfusion", "u-net", "chameleon", "flamingo", "siglip"])
def test_f32_is_multiplied_as_f32_on_every_platform_and_bf16_pays_nothing(name):
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for dtype in ("float32", "bfloat16"):
        e, model = families.of.__wrapped__(name, dtype)
        params, batch = jax.eval_shape(model.init, jax.random.key(0)), families.batch_of(e, 2)
        loss = jax.make_jaxpr(lambda p, m=model, b=batch: families.gradient(m, p, b))
        found = products(loss(params).jaxpr)
        assert len(found) > 10
        for of, precision in found:
            if dtype == "float32" or "bfloat16" in of:  # what is f32 in bf16 runs is small
                assert (precision == highest) == (of == {"float32"}), (of, precision)
