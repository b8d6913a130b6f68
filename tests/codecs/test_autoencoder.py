"""The codec's network: Chameleon's shapes, its padding, its ids, its cost."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from tiny import ROOT, tiny_codec

from mmjax import config, run
from mmjax.codecs import autoencoder
from mmjax.codecs.autoencoder import CodecConfig
from mmjax.codecs.quantise import QuantiserConfig
from mmjax.error import UserError
from mmjax.layers.conv import Conv, PlaceAttention, double
from mmjax.mesh import Rules, make_mesh

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))


def tiny(**quantiser) -> CodecConfig:
    c = tiny_codec(**quantiser)
    return CodecConfig(**c | {"quantiser": QuantiserConfig(**c["quantiser"]), "attend": ()})


def weights(c: CodecConfig):
    """Random parameters, with codes as far apart as what the encoder gives."""
    layers = autoencoder.modules(c, RULES)
    boxed = autoencoder.boxed_init(jax.random.key(0), c, layers)
    params = jax.tree.map(
        lambda x: getattr(x, "value", x), boxed, is_leaf=lambda x: hasattr(x, "value")
    )
    if "book" in params:
        params["book"]["codes"] *= c.quantiser.codes
    return autoencoder.build(c, RULES), params


def chameleon() -> CodecConfig:
    c = config.load(str(ROOT / "experiments" / "codec_chameleon.py"))
    return config.resolve(c, run.families()).model.codec


def test_chameleons_shapes():
    c = chameleon()
    assert (c.factor, c.side, c.tokens, c.codes) == (16, 32, 1024, 8192)
    codec = autoencoder.build(c, RULES)
    params = jax.eval_shape(lambda: weights(c)[1])
    pixels = jax.ShapeDtypeStruct((2, 512, 512, 3), jnp.uint8)
    ids = jax.eval_shape(lambda p, x: autoencoder.encode_ids(codec, p, x), params, pixels)
    assert (ids.shape, ids.dtype) == ((2, 1024), jnp.int32)
    made = jax.eval_shape(lambda p, x: autoencoder.decode_ids(codec, p, x), params, ids)
    assert (made.shape, made.dtype) == (pixels.shape, pixels.dtype)
    assert params["book"]["codes"].shape == (1, 8192, 256)
    z = jax.eval_shape(codec.encode, params, jax.ShapeDtypeStruct((2, 512, 512, 3), jnp.float32))
    assert z.shape == (2, 32, 32, 256)


def test_chameleons_network_has_as_many_weights_as_its_table():
    """Layer by layer, as the released tokenizer's listing has them."""

    def conv(first, last, side=3):
        return side * side * first * last + last

    def residual(first, last):
        skip = conv(first, last, 1) if first != last else 0
        return 2 * first + conv(first, last) + 2 * last + conv(last, last) + skip

    attention = 2 * 512 + 4 * conv(512, 512, 1)
    middle = 2 * residual(512, 512) + attention
    levels = [(128, 128), (128, 128), (128, 256), (256, 256), (256, 512)]
    encoder = conv(3, 128) + middle + 2 * 512 + conv(512, 256) + conv(256, 256, 1)
    encoder += sum(residual(a, b) + residual(b, b) for a, b in levels)
    encoder += sum(conv(b, b) for _, b in levels[:-1])
    widths = [(512, 512), (512, 256), (256, 256), (256, 128), (128, 128)]
    decoder = conv(256, 256, 1) + conv(256, 512) + middle + 2 * 128
    decoder += sum(residual(a, b) + 2 * residual(b, b) for a, b in widths)
    decoder += sum(conv(b, b) for _, b in widths[:-1])
    params = jax.eval_shape(lambda: weights(chameleon())[1])

    def count(name):
        return sum(x.size for x in jax.tree.leaves(params[name]))

    assert count("encoder") == encoder
    assert count("decoder") == decoder
    assert count("last") == conv(128, 3)


def test_a_step_of_two_pads_behind_and_below_alone():
    x = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype(np.float32)
    layer = Conv(RULES, "float32", 3, stride=2)
    params = jax.tree.map(
        lambda b: b.value if hasattr(b, "value") else b,
        layer.init(jax.random.key(0), x), is_leaf=lambda b: hasattr(b, "value"),
    )  # fmt: skip
    w, found = np.asarray(params["params"]["w"]), layer.apply(params, x)

    def by_loop(before):
        wide = np.pad(x[0], ((before, 1), (before, 1), (0, 0)))
        places = [(i, j) for i in range(3) for j in range(3)]
        return np.array(
            [np.tensordot(wide[2 * i : 2 * i + 3, 2 * j : 2 * j + 3], w, 3) for i, j in places]
        ).reshape(1, 3, 3, 3)

    np.testing.assert_allclose(found, by_loop(0), atol=1e-5)
    assert abs(np.asarray(found) - by_loop(1)).max() > 0.1


