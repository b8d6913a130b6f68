"""Reconstruction alignment: what a picture that is read can reach, and how a run begins."""

import io
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from small import transfusion_config
from tiny import changed, tiny, tiny_chameleon_config, tiny_oneflow_config

import mmjax
from mmjax import config, losses, run, start
from mmjax.batch import IMAGE, TEXT, Image, Text, causal_mask, mixed_mask
from mmjax.data import build, pipeline, transform
from mmjax.data import tokenizer as bpe
from mmjax.data.pack import Shape
from mmjax.data.pixels import Encoded, decode_image
from mmjax.data.record import Record
from mmjax.data.transform import asked
from mmjax.error import UserError
from mmjax.mesh import Rules, make_mesh
from mmjax.models import chameleon, denoise, transfusion
from mmjax.run import prepare
from mmjax.train import train

ONE = jax.devices()[:1]
RULES = Rules(make_mesh(1, 1, 1, ONE))
TOKENIZER = bpe.with_registers(bpe.train(["draw it again"] * 3, 300))
PLAIN = bpe.vocabulary(bpe.train(["draw it again"] * 3, 300))


def of_transfusion(depth, registers=True, **changes):
    """(model, params, side, patches); the output layer, which starts at zero, is random."""
    vocab = bpe.vocabulary(TOKENIZER) if registers else PLAIN
    model = transfusion.build(transfusion_config({"depth": depth}, **changes), vocab, RULES)
    params = jax.jit(model.init)(jax.random.key(0))
    out = params["patch_out"]
    out["patch"] = 0.3 * jax.random.normal(jax.random.key(1), out["patch"].shape)
    return model, params, 4, 4


def of_chameleon(depth, registers=True):
    c = config.resolve(tiny_chameleon_config(), run.families()).model
    c = replace(c, decoder=replace(c.decoder, depth=depth))
    tokenizer = TOKENIZER if registers else bpe.train(["draw it again"] * 3, 300)
    model = chameleon.build(c, bpe.vocabulary(tokenizer, c.codes), RULES)
    return model, jax.jit(model.init)(jax.random.key(0)), 8, 16


FAMILIES = {
    "transfusion": of_transfusion,
    "transfusion clean": partial(of_transfusion, context="clean"),
    "transfusion causal": partial(of_transfusion, picture_mask="causal"),
    "chameleon": of_chameleon,
}


