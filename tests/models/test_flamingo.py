"""Flamingo: what words look at, what its cache holds, what trains."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import VOCABULARY, random_batch
from tiny import tiny_flamingo_config

import mmjax
from mmjax import config, optim, run
from mmjax.batch import SEP, Image, Text, last_image
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evaluate import evaluate
from mmjax.mesh import Rules, make_mesh
from mmjax.models import flamingo, language
from mmjax.models.aside import Kept, Read
from mmjax.models.family import split
from mmjax.sample.decode import logits_of, prefill
from mmjax.step import State, train_step
from mmjax.train import train

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
SMALL = {
    "model__vision__image": 4, "model__vision__patch": 2, "data__image": 4, "data__patch": 4,
    "model__decoder__depth": 3, "model__vision__encoder__depth": 1,
}  # fmt: skip
C = config.resolve(tiny_flamingo_config(**SMALL), run.families()).model
BATCH = random_batch(11, rows=3, length=24, patches=1)


def opened(params):
    """Gates begin at zero: here they are open."""
    blocks = dict(params["cross"]["blocks"])
    for name in ("attention_gate", "mlp_gate"):
        blocks[name] = 0.5 + 0.5 * jax.random.uniform(jax.random.key(3), blocks[name].shape)
    return params | {"cross": {"blocks": blocks}}


def made(c, vocabulary=VOCABULARY):
    model = flamingo.build(c, vocabulary, RULES)
    return model, jax.jit(model.init)(jax.random.key(0))


MODEL, SHUT = made(C)
PARAMS = opened(SHUT)


def test_gates_begin_at_zero_and_blocks_differ():
    blocks = SHUT["cross"]["blocks"]
    assert np.abs(blocks["attention_gate"]).max() == np.abs(blocks["mlp_gate"]).max() == 0
    assert blocks["attention_gate"].shape == (2, 1)
    assert np.abs(blocks["attention"]["q"][0] - blocks["attention"]["q"][1]).max() > 0.01


def drawn(shapes):
    """Weights from nowhere, for what needs no model's."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), shapes)


def logits(model, params, batch):
    parts = model.parts
    x = parts.clean(params, batch)
    hidden, _ = parts.run(params, x, parts.mask(batch), batch.position, tower=batch.modality)
    return logits_of(parts, params, hidden)


RUN = jax.jit(lambda params, batch: logits(MODEL, params, batch))


def slots_seen(batch):
    """`last_image`, counted position by position."""
    seen = np.zeros(batch.tokens.shape, int)
    for r, row in enumerate(np.asarray(batch.image)):
        for j, segment in enumerate(batch.segment[r]):
            mine = [row[n] for n in range(j + 1) if batch.segment[r, n] == segment and row[n]]
            seen[r, j] = mine[-1] if mine and segment else 0
    return seen


def test_words_look_at_the_last_picture_of_their_document():
    seen = slots_seen(BATCH)
    np.testing.assert_array_equal(last_image(BATCH), seen)
    assert (
        ((seen == 0) & (BATCH.segment > 0)).any()
        and (seen.max(1) > 1).any()
        and BATCH.segment.max() > 1
    )
    # Also where pictures of a row stand in another order than their slots (CM3).
    other = BATCH._replace(image=np.where(BATCH.image > 0, BATCH.image.max() + 1 - BATCH.image, 0))
    np.testing.assert_array_equal(last_image(other), slots_seen(other))


def test_with_closed_gates_it_is_the_language_model_bit_for_bit():
    """Also of a depth, 3, that the interval, 2, does not divide; with blocks before or behind."""
    plain = language.build(language.Config(C.decoder, 0.0), VOCABULARY, RULES)
    shapes = jax.eval_shape(plain.init, jax.random.key(0))["decoder"]
    assert jax.tree.map(jnp.shape, SHUT["decoder"]) == jax.tree.map(jnp.shape, shapes)
    # Both read the same where pictures are: the embedding of 31.
    words = BATCH._replace(tokens=np.where(BATCH.modality == 1, 31, BATCH.tokens))
    shut = SHUT | {"added": {"image": SHUT["embed"]["table"][31]}}
    want = np.asarray(jax.jit(lambda p, b: logits(plain, p, b))(shut, words))
    held = BATCH.segment > 0
    last = replace(C, cross=replace(C.cross, before="last", norm="layer", kind="gelu"))
    other = flamingo.build(last, VOCABULARY, RULES)
    blocks = drawn(jax.eval_shape(other.init, jax.random.key(0))["cross"]["blocks"])
    for go, cross, count in (
        (RUN, shut["cross"]["blocks"], 2),
        (jax.jit(lambda p, b: logits(other, p, b)), blocks, 1),
    ):
        for gate in ("attention_gate", "mlp_gate"):
            cross = cross | {gate: jnp.zeros((count, 1))}
        mine = shut | {"cross": {"blocks": cross}}
        np.testing.assert_array_equal(np.asarray(go(mine, BATCH))[held], want[held])
        assert np.abs(go(opened(mine), BATCH) - want).max(-1)[held].min() > 1e-4