def test_places_look_at_each_other_after_a_norm_of_32_groups():
    rng = np.random.default_rng(0)
    x = (2.0 + 3.0 * rng.normal(size=(2, 2, 3, 64))).astype(np.float32)
    layer = PlaceAttention(RULES, "float32")
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x))["params"]
    shapes = jax.tree.map(
        lambda b: getattr(b, "value", b).shape, shapes, is_leaf=lambda b: hasattr(b, "value")
    )
    p = jax.tree.map(
        lambda s: (0.2 * rng.normal(size=s)).astype(np.float32),
        shapes, is_leaf=lambda s: isinstance(s, tuple),
    )  # fmt: skip
    found = np.asarray(layer.apply({"params": p}, x))

    def line(name, y, biased):
        return y @ p[name]["w"][0, 0] + biased * p[name]["bias"]

    def plain(groups, power=-0.5, biased="qkvo"):
        want = np.empty(x.shape)
        for i, picture in enumerate(x.astype(np.float64)):
            y = picture.reshape(6, groups, -1)
            y = (y - y.mean((0, 2), keepdims=True)) / np.sqrt(y.var((0, 2), keepdims=True) + 1e-6)
            y = y.reshape(6, 64) * p["norm_scale"] + p["norm_bias"]
            q, k, v = (line(name, y, name in biased) for name in "qkv")
            score = np.exp(q @ k.T * 64**power)
            y = line("o", score / score.sum(1, keepdims=True) @ v, "o" in biased)
            want[i] = picture + y.reshape(picture.shape)
        return want

    np.testing.assert_allclose(found, plain(32), atol=1e-4)
    # A bias of the keys moves all scores of a query alike, and so nothing.
    np.testing.assert_allclose(plain(32, biased="qvo"), plain(32), atol=1e-9)
    others = [plain(32, biased=b) for b in ("kvo", "qko", "qkv")]
    for other in (plain(16), plain(32, power=-1), *others):
        assert abs(found - other).max() > 0.01


def test_doubling_repeats_each_place():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    want = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    np.testing.assert_array_equal(double(x)[0, :, :, 0], want)


@pytest.mark.parametrize(
    "quantiser",
    [
        {},
        {"kind": "rvq", "depth": 2},
        {"kind": "fsq", "codes": 60, "width": 3, "levels": (5, 4, 3)},
    ],
)
def test_ids_go_to_codes_and_back(quantiser):
    c = tiny(**quantiser)
    ids = np.random.default_rng(0).integers(0, c.quantiser.codes, (3, c.side**2, c.quantiser.depth))
    ids = (ids + np.arange(c.quantiser.depth) * c.quantiser.codes).reshape(3, c.tokens)
    codes = autoencoder.from_ids(c, jnp.asarray(ids, jnp.int32))
    assert codes.shape == (3, c.side, c.side, c.quantiser.depth)
    assert int(codes.max()) < c.quantiser.codes
    np.testing.assert_array_equal(autoencoder.to_ids(c, codes), ids)
    # Raster order: the second id of a picture is the place to the right, or the second level.
    second = codes[:, 0, 0, 1] if c.quantiser.depth > 1 else codes[:, 0, 1, 0]
    np.testing.assert_array_equal(second, ids[:, 1] % c.quantiser.codes)


@pytest.mark.parametrize("quantiser", [{}, {"kind": "rvq", "depth": 2}])
def test_pictures_become_ids_and_pictures(quantiser):
    c = tiny(**quantiser)
    codec, params = weights(c)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    ids = jax.jit(lambda p, x: autoencoder.encode(codec, p, x))(params, pixels)
    assert ids.shape == (3, 16 * c.quantiser.depth) and ids.dtype == jnp.int32
    assert len(np.unique(ids)) > 3 and 0 <= int(ids.min()) and int(ids.max()) < c.codes
    made = jax.jit(lambda p, i: autoencoder.decode(codec, p, i))(params, ids)
    assert made.shape == pixels.shape and made.dtype == jnp.uint8
    other = jax.jit(lambda p, i: autoencoder.decode(codec, p, i))(params, ids[::-1])
    assert (np.asarray(made) != np.asarray(other)).any()


def test_latents_are_the_mean_of_a_kl_codec():
    c = tiny(kind="kl", codes=0)
    codec, params = weights(c)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    z = codec.encode(params, autoencoder.to_signal(pixels))
    latents = autoencoder.encode_latents(codec, params, pixels)
    assert z.shape == (3, 4, 4, 8) and latents.shape == (3, 4, 4, 4)
    np.testing.assert_array_equal(latents, z[..., :4])
    made = autoencoder.decode_latents(codec, params, latents)
    assert made.shape == pixels.shape and made.dtype == jnp.uint8