def picture(seed: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rows(documents, side: int, patches: int, length: int = 128):
    """All documents packed into one row."""
    vocab = bpe.vocabulary(TOKENIZER)
    pieces = bpe.lay_out_all(documents, TOKENIZER, vocab, patches, False)
    for piece, document in zip(pieces, documents, strict=True):
        images = [p for p in document if isinstance(p, Image)]
        piece["pictures"] = [Encoded(p.data, side, "pil_box", p.shrink) for p in images]
    slots = sum(len(piece["pictures"]) for piece in pieces)
    return pipeline.begin_rows(Shape(length, slots, side), vocab, [pieces])()


def request(side: int, patches: int, read: int, bottleneck: str = "registers"):
    """A picture read, asked for, and picture 9 as the answer."""
    given, answer = Image(png(picture(read, side))), Image(png(picture(9, side)))
    return rows([asked(given, "draw it again", answer, bottleneck, 2)], side, patches)


def outputs(model, params, *batches, mask=None):
    """Decoder outputs [l, d] and what the answer is drawn from, of each batch.

    Where pictures are denoised, the answer is at noise level 0.5.
    """
    parts = model.parts if mask is None else model.parts._replace(mask=mask)

    @jax.jit
    def made(params, batch):
        if hasattr(parts, "signal"):
            t = jnp.array([[1.0, 0.5]])
            noisy = parts.signal(params, batch)
            hidden, found = denoise.denoise(parts, params, batch, noisy, t)
            return hidden[0], found.data[0, 1]
        x = parts.clean(params, batch)
        hidden, _ = parts.run(params, x, parts.mask(batch), batch.position)
        answer = batch.image[0] == 2
        return hidden[0], jnp.where(answer[:, None], hidden[0], 0.0)

    return [jax.device_get(made(params, batch)) for batch in batches]


def blind(parts, batch):
    """The family's mask, but registers see nothing but each other and BOS."""
    mark = jnp.isin(batch.tokens, jnp.array(parts.vocabulary.registers))
    seen = mark | (batch.position == 0)
    return parts.mask(batch) & (~mark[:, :, None] | seen[:, None, :])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answer_sees_the_picture_through_the_registers_alone(family):
    """In one layer not at all, in two through them, and with blind registers never."""
    for depth, reaches in ((1, False), (2, True)):
        model, params, side, patches = FAMILIES[family](depth)
        one, other = (request(side, patches, seed) for seed in (1, 2))
        at = np.flatnonzero(np.isin(one.tokens[0], model.parts.vocabulary.registers))
        assert len(at) == 16 and (one.tokens == other.tokens).all()
        (a, answer), (b, changed) = outputs(model, params, one, other)
        moved = np.abs(a - b).max(-1)
        held = one.segment[0] > 0
        after = held & (np.arange(len(held)) > at[-1])
        assert (moved[at] > 0).all() and ((moved[after] > 0).all() if reaches else True)
        assert (np.abs(answer - changed).max() > 0) == reaches
        assert reaches or (moved[after] == 0).all()
        cut = partial(blind, model.parts)
        (a, answer), (b, changed) = outputs(model, params, one, other, mask=cut)
        assert (np.abs(a - b).max(-1)[after] == 0).all()
        np.testing.assert_array_equal(answer, changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_the_rule_the_answer_sees_the_picture_itself(family):
    """The same positions, one layer: a model that knows no registers looks past them."""
    model, params, side, patches = FAMILIES[family](1)
    rule = {"chameleon": causal_mask, "transfusion causal": causal_mask}.get(family, mixed_mask)
    one, other = (request(side, patches, seed) for seed in (1, 2))
    (_, a), (_, b) = outputs(model, params, one, other, mask=rule)
    assert np.abs(a - b).max() > 0
    # And so it does where no registers stand between.
    one, other = (request(side, patches, seed, "none") for seed in (1, 2))
    (_, a), (_, b) = outputs(model, params, one, other)
    assert np.abs(a - b).max() > 0


def test_documents_packed_with_one_that_has_registers_stay_as_they_are():
    model, params, side, patches = of_chameleon(2)
    a, b = Image(png(picture(1, side))), Image(png(picture(9, side)))
    caption = [Image(a.data, loss=False), Text("draw")]
    alone = rows([caption], side, patches)
    both = rows([asked(a, "draw it again", b, "registers", 2), caption], side, patches)
    second = both.segment[0] == 2
    want = outputs(model, params, alone)[0][0][: second.sum()]
    np.testing.assert_allclose(outputs(model, params, both)[0][0][second], want, atol=1e-5)


@pytest.mark.parametrize("family", ["transfusion", "chameleon"])
def test_flops_count_what_the_mask_allows(family):
    model, _, side, patches = FAMILIES[family](2)
    open_, _, _, _ = FAMILIES[family](2, registers=False)
    batch = request(side, patches, 1)
    pairs = [np.asarray(m.parts.mask(batch)).sum() for m in (model, open_)]
    d = model.parts.decoder
    words = 2 * d.width * (model.parts.vocabulary.size - open_.parts.vocabulary.size)
    weight = transfusion.target_weight if family == "transfusion" else chameleon.next_weight
    words *= (np.asarray(weight(batch)) > 0).sum()
    parted = d.depth * 4 * d.heads * d.head_dim * float(pairs[1] - pairs[0])
    assert parted > 0 and open_.flops(batch) - model.flops(batch) == parted - words


def test_pictures_without_a_loss_are_read_without_noise():
    model, params, side, patches = of_transfusion(2)
    loss = jax.jit(model.loss)

    def text(document, seed):
        batch = rows([document], side, patches)
        found = losses.means(loss(params, batch, jax.random.split(jax.random.key(seed), 1)))
        return float(found["text/nll"])

    read = [Image(png(picture(1, side)), loss=False), Text("draw")]
    assert text(read, 0) == text(read, 1)
    written = [Image(png(picture(1, side))), Text("draw")]
    assert text(written, 0) != text(written, 1)


def reca(data, **changes):
    """A source to reconstruct and one to caption, with registers."""
    sources = {
        name: {"path": str(data), "weight": 1.0, "template": name, "balance": False}
        for name in ("reconstruct", "caption")
    }
    more = {"data__length": 160, "data__images": 6, "data__window": 16, "steps": 2}
    more |= {"data__sources": sources, "data__bottleneck": "registers"}
    return more | changes


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """`scenes`, and a Transfusion and a Chameleon trained on it for two steps, as any other."""
    home = tmp_path_factory.mktemp("reca")
    build.build("scenes", home / "scenes", options={"count": 60, "size": 8, "level": 1})
    more = {"steps": 2, "data__length": 96}
    train(tiny(home / "scenes", **more), home / "transfusion", ONE)
    c = tiny_chameleon_config(home / "scenes", **more)
    train(config.resolve(c, run.families()), home / "chameleon", ONE)
    return home


@pytest.mark.parametrize("family", ["transfusion", "chameleon"])
def test_a_model_that_knew_no_registers_is_trained_on_with_them(home, family):
    make = tiny_chameleon_config if family == "chameleon" else tiny
    e = make(home / "scenes", **reca(home / "scenes", start={"all": str(home / family)}))
    e = config.resolve(e, run.families()) if family == "chameleon" else e
    begun = prepare(e, ONE)
    fresh = jax.device_get(begun.init().params)
    params = jax.device_get(start.begin(begun, begun.init()).params)
    there = jax.device_get(mmjax.load(home / family, devices=ONE).params)
    new = begun.model.parts.vocabulary.registers
    old = np.delete(np.arange(begun.model.parts.vocabulary.size), new)
    assert len(new) == 16 and (old[-1] > new[-1]) == (family == "chameleon")  # codes lie behind
    for part, name, axis in (("embed", "table", 0), ("head", "w", 1)):
        mine, theirs = params[part][name], there[part][name]
        np.testing.assert_array_equal(np.take(mine, old, axis), theirs)
        drawn = np.take(fresh[part][name], new, axis)
        np.testing.assert_array_equal(np.take(mine, new, axis), drawn)
        assert drawn.std() > 0
    assert train(e, home / f"{family}_reca", ONE) == 0
    loaded = mmjax.load(home / f"{family}_reca", devices=ONE)
    assert bpe.vocabulary(loaded.run.tokenizer).registers == new
    assert loaded.generate([["two red squares", mmjax.IMAGE]])[0].shape == (8, 8, 3)


def test_batches_hold_both_kinds_and_what_is_read_is_shrunk(home):
    more = reca(home / "scenes", data__bottleneck="lowres", data__shrink=4)
    c = tiny(home / "scenes", **more).data
    tokenizer = pipeline.tokenizer_of(c)
    assert not bpe.vocabulary(tokenizer).registers
    batch = next(pipeline.train_batches(c, tokenizer, 4, 2, 0))
    kinds = set()
    for row in range(4):
        for segment in range(1, batch.segment[row].max() + 1):
            mine = batch.segment[row] == segment
            slots = np.unique(batch.image[row][mine & (batch.modality[row] == IMAGE)])
            losses_ = [batch.weight[row][batch.image[row] == s].max() for s in slots]
            kinds.add(tuple(losses_))
            words = mine & ~np.isin(batch.tokens[row], bpe.vocabulary(tokenizer).sentinels)
            words &= batch.modality[row] == TEXT
            assert (batch.weight[row][words] == (losses_ == [0])).all()
            if losses_ == [0, 1]:
                read, answer = (batch.pixels[row, s - 1] for s in slots)
                want = decode_image(png(answer), 8, "pil_box", 4)
                np.testing.assert_array_equal(read, want)
                assert (read != answer).any()
    assert {(0.0,), (0.0, 1.0)} <= kinds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bottleneck": "pooled"},
            r"bottleneck='pooled' is unknown; have: none, lowres, registers",
        ),
        ({"bottleneck": "lowres", "coded": True}, r"'lowres' shrinks.*give data.coded=False"),
        ({"bottleneck": "lowres", "shrink": 3}, r"shrink=3 must .* divide data.image=8; try 2"),
        ({"bottleneck": "registers", "spans": 1.0}, r"order that data.spans=1.0 breaks"),
    ],
)
def test_bottlenecks_that_do_not_fit(changes, message):
    c = tiny().data
    with pytest.raises(UserError, match=message):
        pipeline.check(replace(c, **changes))
    pipeline.check(replace(c, bottleneck="lowres"))


def test_families_without_such_a_mask_are_refused():
    e = tiny(data__bottleneck="registers")
    config.check(e)
    with pytest.raises(UserError, match=r"which this oneflow does not have; give 'lowres'"):
        config.resolve(
            changed(tiny_oneflow_config(), {"data.bottleneck": "registers"}), run.families()
        )


def test_documents_are_the_same_however_often_they_are_read():
    record = Record("1", (Text("red"), Image(png(picture(0, 8)))))
    c = tiny(data__bottleneck="registers").data
    made = [
        [transform.to_document(c, name, record, np.random.default_rng(1)) for _ in range(2)]
        for name in ("reconstruct", "caption")
    ]
    assert all(a == b for a, b in made) and made[0] != made[1]
