"""A text model that learns to see and draw while its own weights stay (LMFusion)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import RULES
from flax.traverse_util import flatten_dict, unflatten_dict
from random_batch import VOCABULARY, random_batch
from small import decoder_config, make, transfusion_config
from tiny import tiny

import mmjax
from mmjax import losses, optim, start
from mmjax.batch import IMAGE, mixed_mask
from mmjax.data import build
from mmjax.error import UserError
from mmjax.layers.tower import dense_name
from mmjax.models import language
from mmjax.models.decoder import UNTIE
from mmjax.models.family import lies_in, merge, split
from mmjax.models.transfusion import text_weights
from mmjax.run import prepare
from mmjax.sample.decode import logits_of, text_log_likelihood
from mmjax.step import init_state, train_step
from mmjax.train import train

ONE = jax.devices()[:1]
APART = {"towers": 2, "untie": UNTIE}
BATCH = random_batch(3, rows=4)


def trained(text_rate: float, decoder=APART):
    """(model, state before, state after four steps on pictures and text)."""
    model, _ = make(transfusion_config(decoder, text_rate=text_rate))
    tx = optim.optimizer(tiny().optim, 10, model.rates)
    state = jax.jit(partial(init_state, model, tx, 0.0))(jax.random.key(0))
    step = jax.jit(partial(train_step, model, tx, lambda _: 1e-2, 0.0, 1, 0))
    new = state
    for _ in range(4):
        new, _ = step(new, BATCH)
    return model, state, new


def words_alone():
    """BATCH with words in the place of pictures."""
    words = BATCH._replace(
        tokens=np.where(BATCH.modality == IMAGE, 9, BATCH.tokens),
        modality=np.zeros_like(BATCH.modality), image=np.zeros_like(BATCH.image),
    )  # fmt: skip
    borders = np.isin(words.tokens, [VOCABULARY.boi, VOCABULARY.eoi])
    return words._replace(tokens=np.where(borders, 10, words.tokens))


def text_logits(model, params):
    """Of rows without pictures, by one compiled program for all weights; BOI's are left out."""
    words = words_alone()
    x = model.parts.embed(params, words.tokens)
    hidden, _ = model.parts.run(params, x, mixed_mask(words), words.position, tower=words.modality)
    return np.delete(np.asarray(logits_of(model.parts, params, hidden)), VOCABULARY.boi, axis=-1)


def moved(old, new) -> set[str]:
    a, b = (flatten_dict(s.params, sep="/") for s in (old, new))
    return {k for k in a if not np.array_equal(a[k], b[k])}


def test_text_is_bit_for_bit_what_it_was():
    model, old, new = trained(0.0)
    np.testing.assert_array_equal(text_logits(model, new.params), text_logits(model, old.params))
    changed = moved(old, new)
    assert changed and not changed & set(text_weights(old.params))
    assert {"borders/table", "opens/w", "patch_in/patch", "patch_out/patch"} <= changed
    assert "decoder/blocks/mlp/up_1" in changed and "decoder/final_norm_1" in changed


def test_frozen_text_learns_when_a_picture_follows():
    """By BOI's own column, from what frozen weights make of the words before it."""
    model, old, new = trained(0.0)
    at = (BATCH.tokens == VOCABULARY.boi) & (BATCH.weight > 0)
    assert at.sum() > 3
    likely = jax.jit(lambda p: text_log_likelihood(model.parts, p, BATCH)[at].mean())
    column = float(likely(old.params | {"opens": new.params["opens"]}) - likely(old.params))
    rest = float(likely(new.params) - likely(new.params | {"opens": old.params["opens"]}))
    assert min(column, rest) > 0.05


def test_where_no_image_may_begin_a_texts_score_is_the_text_models_bit_for_bit():
    """With BOI among the ids it is not: BOI's new column takes its share of the probability."""
    model, _, new = trained(0.0)
    c = language.Config(decoder_config(), 1e-5)
    plain = language.build(c, VOCABULARY, RULES).parts
    names = ("embed", "head", "decoder")
    flat = flatten_dict({name: new.params[name] for name in names}, sep="/")
    text = unflatten_dict({k: x for k, x in flat.items() if dense_name(k) == k}, sep="/")
    words = words_alone()
    closed, opened = np.zeros(len(words.tokens), bool), np.ones(len(words.tokens), bool)
    own, other = (jax.jit(partial(text_log_likelihood, p)) for p in (model.parts, plain))
    np.testing.assert_array_equal(own(new.params, words, closed), other(text, words, closed))
    apart = np.abs(own(new.params, words, opened) - other(text, words, opened))
    assert apart.max() > 1e-3


def test_with_a_rate_of_its_own_text_moves_but_less():
    free, slow = trained(1.0), trained(0.1)
    for model, old, new in (free, slow):
        difference = np.abs(text_logits(model, new.params) - text_logits(model, old.params))
        assert difference.max() > 1e-3
        assert set(text_weights(old.params)) <= moved(old, new)

    def path(run, name):
        _, old, new = run
        a, b = (flatten_dict(s.params, sep="/")[name] for s in (old, new))
        return float(jnp.linalg.norm(b - a))

    assert path(slow, "decoder/blocks/mlp/up") < 0.2 * path(free, "decoder/blocks/mlp/up")
    assert path(slow, "decoder/blocks/mlp/up_1") > 0.5 * path(free, "decoder/blocks/mlp/up_1")