def test_a_picture_moves_what_looks_at_it_and_what_follows():
    """A pixel of slot 2 moves its lookers, and through them all behind; nothing else at all."""
    seen = slots_seen(BATCH)
    row = int(np.flatnonzero((BATCH.image == 2).any(1))[0])
    at = int(np.flatnonzero(BATCH.image[row] == 2)[0])
    pixels = BATCH.pixels.copy()
    pixels[row, 1] = 255 - pixels[row, 1]
    moved = np.abs(RUN(PARAMS, BATCH._replace(pixels=pixels)) - RUN(PARAMS, BATCH)).max(-1)
    document = BATCH.segment[row] == BATCH.segment[row, at]
    behind = document & (np.arange(document.size) >= at)
    assert (seen[row] == 2).sum() > 1
    others = ~behind & (BATCH.segment[row] > 0)  # what padding reads, nothing reads
    assert (moved[row, behind] > 1e-5).all() and moved[row, others].max() == 0
    assert np.delete(moved, row, 0).max() == 0


def test_who_sees_no_picture_reads_exactly_nothing():
    """Without pictures, however large what the slots hold, attention adds zero, not a mean."""
    words = BATCH._replace(image=np.zeros_like(BATCH.image), modality=np.zeros_like(BATCH.modality))
    blocks = PARAMS["cross"]["blocks"]
    shut = PARAMS | {"cross": {"blocks": blocks | {"attention_gate": 0 * blocks["attention_gate"]}}}
    np.testing.assert_array_equal(RUN(PARAMS, words), RUN(shut, words))
    assert np.abs(RUN(PARAMS, BATCH) - RUN(shut, BATCH)).max() > 1e-2


def test_the_cache_is_recomputation():
    """Rows read in part and continued word by word: behind a picture, before any, two documents."""
    parts, length = MODEL.parts, BATCH.tokens.shape[1]
    last = np.asarray(BATCH.segment == BATCH.segment.max(1, keepdims=True))
    end = np.where(last, np.arange(length)[None], 0).max(1) + 1
    cut = end - 3  # the last document's last three tokens are told one by one
    assert not BATCH.image[np.arange(3)[:, None], cut[:, None] + np.arange(3)].any()
    held = np.arange(length)[None] < cut[:, None]
    prompt = BATCH._replace(
        segment=np.where(held, BATCH.segment, 0), image=np.where(held, BATCH.image, 0)
    )

    fill = jax.jit(lambda params, prompt: prefill(parts, params, prompt, 0).cache)

    @jax.jit
    def step(params, cache, batch, column):
        def pick(x):
            return jnp.take_along_axis(jnp.asarray(x), column, axis=1)

        mask = jnp.take_along_axis(parts.mask(batch), column[:, :, None], axis=1)
        x = parts.embed(params, pick(batch.tokens))
        hidden, cache = parts.run(params, x, mask, pick(batch.position), cache, column)
        return logits_of(parts, params, hidden[:, 0]), cache

    cache, found = fill(PARAMS, prompt), []
    for n in range(3):
        told, cache = step(PARAMS, cache, BATCH, (cut + n)[:, None].astype(np.int32))
        found.append(told)
    whole = np.asarray(RUN(PARAMS, BATCH))
    want = np.stack([whole[r, c : c + 3] for r, c in enumerate(cut)])
    np.testing.assert_allclose(np.stack(found, 1), want, atol=1e-5, rtol=1e-5)
    assert isinstance(cache, Kept)
    looked = np.asarray(cache.looks)[:, 0]
    seen = slots_seen(BATCH)[np.arange(3), cut - 1]
    np.testing.assert_array_equal(np.where(looked.any(1), looked.argmax(1) + 1, 0), seen)
    assert 0 < seen.astype(bool).sum() < 3  # some look at a picture, some at none
    dark = fill(PARAMS, prompt._replace(pixels=0 * BATCH.pixels)).cross.keys
    assert np.abs(dark - fill(PARAMS, prompt).cross.keys).max() > 1e-2


