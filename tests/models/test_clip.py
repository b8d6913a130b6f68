"""CLIP and SigLIP as a family: which texts belong to which pictures, their loss, their training."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_clip_config

import mmjax
from mmjax import config, run
from mmjax.batch import IMAGE, TEXT, Batch, Vocabulary
from mmjax.data import build, pipeline
from mmjax.error import UserError
from mmjax.evaluate import evaluate
from mmjax.losses import Term
from mmjax.mesh import Rules, make_mesh
from mmjax.models import clip
from mmjax.train import train

V = Vocabulary(40)
C = config.resolve(tiny_clip_config(), run.families()).model
RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))
MODEL = clip.build(C, V, RULES)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
SLOTS = 3


def row(*documents, length=40) -> Batch:
    """A packed row; a document is a list of ids, among them pictures' numbers as strings."""
    fields = {k: np.zeros((1, length), np.int32) for k in Batch._fields[:5]}
    pixels, at, slot = np.zeros((1, SLOTS, 8, 8, 3), np.uint8), 0, 0
    for number, document in enumerate(documents, start=1):
        tokens = [V.bos]
        for part in document:
            tokens += [V.boi, part, V.eoi] if isinstance(part, str) else [part]
        for place, part in enumerate([*tokens, V.eos]):
            shown = isinstance(part, str)
            if shown:
                pixels[0, slot] = np.random.default_rng(int(part)).integers(0, 256, (8, 8, 3))
                slot += 1
            fields["tokens"][0, at] = V.pad if shown else part
            fields["modality"][0, at] = IMAGE if shown else TEXT
            fields["image"][0, at] = slot if shown else 0
            fields["segment"][0, at], fields["position"][0, at] = number, place
            at += 1
    return Batch(**fields, weight=np.ones((1, length), np.float32), pixels=pixels)


def rows(*each) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate(x), *each)


def test_each_pictures_text_is_its_documents():
    batch = rows(
        row([10, 11, "1"], ["2", 12], ["3"]),  # text before, behind, and none
        row([13, "4", 14, "5"], [15, 16]),  # two pictures; text alone
        row(["6", *range(20, 39)]),  # too long
    )
    tokens, valid = (np.asarray(x) for x in clip.texts(C, V, batch))
    most = C.text.length
    assert tokens.shape == (3, SLOTS, most)
    assert valid.tolist() == [[True, True, False], [True, False, False], [True, False, False]]

    def padded(*words):
        return [V.bos, *words, V.eos, *[V.pad] * (most - 2 - len(words))]

    assert tokens[0, 0].tolist() == padded(10, 11)
    assert tokens[0, 1].tolist() == padded(12)
    assert tokens[1, 0].tolist() == padded(13, 14)
    assert tokens[2, 0].tolist() == [V.bos, *range(20, 20 + most - 2), V.eos]


def mean(batch, model=MODEL):
    terms = model.loss(PARAMS, jax.tree.map(jnp.asarray, batch), None)
    return float(terms["contrastive"].sum / terms["contrastive"].count)


def test_the_loss_does_not_depend_on_how_pairs_are_packed():
    pairs = [[10, "1"], ["2", 12, 13], [14, 15, "3"], [16, "4"]]
    loss = mean(rows(row(*pairs[:2]), row(*pairs[2:])))
    assert loss == pytest.approx(mean(rows(row(*pairs[:3]), row(pairs[3]))), abs=1e-5)
    assert loss == pytest.approx(mean(rows(row(*pairs[::-1][:2]), row(*pairs[:2]))), abs=1e-5)
    beside = rows(row(*pairs[:2], [17, 18]), row(*pairs[2:], ["9"]))  # neither is a pair
    assert loss == pytest.approx(mean(beside), abs=1e-5)
    turned = [[*[t for t in a if isinstance(t, int)], *[t for t in b if isinstance(t, str)]]
              for a, b in zip(pairs, pairs[1:] + pairs[:1], strict=True)]  # fmt: skip
    assert abs(loss - mean(rows(row(*turned[:2]), row(*turned[2:])))) > 1e-3


def test_the_scale_stays_at_a_hundred():
    high = PARAMS | {"scale": PARAMS["scale"] | {"log": jnp.float32(9.0)}}
    held = MODEL.after(PARAMS, high, {"contrastive": Term(jnp.ones(()), jnp.ones(()))})
    assert float(jnp.exp(held["scale"]["log"])) == pytest.approx(100.0, rel=1e-5)
    assert MODEL.after(PARAMS, PARAMS, {})["scale"]["log"] == PARAMS["scale"]["log"]


def test_what_does_not_fit_is_named():
    for change, said in (
        ({"objective": "hinge"}, "model.objective='hinge' is unknown; have: softmax, sigmoid"),
        ({"project": "mlp"}, "model.project='mlp' is unknown; have: linear, text"),
        ({"project": "text", "embed": 9}, "model.embed=9 must be model.vision.encoder.width=32"),
        ({"scale": 0.0}, "model.scale=0.0 must be above 0"),
        ({"vision": replace(C.vision, pool="none")}, "leaves a picture without a vector"),
    ):
        with pytest.raises(UserError, match=said):
            replace(C, **change)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Pictures of scenes with their captions."""
    home = tmp_path_factory.mktemp("clip")
    build.build("scenes", home / "scenes", options={"count": 120, "size": 8, "level": 2})
    return home


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_it_learns_on_eight_devices_and_embeds(home, name):
    c = tiny_clip_config(home / "scenes", name, steps=12, batch=8)
    train(config.resolve(c, run.families()), home / name)
    lines = (home / name / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.9 * losses[0]
    model = mmjax.load(home / name, devices=jax.devices()[:1])
    record = pipeline.open_split(home / "scenes", "train")[0]
    picture, text = record.images[0], record.caption
    both, shown, told = model.embed([[picture, text], [picture], [text]])
    for vector in (both, shown, told):
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)
    middle = shown + told
    np.testing.assert_allclose(both, middle / np.linalg.norm(middle), atol=1e-5)
    assert np.abs(shown - told).max() > 1e-2
    names, two = ["red circle", "blue square"], ["a {}", "one {}, small"]
    found = model.classify([picture, picture], names, two)
    words = model.embed([[t.format(n)] for n in names for t in two]).reshape(2, 2, -1).sum(1)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.stack([words @ shown] * 2), atol=1e-5)
    assert np.abs(model.classify([picture], names)[0] - found[0]).max() > 1e-4
    with pytest.raises(UserError, match=r"must hold \{\} for a name"):
        model.classify([picture], names, ["a picture"])
    braces = model.classify([picture], names, ["a {} of {its} kind"])
    told = model.embed([["a red circle of {its} kind"]])[0]
    assert braces[0, 0] == pytest.approx(shown @ told, abs=1e-5)
    for shown, classes, said in (
        (["photo.png"], names, "'photo.png' is no picture"),
        ([], names, "0 pictures and 2 names"),
        ([picture], [], "1 pictures and 0 names"),
    ):
        with pytest.raises(UserError, match=said):
            model.classify(shown, classes)
    with pytest.raises(UserError, match="a clip neither reads, writes nor draws"):
        model.generate([["a red circle", mmjax.IMAGE]])
    values = evaluate(str(home / name))
    assert values["image_at_1"].n >= 10 and values["image_at_1_chance"].value < 0.5
    assert {p.name for p in (home / name / "samples").iterdir()} >= {"retrieved_test.png"}
