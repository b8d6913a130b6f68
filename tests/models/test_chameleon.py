"""Chameleon's one loss over words and codes against plain numpy; causality, packing, its codec."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import random_batch
from tiny import tiny_chameleon_config, tiny_codec

from mmjax import config, losses, run
from mmjax.batch import IMAGE, TEXT, Vocabulary, causal_mask
from mmjax.codecs import autoencoder
from mmjax.error import UserError
from mmjax.layers.attention import Attention
from mmjax.layers.position import rope_angles
from mmjax.mesh import Rules, make_mesh
from mmjax.models import chameleon, decoder
from mmjax.step import gradients
from mmjax.values import build

V = Vocabulary(52, masks=(7, 8), codes=40, code_count=12)
C = replace(config.resolve(tiny_chameleon_config(), run.families()).model, z_weight=1e-2)
RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
MODEL = chameleon.build(C, V, RULES)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
PARTS = MODEL.parts
LOSS = jax.jit(MODEL.loss)
SIZE = C.tokens  # 16


def packed(seed: int):
    """Documents of words and pictures, some of it not trained on; see `random_batch`."""
    batch = random_batch(seed, length=64, slots=2, patches=SIZE, size=8)
    weight = np.random.default_rng(seed).integers(0, 3, batch.weight.shape)
    return batch._replace(weight=batch.weight * weight.astype(np.float32))


BATCH = packed(3)


def keys(count: int = 2):
    return jax.random.split(jax.random.key(7), count)


def codes_of(pixels):
    """[i, h, w, 3] -> [i, p] ids of the vocabulary."""
    return np.asarray(autoencoder.encode_ids(PARTS.codec, PARAMS["codec"], pixels)) + V.codes


def with_codes(batch):
    """The same batch as coded data have it: codes among the tokens, and pixels of size 0."""
    tokens = np.array(batch.tokens)
    for row, image, pixels in zip(tokens, batch.image, batch.pixels, strict=True):
        for slot, codes in enumerate(codes_of(pixels), start=1):
            if (image == slot).any():
                row[image == slot] = codes
    return batch._replace(tokens=tokens, pixels=np.zeros((*batch.pixels.shape[:2], 0, 0, 3)))


CODED = with_codes(BATCH)


@jax.jit
def hidden(batch):
    x = PARTS.embed(PARAMS, batch.tokens)
    return PARTS.run(PARAMS, x, causal_mask(batch), batch.position)[0]


def plain(batch) -> list[tuple[int, float, float, float]]:
    """(modality, weight, nll, log Z) of each target, position by position."""
    logits = np.asarray(hidden(batch), np.float64) @ np.asarray(PARAMS["head"]["w"], np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    found = []
    for r, j in np.argwhere(batch.segment[:, 1:] == batch.segment[:, :-1]):
        if batch.segment[r, j]:
            nll = log_z[r, j] - logits[r, j, batch.tokens[r, j + 1]]
            found.append((batch.modality[r, j + 1], batch.weight[r, j + 1], nll, log_z[r, j]))
    return found


def mean(rows) -> float:
    """Of (weight, value)."""
    return sum(w * x for w, x in rows) / sum(w for w, _ in rows)


def test_the_batch_has_what_the_tests_below_need():
    assert (BATCH.segment.max(1) >= 2).any() and (BATCH.segment == 0).any()
    assert len(np.unique(BATCH.image)) == 3  # slots 1 and 2 in one row
    assert set(np.unique(BATCH.weight[BATCH.segment > 0])) == {0, 1, 2}
    assert len(np.unique(CODED.tokens[CODED.modality == IMAGE])) > 3


def test_loss_is_the_mean_over_words_codes_and_sentinels():
    terms = LOSS(PARAMS, BATCH, keys())
    rows = plain(CODED)
    want = mean([(w, nll + C.z_weight * z**2) for _, w, nll, z in rows])
    got = losses.total(terms, MODEL.weights)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(terms["tokens"].count, sum(w for _, w, _, _ in rows))
    assert abs(mean([(w, nll) for _, w, nll, _ in rows]) - want) > 1e-2  # log Z counts
    words = mean([(w, nll + C.z_weight * z**2) for kind, w, nll, z in rows if kind == TEXT])
    assert abs(words - want) > 1e-3  # codes too
    # BOI and EOI are trained on: a batch where only they weigh anything has a loss.
    only = np.isin(CODED.tokens, [V.boi, V.eoi])
    alone = LOSS(PARAMS, BATCH._replace(weight=only.astype(np.float32)), keys())
    assert float(alone["tokens"].count) == only.sum() > 0 < float(alone["tokens"].sum)


def test_each_modality_is_averaged_over_its_own_tokens():
    found = losses.means(LOSS(PARAMS, BATCH, keys()))
    rows = plain(CODED)
    logits = np.asarray(hidden(CODED), np.float64) @ np.asarray(PARAMS["head"]["w"], np.float64)
    for kind, name in ((TEXT, "text"), (IMAGE, "image")):
        mine = [(w, nll, z) for k, w, nll, z in rows if k == kind]
        np.testing.assert_allclose(
            found[f"{name}/nll"], mean([(w, nll) for w, nll, _ in mine]), rtol=1e-5
        )
        np.testing.assert_allclose(
            found[f"{name}/log_z_squared"], mean([(w, z**2) for w, _, z in mine]), rtol=1e-5
        )
    hits = logits[:, :-1].argmax(-1) == CODED.tokens[:, 1:]
    same = (CODED.segment[:, 1:] == CODED.segment[:, :-1]) & (CODED.segment[:, 1:] > 0)
    weight = CODED.weight[:, 1:] * same * (CODED.modality[:, 1:] == IMAGE)
    np.testing.assert_allclose(
        found["image/accuracy"], (weight * hits).sum() / weight.sum(), atol=1e-6
    )
    assert abs(float(found["text/nll"]) - float(found["image/nll"])) > 1e-3


def test_weights_of_modalities_scale_what_their_tokens_count():
    model = chameleon.build(replace(C, text_weight=2.0, image_weight=0.5), V, RULES)
    terms = jax.jit(model.loss)(PARAMS, CODED, keys())
    scaled = [((2.0, 0.5)[kind] * w, nll + C.z_weight * z**2) for kind, w, nll, z in plain(CODED)]
    np.testing.assert_allclose(losses.means(terms)["tokens"], mean(scaled), rtol=1e-5)
    base = losses.means(LOSS(PARAMS, CODED, keys()))
    assert abs(float(base["tokens"]) - mean(scaled)) > 1e-3
    for name in ("text/nll", "image/nll"):  # what is logged of each is not scaled
        np.testing.assert_allclose(losses.means(terms)[name], base[name], rtol=1e-5)


def test_gradient_of_the_z_term_is_twice_log_z_times_the_softmax():
    """The head is the identity, so that what it reads are the logits."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 6, 9)).astype(np.float32))
    targets = jnp.asarray(rng.integers(0, 9, (2, 6)))
    weight = jnp.asarray(rng.integers(0, 3, (2, 6)).astype(np.float32))

    def gradient(z_weight):
        def objective(x):
            return losses.token_loss(x, jnp.eye(9), targets, weight, z_weight, 2)[0]

        return np.asarray(jax.grad(objective)(logits))

    log_z = jax.nn.logsumexp(logits, axis=-1)
    want = 2 * 0.3 * (weight * log_z)[..., None] * jax.nn.softmax(logits, axis=-1)
    np.testing.assert_allclose(gradient(0.3) - gradient(0.0), want, atol=2e-6)
    assert np.abs(np.asarray(want)).max() > 0.1