def test_ids_apart_and_the_place_of_a_picture_are_rows_of_one_vocabulary():
    """A model with two ids apart, one of them standing for pictures, is one without, split."""
    vocabulary = replace(VOCABULARY, size=34)
    one = flamingo.build(replace(C, place=33), vocabulary, RULES)
    two = flamingo.build(replace(C, place=33, added=2), vocabulary, RULES)
    shapes, apart = (jax.eval_shape(m.init, jax.random.key(0)) for m in (one, two))
    assert "added" not in shapes and set(apart["added"]) == {"table", "w"}
    parted = drawn(apart)
    both = parted | {
        "embed": {"table": jnp.concatenate([parted["embed"]["table"], parted["added"]["table"]])},
        "head": {"w": jnp.concatenate([parted["head"]["w"], parted["added"]["w"]], axis=1)},
    }
    del both["added"]
    assert jax.tree.map(jnp.shape, both) == jax.tree.map(jnp.shape, shapes)
    words = BATCH._replace(tokens=np.where(BATCH.tokens == 9, 32, BATCH.tokens))
    assert (words.tokens == 32).any()
    words = words._replace(pixels=words.pixels[:, :0])
    mine, joined = (m.parts.clean(p, words).x for m, p in ((two, parted), (one, both)))
    np.testing.assert_array_equal(mine, joined)
    np.testing.assert_array_equal(two.parts.head(parted), one.parts.head(both))
    place = mine[words.modality == 1]
    np.testing.assert_array_equal(place[0], parted["added"]["table"][1])
    np.testing.assert_array_equal(mine[words.tokens == 32][0], parted["added"]["table"][0])
    with pytest.raises(UserError, match="do not fit a vocabulary of 33 ids"):
        flamingo.build(replace(C, place=33), replace(VOCABULARY, size=33), RULES)


def test_what_does_not_fit_is_named():
    for change, said in (
        ({"select": "cls"}, "model.select='cls' is unknown; have: patches, all"),
        ({"train": ("codec",)}, "must name some of vision, resampler, cross, added"),
        ({"added": -1}, "model.added=-1 must be at least 0"),
        ({"cross": replace(C.cross, every=4, before="last")}, "model.cross.every=4 leaves none"),
    ):
        with pytest.raises(UserError, match=said):
            replace(C, **change)
    for change, said in (
        ({"gate": "open"}, "model.cross.gate='open' is unknown; have: scalar, vector"),
        ({"before": "all"}, "model.cross.before='all' is unknown; have: first, last"),
        ({"every": 0}, "model.cross.every=0 must be at least 1"),
    ):
        with pytest.raises(UserError, match=said):
            replace(C.cross, **change)
    wide = replace(C.decoder, towers=2, untie=("ffn",))
    with pytest.raises(UserError, match=r"model.decoder.towers=2: .* give 1 tower"):
        replace(C, decoder=wide)


def test_work_is_counted_by_what_is_seen():
    """Half the pictures, half of what is spent on each; a word more pays for every block."""
    flops = MODEL.flops(BATCH)
    plain = language.forward_flops(C.decoder, VOCABULARY, BATCH)
    words = BATCH._replace(image=0 * BATCH.image)
    d, cross, inner = C.decoder.width, C.cross, C.cross.heads * C.cross.head_dim
    held = (BATCH.segment > 0).sum()
    aside = 2 * held * (4 * d * inner + 6 * d * cross.mlp)
    assert MODEL.flops(words) - language.forward_flops(C.decoder, VOCABULARY, words) == aside
    count, seeing = BATCH.image.max(1).sum(), (slots_seen(BATCH) > 0).sum()
    each = C.vision.flops + C.resampler.flops(32, 5) + 2 * 4 * 32 * inner * 3
    assert flops - plain == aside + count * each + 2 * 4 * seeing * 3 * inner


