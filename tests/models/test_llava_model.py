"""LLaVA and the language model alone: what they read, what trains, what they answer."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_batch import VOCABULARY, random_batch
from tiny import tiny_clip_config, tiny_llava_config

import mmjax
from mmjax import config, run
from mmjax.batch import SEP, Image, Text
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evaluate import evaluate
from mmjax.mesh import Rules, make_mesh
from mmjax.models import language, llava
from mmjax.sample.decode import logits_of, prefill
from mmjax.train import train

RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
SMALL = {"model__vision__image": 4, "model__vision__patch": 2, "data__image": 4, "data__patch": 2}
C = config.resolve(tiny_llava_config(**SMALL), run.families()).model
MODEL = llava.build(C, VOCABULARY, RULES)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
BATCH = random_batch(8)


def logits(model, params, batch):
    parts = model.parts
    hidden, _ = parts.run(
        params, parts.clean(params, batch), parts.mask(batch), batch.position, tower=batch.modality
    )
    return logits_of(parts, params, hidden)


RUN = jax.jit(lambda params, batch: logits(MODEL, params, batch))


def test_a_picture_is_seen_behind_it_in_its_document_and_nowhere_else():
    first = BATCH.image == 1
    row = int(np.flatnonzero(first.any(1))[0])
    at = int(np.flatnonzero(first[row])[0])
    pixels = BATCH.pixels.copy()
    pixels[row, 0] = 255 - pixels[row, 0]
    moved = np.abs(RUN(PARAMS, BATCH._replace(pixels=pixels)) - RUN(PARAMS, BATCH)).max(-1)
    document = BATCH.segment[row] == BATCH.segment[row, at]
    sees = document & (np.arange(document.size) >= at)
    assert (moved[row, sees] > 1e-4).all() and sees.sum() > 4
    others = ~sees & (BATCH.segment[row] > 0)  # what padding reads, nothing reads
    assert moved[row, others].max() == 0 and np.delete(moved, row, 0).max() == 0


def test_pictures_stand_in_the_order_of_their_slots():
    parts = MODEL.parts
    x = parts.clean(PARAMS, BATCH)
    row = int(np.argwhere(BATCH.image == 2)[0, 0])
    alone = parts.see(PARAMS, BATCH.pixels[row, 1][None])[0]
    np.testing.assert_allclose(x[row][BATCH.image[row] == 2], alone, atol=1e-5)
    other = parts.see(PARAMS, BATCH.pixels[row, 0][None])[0]
    assert np.abs(alone - other).max() > 1e-2
    words = BATCH.modality == 0
    np.testing.assert_array_equal(x[words], parts.embed(PARAMS, BATCH.tokens)[words])


def test_features_come_from_the_layers_and_positions_that_are_named():
    hidden = jax.random.normal(jax.random.key(0), (3, 2, 5, 8))  # one more than layers
    for layers, select, wanted in (
        ((-2,), "patches", hidden[1][:, 1:]),
        ((1,), "all", hidden[1]),
        ((0, -1), "patches", jnp.concatenate([hidden[0], hidden[2]], -1)[:, 1:]),
    ):
        c = replace(C, layers=layers, select=select)
        np.testing.assert_array_equal(llava.features(c, hidden), wanted)
        assert c.tokens == wanted.shape[1]
    mean = replace(C, vision=replace(C.vision, pool="mean"))  # no class token to leave out
    assert llava.features(mean, hidden[:, :, 1:]).shape[1] == mean.tokens == 4


def test_what_does_not_fit_is_named():
    for change, said in (
        ({"layers": (3,)}, r"model.layers=\(3,\) must name layers of the tower, -3 ... 2"),
        ({"layers": ()}, "must name layers"),
        ({"select": "cls"}, "model.select='cls' is unknown; have: patches, all"),
        ({"activation": "swish"}, "model.activation='swish' is unknown"),
        ({"train": ("codec",)}, "must name some of vision, projector, embed, decoder, head"),
        ({"train": ()}, "must name some of"),
    ):
        with pytest.raises(UserError, match=said):
            replace(C, **change)


def test_the_loss_is_on_words_alone_and_never_on_what_opens_a_picture():
    weight = np.asarray(language.word_weight(BATCH, VOCABULARY))
    target, before = BATCH.tokens[:, 1:], BATCH.modality[:, :-1]
    assert weight[target == VOCABULARY.boi].max() == 0 and weight[before == 1].max() == 0
    assert weight[BATCH.modality[:, 1:] == 1].max() == 0
    assert (weight[(target >= 5) & (BATCH.modality[:, 1:] == 0) & (before == 0)] == 1).all()


def test_a_language_model_does_not_see():
    c = language.Config(C.decoder, 0.0)
    model = language.build(c, VOCABULARY, RULES)
    params = {name: PARAMS[name] for name in ("embed", "decoder", "head")}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        lambda x: x.shape, jax.eval_shape(model.init, jax.random.key(0))
    )
    loss = jax.jit(lambda batch: model.loss(params, batch, None)["text"].sum)
    blank = BATCH._replace(pixels=np.zeros_like(BATCH.pixels))
    assert loss(BATCH) == loss(blank)
    seen = jax.jit(lambda batch: MODEL.loss(PARAMS, batch, None)["text"].sum)
    assert abs(seen(BATCH) - seen(blank)) > 1e-3
    words = model.flops(BATCH)
    assert 0 < words < MODEL.flops(BATCH)


def test_what_is_not_trained_gets_no_gradient():
    """Also where the tower's gradient would be asked for, none is computed: it is cut off."""

    def vision_moves(c):
        model = llava.build(c, VOCABULARY, RULES)
        grad = jax.grad(lambda p: model.loss(p, BATCH, None)["text"].sum)(PARAMS)
        return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(grad["vision"]))

    assert vision_moves(C) == 0
    assert vision_moves(replace(C, train=llava.PARTS)) > 1e-3


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Questions about scenes, a tower that was trained on them, and LLaVA's two stages."""
    home = tmp_path_factory.mktemp("llava")
    build.build("scenes", home / "scenes", options={"count": 200, "size": 8, "level": 2})
    eyes = tiny_clip_config(home / "scenes", steps=2)
    train(config.resolve(eyes, run.families()), home / "clip", devices=jax.devices()[:1])
    one = tiny_llava_config(
        home / "scenes", model__train=("projector",), start={"vision": str(home / "clip")},
        data__sources__openmoji__template="caption", steps=3,
    )  # fmt: skip
    train(config.resolve(one, run.families()), home / "one")
    two = tiny_llava_config(home / "scenes", start={"all": str(home / "one")}, steps=4)
    train(config.resolve(two, run.families()), home / "two")
    return home