@pytest.mark.parametrize("kind", [TEXT, IMAGE])
def test_a_token_changes_nothing_before_it_and_something_after(kind):
    before = np.asarray(hidden(CODED))
    inner = (CODED.modality == kind) & (CODED.segment > 0)
    inner[:, :-1] &= CODED.segment[:, :-1] == CODED.segment[:, 1:]  # some of its document follows
    for r, j in np.argwhere(inner)[::9]:
        tokens = CODED.tokens.copy()
        tokens[r, j] = V.codes + 11 if tokens[r, j] != V.codes + 11 else V.codes
        change = np.abs(np.asarray(hidden(CODED._replace(tokens=tokens))) - before).max(-1)
        after = (CODED.segment[r] == CODED.segment[r, j]) & (np.arange(64) >= j)
        assert (change[r][after] > 0).all()
        assert (change[r][~after & (CODED.segment[r] > 0)] == 0).all()
        assert (change[1 - r][CODED.segment[1 - r] > 0] == 0).all()


def test_documents_in_one_row_equal_each_alone():
    together = np.asarray(hidden(CODED))
    r = int(CODED.segment.max(1).argmax())
    numbers = range(1, CODED.segment[r].max() + 1)
    assert len(numbers) >= 2
    for number in numbers:
        at = CODED.segment[r] == number
        n = int(at.sum())
        alone = {}
        for name in ("tokens", "modality", "position", "image", "weight"):
            column = np.zeros((2, 64), getattr(CODED, name).dtype)
            column[0, :n] = getattr(CODED, name)[r, at]
            alone[name] = column
        segment = np.zeros((2, 64), np.int32)
        segment[0, :n] = 1
        moved = CODED._replace(**alone, segment=segment)
        np.testing.assert_allclose(hidden(moved)[0, :n], together[r, at], atol=1e-5)
    joined = CODED._replace(segment=np.minimum(CODED.segment, 1))
    second = CODED.segment[r] == 2
    assert np.abs(np.asarray(hidden(joined))[r, second] - together[r, second]).max() > 1e-3