def same(a, b, part) -> bool:
    pairs = zip(jax.tree.leaves(a[part]), jax.tree.leaves(b[part]), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def size(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def test_what_is_frozen_stays_bit_for_bit_and_has_no_moments():
    """Nor does the resampler move, or anything become NaN, where nobody sees a picture."""
    model = flamingo.build(replace(C, train=("resampler", "cross", "added")), VOCABULARY, RULES)
    o = replace(config.resolve(tiny_flamingo_config(**SMALL), run.families()).optim, ema=0.0)
    tx = optim.optimizer(replace(o, kind="adamw", weight_decay=0.0), 10)
    trained, _ = split(PARAMS, model.frozen)
    start = State(jnp.zeros((), jnp.int32), PARAMS, tx.init(trained), None)
    assert size(trained) < size(start.opt) < 2.1 * size(trained) < size(PARAMS)
    go = jax.jit(partial(train_step, model, tx, lambda step: 1e-2, 0.0, 1, 0))
    words = BATCH._replace(image=0 * BATCH.image, modality=0 * BATCH.modality)
    (seen, metrics), (blind, _) = (go(start, batch) for batch in (BATCH, words))
    assert np.isfinite(float(metrics["loss"])) and float(metrics["grad_norm"]) > 0
    for part in ("vision", "embed", "decoder", "head"):
        assert same(PARAMS, seen.params, part)
    for part in ("resampler", "cross", "added"):
        assert not same(PARAMS, seen.params, part)
    assert same(PARAMS, blind.params, "resampler") and not same(PARAMS, blind.params, "cross")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(blind.params))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Questions about scenes; a language model, and a Flamingo that begins as it and leaves it."""
    home = tmp_path_factory.mktemp("flamingo")
    build.build("scenes", home / "scenes", options={"count": 200, "size": 8, "level": 2})
    plain = tiny_flamingo_config(home / "scenes", steps=1)
    plain.family = "language"
    plain.model = {"decoder": plain.model.decoder.to_dict(), "z_weight": 0.0}
    train(config.resolve(plain, run.families()), home / "plain", devices=jax.devices()[:1])
    c = tiny_flamingo_config(
        home / "scenes", steps=3, start={"language": str(home / "plain")},
        model__train=("resampler", "cross", "added"), model__vision__encoder__depth=1,
    )  # fmt: skip
    train(config.resolve(c, run.families()), home / "eyed")
    return home


@pytest.mark.slow
def test_it_begins_as_a_language_model(home):
    plain, eyed = (mmjax.load(home / name) for name in ("plain", "eyed"))
    fresh = eyed.run.init().params
    for part in ("embed", "decoder", "head"):
        assert same(plain.params, eyed.params, part) and not same(eyed.params, fresh, part)
    assert same(eyed.params, fresh, "vision")
    for part in ("resampler", "cross", "added"):
        assert not same(eyed.params, fresh, part)
    lines = (home / "eyed" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)


@pytest.mark.slow
def test_it_answers(home):
    model = mmjax.load(home / "eyed", devices=jax.devices()[:1])
    records = [pipeline.open_split(home / "scenes", "train")[i] for i in range(3)]
    asked = [
        [Image(records[0].images[0]), Text("How many?"), SEP],
        [Text("Which?"), *(Image(r.images[0]) for r in records[1:]), Text("red"), SEP],
        [Text("No picture here"), SEP],
    ]
    together = model.generate(asked, temperature=0.0, text=4)
    assert all(isinstance(text, str) for text in together)
    rows = model.laid(asked)
    read = model.run.model.parts.clean(model.params, rows)
    assert isinstance(read, Read) and read.looks.shape == (3, rows.tokens.shape[1], 2)
    found = evaluate(str(home / "eyed"), ["answers", "likelihood"])
    assert {"answers", "answers_blind", "text_nll"} <= set(found)
    for ask, said in (
        (lambda: model.generate([["a", mmjax.IMAGE]]), "a flamingo draws no pictures"),
        (lambda: model.generate([["a"]], guidance=2.0), "guidance is no option of a flamingo"),
    ):
        with pytest.raises(UserError, match=said):
            ask()


def test_a_picture_takes_one_position():
    assert config.resolve(tiny_flamingo_config(), run.families()).data.patches == 1
    with pytest.raises(UserError, match="patch"):
        config.resolve(tiny_flamingo_config(data__patch=4), run.families())