def same(a, b, part) -> bool:
    pairs = zip(jax.tree.leaves(a.params[part]), jax.tree.leaves(b.params[part]), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_each_stage_moves_its_own_parts_bit_for_bit(home):
    clip, one, two = (mmjax.load(home / name) for name in ("clip", "one", "two"))
    assert same(clip, one, "vision") and same(one, two, "vision")
    fresh = one.run.init()
    for part in ("embed", "decoder", "head"):
        assert same(one, fresh_of(fresh), part) and not same(one, two, part)
    assert not same(one, fresh_of(fresh), "projector") and not same(one, two, "projector")
    assert not same(one, fresh_of(fresh), "vision")  # it came from the other run
    count = {name: size(x) for name, x in one.run.abstract.params.items()}
    moments = size(one.run.abstract.opt)
    assert count["projector"] < moments < 2.1 * count["projector"] < count["decoder"]


def size(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def fresh_of(state):
    return type("Fresh", (), {"params": state.params})


def test_it_answers_and_its_cache_is_recomputation(home):
    model = mmjax.load(home / "two", devices=jax.devices()[:1])
    records = [pipeline.open_split(home / "scenes", "train")[i] for i in range(3)]
    asked = [
        [Image(records[0].images[0]), Text("How many?"), SEP],
        [Text("Which?"), *(Image(r.images[0]) for r in records[1:]), Text("red"), SEP],
        [Text("No picture here"), SEP],
    ]
    told = model.generate(asked, temperature=1.0, text=5)
    assert len(told) == 3 and all(isinstance(text, str) for text in told)
    rows = model.laid(asked)

    def cached(parts, params, rows):
        filled = prefill(parts, params, rows, 1)
        return logits_of(parts, params, filled.last)

    held = rows.segment > 0
    short = jax.tree.map(np.copy, rows)
    last = held.sum(1) - 1
    whole = model.call(lambda parts, params, rows: logits(model.run.model, params, rows), rows)
    np.testing.assert_allclose(
        model.call(cached, short), whole[np.arange(3), last], atol=1e-5, rtol=1e-5
    )
    for ask, said in (
        (lambda: model.generate([["a", mmjax.IMAGE]]), "a llava draws no pictures"),
        (lambda: model.generate([["a"]], pictures=1), "a llava draws no pictures"),
        (lambda: model.generate([["a"]], guidance=2.0), "guidance is no option of a llava"),
    ):
        with pytest.raises(UserError, match=said):
            ask()


def test_it_is_evaluated_on_questions(home):
    found = evaluate(str(home / "two"), ["answers", "likelihood"])
    assert {"answers", "answers_blind", "answers_majority", "text_nll"} <= set(found)
    assert {"answers_concepts", "answers_count_blind_concepts"} <= set(found)
    assert found["answers"].n >= 10
    lines = (home / "two" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