def test_flops_are_those_of_the_convolutions_that_run():
    c = replace(tiny(), image=16, channels=16, multipliers=(1, 2, 2), blocks=2)
    codec = autoencoder.build(c, RULES)
    params = jax.eval_shape(lambda: weights(c)[1])

    def whole(params, x):
        z = codec.encode(params, x)
        return codec.last(params, codec.features(params, z))

    jaxpr = jax.make_jaxpr(whole)(params, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32))

    def convolutions(jaxpr):
        for e in jaxpr.eqns:
            if e.primitive.name == "conv_general_dilated":
                kernel = e.invars[1].aval.shape
                yield 2.0 * np.prod(e.outvars[0].aval.shape) * np.prod(kernel[:3])
            for sub in jaxprs_in_params(e.params):
                yield from convolutions(sub)

    counted = sum(convolutions(jaxpr.jaxpr))
    assert autoencoder.flops(c) == pytest.approx(counted, rel=0.03)
    assert autoencoder.flops(replace(c, blocks=1)) < 0.8 * counted


def test_a_codec_of_no_levels_is_refused():
    with pytest.raises(UserError, match=r"codec\.multipliers"):
        replace(tiny(), multipliers=())


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"channels": 0}, r"codec\.channels=0 must be at least 1"),
        ({"latent": 0}, r"codec\.latent=0"),
        ({"blocks": 0}, r"codec\.blocks=0"),
        ({"multipliers": (1, 0)}, r"codec\.multipliers"),
        ({"dtype": "float33"}, r"codec\.dtype='float33' is unknown; have: float32, bfloat16"),
        ({"attend": (12,)}, r"codec\.attend=\(12,\) has 12; levels have sides \["),
    ],
)
def test_what_no_codec_has_is_refused(change, word):
    with pytest.raises(UserError, match=word):
        replace(tiny(), **change)


@pytest.mark.parametrize("shape", [(4, 16), (16, 4), (8, 8)])
def test_a_codec_goes_over_pictures_of_any_shape(shape):
    """Its attention sits at levels, wherever their sides come out."""
    c = replace(tiny(kind="kl", codes=0), attend=(8,))
    codec, params = weights(c)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.uint8)
    made = autoencoder.encode_latents(codec, params, pixels)
    assert made.shape == (2, shape[0] // c.factor, shape[1] // c.factor, c.quantiser.width)
    assert autoencoder.decode_latents(codec, params, made).shape == pixels.shape


def test_a_picture_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"^codec\.image=10 must be divisible by 4"):
        replace(tiny(), image=10, multipliers=(1, 1, 1))


def test_ids_are_those_of_f32_whatever_the_precision_in_training():
    """And so the same however many are encoded together; what training itself rounds is not."""
    c = tiny(codes=256)
    params = weights(c)[1]
    exact, rounded = (
        autoencoder.build(replace(c, dtype=d), RULES) for d in ("float32", "bfloat16")
    )
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3)).astype(np.uint8)
    encode = jax.jit(partial(autoencoder.encode_ids, rounded))
    together = encode(params, pixels)
    np.testing.assert_array_equal(together, autoencoder.encode_ids(exact, params, pixels))
    np.testing.assert_array_equal(together[:4], encode(params, pixels[:4]))
    coarse = jax.jit(partial(autoencoder.encode_ids, rounded._replace(read=rounded.encode)))
    assert (np.asarray(coarse(params, pixels)) != together).any()


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("count", [24, 20, 4, 6])
def test_groups_are_of_few_pictures_and_empty_ones_cost_nothing(monkeypatch, devices, count):
    mesh = make_mesh(devices, 1, 1, jax.devices()[:devices])
    c, rules = tiny(), Rules(mesh)
    monkeypatch.setattr(autoencoder, "HELD", 3 * 4 * c.channels * c.image**2)
    assert autoencoder.at_a_time(c) == 3
    codec, seen = autoencoder.build(c, rules), set()

    def function(x):
        seen.add(len(x))
        return x.astype(jnp.float32).mean((1, 2, 3)) + 1.0

    x = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    if count % devices == 0:
        x = jax.device_put(x, rules.sharding("batch"))
    grouped = jax.jit(lambda x, used: autoencoder.in_groups(codec, function, x, used))
    every = np.ones(count, bool)
    want = np.asarray(function(x))
    seen.clear()
    np.testing.assert_allclose(grouped(x, every), want, rtol=1e-6)
    shards = devices if count % devices == 0 else 1
    assert seen == {shards * min(3, count // shards)}
    assert not np.asarray(grouped(x, ~every)).any()
    one = every & (np.arange(count) == count - 1)
    found = np.asarray(grouped(x, one))
    assert found[-1] == pytest.approx(want[-1]) and (found == 0).any() == (count > max(seen))