def test_what_is_shared_is_frozen_with_the_text():
    model, old, new = trained(0.0, {"towers": 2, "untie": ("ffn",)})
    assert "decoder/blocks/attention/q" not in moved(old, new)
    np.testing.assert_array_equal(text_logits(model, new.params), text_logits(model, old.params))


def test_the_captions_loss_reaches_the_image_tower_through_frozen_layers():
    """Parameters are frozen, not activations: behind a picture, text teaches how to look."""
    model, params = make(transfusion_config(APART, text_rate=0.0))
    free, held = split(params, model.frozen)
    keys = jax.random.split(jax.random.key(0), len(BATCH.tokens))

    def text_loss(part):
        return losses.means(model.loss(merge(part, held), BATCH, keys))["text"]

    grads = flatten_dict(jax.jit(jax.grad(text_loss))(free), sep="/")
    for name in ("decoder/blocks/attention/k_1", "decoder/blocks/mlp/up_1", "patch_in/patch"):
        assert np.abs(grads[name]).max() > 0, name
    assert not any(lies_in(k, "embed") for k in grads)


def test_frozen_weights_have_no_moments():
    _, _, new = trained(0.0)
    names = {jax.tree_util.keystr(k) for k, _ in jax.tree.leaves_with_path(new.opt)}
    assert any("up_1" in n for n in names) and not any("'up'" in n for n in names)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A text model of two steps."""
    home = tmp_path_factory.mktemp("lmfusion")
    build.build("scenes", home / "scenes", options={"count": 60, "size": 16, "level": 2})
    train(tiny(home / "scenes", steps=2, data__caption_dropout=0.0), home / "text", ONE)
    return home


def test_it_starts_as_the_text_model_and_images_as_its_copy(home):
    e = tiny(
        home / "scenes", model__decoder__towers=2, model__decoder__untie=UNTIE,
        model__text_rate=0.0, start={"language": str(home / "text")},
    )  # fmt: skip
    run = prepare(e, ONE)
    fresh = flatten_dict(run.init().params, sep="/")
    begun = flatten_dict(start.begin(run, run.init()).params, sep="/")
    text = flatten_dict(mmjax.load(home / "text", devices=ONE).params, sep="/")
    for key, x in begun.items():
        if key.split("/")[0] in ("embed", "head", "decoder"):
            np.testing.assert_array_equal(x, text[dense_name(key)])
        else:
            np.testing.assert_array_equal(x, fresh[key])
    towers = begun["decoder/blocks/mlp/up"], begun["decoder/blocks/mlp/up_1"]
    np.testing.assert_array_equal(*towers)
    assert not np.array_equal(fresh["decoder/blocks/mlp/up_1"], towers[1])


def test_a_negative_rate_is_refused():
    with pytest.raises(UserError, match=r"model.text_rate=-1.0 must be at least 0"):
        transfusion_config(text_rate=-1.0)


@pytest.mark.parametrize("name", ["language", "all"])
@pytest.mark.parametrize("layers", [(1,), (0,), ()])
def test_any_layers_may_be_untied_of_a_run_that_is_dense(home, name, layers):
    """Every tower of a layer begins as that layer, in whichever stack it lies."""
    apart = {"towers": 2, "untie": ("qkv", "ffn"), "untied_layers": layers}
    changes = {f"model__decoder__{field}": x for field, x in apart.items()}
    e = tiny(home / "scenes", **changes, start={name: str(home / "text")})
    run = prepare(e, ONE)
    begun = flatten_dict(start.begin(run, run.init()).params, sep="/")
    text = flatten_dict(mmjax.load(home / "text", devices=ONE).params, sep="/")
    seen = set()
    for stack, numbers, untied in run.experiment.model.decoder.runs:
        for key in (k for k in begun if k.startswith(f"decoder/{stack}/")):
            whole = text[dense_name(key.replace(f"/{stack}/", "/blocks/"))]
            np.testing.assert_array_equal(begun[key], whole[numbers[0] : numbers[-1] + 1])
            seen.add((key.endswith("up_1"), untied))
    assert (True, True) in seen and (True, False) not in seen
    np.testing.assert_array_equal(begun["decoder/final_norm"], text["decoder/final_norm"])


def test_towers_are_not_lost_in_silence(home, tmp_path):
    e = tiny(home / "scenes", steps=1, model__decoder__towers=2, model__decoder__untie=("ffn",))
    assert train(e, tmp_path / "apart", ONE) == 0
    run = prepare(tiny(home / "scenes", start={"all": str(tmp_path / "apart")}), ONE)
    with pytest.raises(UserError, match=r"this model has no decoder/blocks/mlp/down_1, a tower's"):
        start.begin(run, run.init())
    run = prepare(tiny(home / "scenes", start={"language": str(tmp_path / "apart")}), ONE)
    begun = flatten_dict(start.begin(run, run.init()).params, sep="/")
    there = flatten_dict(mmjax.load(tmp_path / "apart", devices=ONE).params, sep="/")
    np.testing.assert_array_equal(begun["decoder/blocks/mlp/up"], there["decoder/blocks/mlp/up"])