def test_pictures_encoded_on_the_way_count_as_codes_in_the_data():
    on_the_way, before = (LOSS(PARAMS, batch, keys()) for batch in (BATCH, CODED))
    assert set(on_the_way) == set(before)
    for name, term in on_the_way.items():
        np.testing.assert_allclose(term.sum, before[name].sum, rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(PARTS.coded(PARAMS, BATCH).tokens, CODED.tokens)
    others = BATCH._replace(pixels=255 - BATCH.pixels)
    assert float(LOSS(PARAMS, others, keys())["tokens"].sum) != float(before["tokens"].sum)
    text = BATCH._replace(pixels=CODED.pixels)  # neither pixels nor codes: padding is read
    assert abs(float(LOSS(PARAMS, text, keys())["tokens"].sum - before["tokens"].sum)) > 1e-2


@pytest.fixture(scope="module")
def grads():
    return jax.jit(lambda p: gradients(MODEL, p, BATCH, keys(), 1)[0])(PARAMS)


def test_the_codec_is_frozen(grads):
    assert set(grads) == {"embed", "decoder", "head"} == set(PARAMS) - {"codec"}
    assert float(jnp.abs(grads["embed"]["table"]).max()) > 0
    # Though the loss does depend on it.
    other = PARAMS | {"codec": jax.tree.map(lambda x: 0.5 - x, PARAMS["codec"])}
    got, base = (float(LOSS(p, BATCH, keys())["tokens"].sum) for p in (other, PARAMS))
    assert got != base


def test_gradient_norms_are_logged_by_modality(grads):
    norms = MODEL.watch(grads)
    table, head = (np.asarray(grads[a][b]) for a, b in (("embed", "table"), ("head", "w")))
    words, codes = slice(0, 40), slice(40, 52)
    want = {
        "text/embed_grad_norm": table[words],
        "text/head_grad_norm": head[:, words],
        "image/embed_grad_norm": table[codes],
        "image/head_grad_norm": head[:, codes],
    }
    assert set(norms) == set(want)
    for name, x in want.items():
        np.testing.assert_allclose(norms[name], np.sqrt((x**2).sum()), rtol=1e-5, err_msg=name)
    assert len({round(float(x), 6) for x in norms.values()}) == 4
    # As Chameleon's own ids lie: codes among words, which go on behind them.
    among = chameleon.watch(replace(V, codes=4, code_count=12), grads)
    np.testing.assert_allclose(among["image/head_grad_norm"], np.linalg.norm(head[:, 4:16]), 1e-5)
    words = np.r_[0:4, 16:52]
    np.testing.assert_allclose(among["text/head_grad_norm"], np.linalg.norm(head[:, words]), 1e-5)
    np.testing.assert_allclose(among["text/embed_grad_norm"], np.linalg.norm(table[words]), 1e-5)


def test_the_last_layer_and_the_largest_score_are_watched():
    terms = LOSS(PARAMS, CODED, keys())
    for kind, name in ((TEXT, "text"), (IMAGE, "image")):
        count = ((CODED.modality == kind) & (CODED.segment > 0)).sum()
        assert float(terms[f"{name}/last_norm"].count) == count > 0
    assert all(float(x) > 0 for x in (terms["text/last_norm"].sum, terms["attention_peak"].sum))
    sharp = jax.tree.map(lambda x: x, PARAMS)
    sharp["decoder"]["blocks"]["attention"]["q_norm_scale"] *= 3.0
    peak = float(LOSS(sharp, CODED, keys())["attention_peak"].sum)
    assert peak > 1.5 * float(terms["attention_peak"].sum)


def test_qk_norm_is_a_layer_norm_before_rope():
    d, h, g, k = 32, 4, 2, 8
    rng = np.random.default_rng(1)
    layer = Attention(RULES, "float32", h, g, k, True, False, 1, 1, 1)
    x = rng.normal(size=(1, 5, d)).astype(np.float32)
    place = np.arange(5, dtype=np.int32)[None] * 3
    mask = np.tril(np.ones((5, 5), bool))[None]
    params = {
        "q": rng.normal(size=(d, h, k)), "k": rng.normal(size=(d, g, k)),
        "v": rng.normal(size=(d, g, k)), "o": rng.normal(size=(h, k, d)),
        "q_norm_scale": rng.uniform(0.5, 2, (1, k)), "q_norm_bias": rng.normal(size=(1, k)),
        "k_norm_scale": rng.uniform(0.5, 2, (1, k)), "k_norm_bias": rng.normal(size=(1, k)),
    }  # fmt: skip
    angles = rope_angles(jnp.asarray(place), k, 1e4)
    given = {"params": jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)}
    got = np.asarray(layer.apply(given, jnp.asarray(x), mask, angles)[0])

    def norm(y, name, centred):
        y = y - centred * y.mean(-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
        return y * params[f"{name}_norm_scale"] + params[f"{name}_norm_bias"]

    def turn(y):
        """By complex numbers: half the head is the real part, half the imaginary one."""
        z = y[..., : k // 2] + 1j * y[..., k // 2 :]
        turned = z * np.exp(1j * place[0][:, None, None] * 1e4 ** (-np.arange(0, k, 2) / k))
        return np.concatenate([turned.real, turned.imag], -1)

    def by_hand(norm_first=True, centred=True):
        q, key, v = (np.einsum("ld,dhk->lhk", x[0], params[n]) for n in "qkv")
        both = []
        for y, name in ((q, "q"), (key, "k")):
            y = turn(norm(y, name, centred)) if norm_first else norm(turn(y), name, centred)
            both.append(y)
        out = np.zeros((5, h, k))
        for i in range(h):
            scores = both[0][:, i] @ both[1][:, i // (h // g)].T / np.sqrt(k)
            weights = np.exp(np.where(mask[0], scores, -np.inf))
            out[:, i] = weights / weights.sum(-1, keepdims=True) @ v[:, i // (h // g)]
        return np.einsum("lhk,hkd->ld", out, params["o"])

    np.testing.assert_allclose(got[0], by_hand(), atol=1e-3, rtol=1e-4)
    assert np.abs(got[0] - by_hand(norm_first=False)).max() > 0.1
    assert np.abs(got[0] - by_hand(centred=False)).max() > 0.1


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_dropout_is_taken_of_what_a_branch_gives_last_of_all(norm, monkeypatch):
    """Behind attention and behind the MLP, and behind their norm where that comes last."""
    c = replace(C, decoder=replace(C.decoder, norm=norm, dropout=0.1))
    model = chameleon.build(c, V, RULES)

    def outputs(params, factors):
        left = itertools.cycle(factors)  # attention's and the MLP's, in each block that is traced
        monkeypatch.setattr(decoder, "dropout", lambda x, rate, keys: x * next(left))
        x = model.parts.embed(params, CODED.tokens)
        at = causal_mask(CODED), CODED.position
        return np.asarray(model.parts.run(params, x, *at, keys=keys())[0])

    plain, blocks = outputs(PARAMS, (1.0, 1.0)), PARAMS["decoder"]["blocks"]
    for name, weight, factors in (("attention", "o", (3.0, 1.0)), ("mlp", "down", (1.0, 3.0))):
        if norm == "pre":
            thrice = {name: blocks[name] | {weight: 3.0 * blocks[name][weight]}}
        else:
            thrice = {f"{name}_norm": 3.0 * blocks[f"{name}_norm"]}
        params = PARAMS | {"decoder": PARAMS["decoder"] | {"blocks": blocks | thrice}}
        found = outputs(PARAMS, factors)
        np.testing.assert_allclose(found, outputs(params, (1.0, 1.0)), atol=1e-4)
        assert np.abs(found - plain).max() > 1e-2


def test_flops_count_what_a_loop_counts():
    d = C.decoder
    pairs, tokens = int(np.asarray(causal_mask(CODED)).sum()), int((CODED.segment > 0).sum())
    kv = 2 * d.width * d.head_dim * (d.heads + 2 * d.kv_heads)
    layer = tokens * (kv + 2 * d.width**2 + 6 * d.width * d.mlp) + 4 * pairs * d.width
    read = sum(w > 0 for _, w, _, _ in plain(CODED))
    assert MODEL.flops(CODED) == d.depth * layer + 2 * read * d.width * V.size
    assert MODEL.flops(BATCH) == MODEL.flops(CODED)
    unread = CODED._replace(weight=np.zeros_like(CODED.weight))
    assert MODEL.flops(unread) == d.depth * layer


def test_a_codec_of_latents_is_refused():
    latents = build(autoencoder.CodecConfig, tiny_codec(kind="kl", codes=0))
    with pytest.raises(UserError, match=r"kind='kl' has no codes; use vq, rvq, fsq or lfq"):
        replace(C, codec=latents)
    assert replace(C, codec=C.codec).codes == 12
