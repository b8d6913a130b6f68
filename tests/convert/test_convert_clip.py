"""CLIP and SigLIP with Hugging Face's weights, against what torch made of them."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mmjax.batch import Vocabulary
from mmjax.contrastive import OBJECTIVES
from mmjax.convert import clip as convert
from mmjax.convert.rows import check, from_theirs, to_theirs
from mmjax.error import UserError
from mmjax.mesh import Rules, make_mesh
from mmjax.models import clip

GOLDEN = Path(__file__).parent.parent / "golden"
V = Vocabulary(40, pad=0, bos=38, eos=39)
RULES = Rules(make_mesh(1, 1, 1, jax.devices()[:1]))


class Held:
    """A golden file: inputs, outputs, weights, and ours made of them."""

    def __init__(self, name: str):
        with np.load(GOLDEN / f"hf_{name}.npz") as file:
            arrays = {k: file[k] for k in file.files}
        given = json.loads(str(arrays.pop("config")))
        self.ins, self.outs, self.state = (
            {k.removeprefix(f"{part}/"): x for k, x in arrays.items() if k.startswith(f"{part}/")}
            for part in ("in", "out", "state")
        )
        self.config = convert.config(given)
        self.rows = convert.rows(self.config, V)
        self.params = from_theirs(self.rows, self.state.__getitem__)
        if name == "clip":
            self.params["scale"]["bias"] = np.zeros((), np.float32)
        self.model = clip.build(self.config, V, RULES)
        self.signal = np.moveaxis(self.ins["pixel_values"], 1, -1)
        self.tokens = self.ins["input_ids"].astype(np.int32)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def held(request):
    with jax.default_matmul_precision("highest"):
        yield Held(request.param)


def vectors(held: Held, params):
    """(pictures, texts), [n, embed] of unit length."""
    parts, c = held.model.parts, held.config
    # Pictures are given as torch had them, standardised already.
    plain = clip.build(replace(c, mean=(0.0,) * 3, std=(1 / 255.0,) * 3), V, RULES).parts
    return plain.see(params, held.signal), parts.read(params, held.tokens)


def test_every_weight_has_a_row_and_every_row_a_weight(held):
    check(held.rows, {k: x.shape for k, x in held.state.items()}, convert.IGNORED)
    want = jax.eval_shape(held.model.init, jax.random.key(0))
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (held.params, want)]
    assert shapes[0] == shapes[1]


def test_every_hidden_state_is_torchs(held):
    parts = held.model.parts
    for name, run, given in (
        ("vision", parts.vision, held.signal),
        ("text", parts.text, held.tokens),
    ):
        _, hidden = jax.jit(run)(held.params, given)
        assert len(hidden) == sum(k.startswith(f"{name}_hidden") for k in held.outs)
        for i, one in enumerate(hidden):
            np.testing.assert_allclose(one, held.outs[f"{name}_hidden_{i}"], atol=1e-4)
        assert np.abs(hidden[-1] - held.outs[f"{name}_hidden_{len(hidden) - 2}"]).max() > 0.1


def test_vectors_similarities_and_loss_are_torchs(held):
    images, texts = jax.jit(lambda params: vectors(held, params))(held.params)
    np.testing.assert_allclose(images, held.outs["image_embeds"], atol=1e-4)
    np.testing.assert_allclose(texts, held.outs["text_embeds"], atol=1e-4)
    scale, bias = jnp.exp(held.params["scale"]["log"]), jnp.asarray(held.params["scale"]["bias"])
    logits = scale * images @ texts.T + bias
    np.testing.assert_allclose(logits, held.outs["logits_per_image"], atol=1e-4)
    objective = OBJECTIVES[held.config.objective]
    term = objective(RULES, images, texts, jnp.ones(3, bool), scale, bias)["contrastive"]
    np.testing.assert_allclose(term.sum / term.count, held.outs["loss"], atol=5e-5)
    assert np.abs(images - held.outs["text_embeds"][:, : images.shape[1]]).max() > 0.1


def test_there_and_back_nothing_changes(held):
    flat = {"/".join(p.key for p in path): x for path, x in jax.tree.leaves_with_path(held.params)}
    back = dict(to_theirs(held.rows, flat.__getitem__))
    named = {k: x for k, x in held.state.items() if not k.startswith(convert.IGNORED)}
    assert set(back) == set(named)
    for name, x in named.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_what_does_not_fit_is_named(held):
    shapes = {k: x.shape for k, x in held.state.items()}
    gone = "text_model.final_layer_norm.bias"
    wrong = shapes | {"extra.weight": (2,), "logit_scale": (3,)}
    del wrong[gone]
    with pytest.raises(UserError) as error:
        check(held.rows, wrong, convert.IGNORED)
    said = str(error.value)
    assert f"1 missing: {gone}" in said and "1 unknown: extra.weight" in said
    assert "1 of another shape: logit_scale (3,) for" in said and "\n" not in said


def test_other_models_are_refused():
    with pytest.raises(UserError, match="model_type='llava' is neither clip nor siglip"):
        convert.config({"model_type": "llava"})


def test_pictures_are_squares_however_they_are_written():
    model = {"model_type": "clip", "vision_config": {"image_size": [28, 28], "patch_size": [9, 9]}}
    c = convert.config(model).vision
    assert (c.image, c.patch, c.crop) == (28, 9, True)
    model["vision_config"]["image_size"] = [28, 14]
    with pytest.raises(UserError, match=r"image_size=\[28, 14\].*squares alone"):
        convert.config(model)


def test_what_pads_and_ends_a_text_of_siglip_is_named_by_its_tokenizer():
    """SigLIP 2 has another than SigLIP; neither stands in config.json."""
    given = {"model_type": "siglip", "text_config": {"pad_token_id": 7}}
    v = convert.vocabulary(given)
    here = Path()
    assert (v.pad, v.eos) == (1, 1) and convert.named(v, given, {}, here) == v
    tokenizer = Tokenizer(WordLevel({"<pad>": 0, "a": 1, "<eos>": 2}, "a"))
    beside = {
        "tokenizer_config.json": json.dumps(
            {"pad_token": "<pad>", "eos_token": {"content": "<eos>"}}
        ).encode(),
        "tokenizer.json": tokenizer.to_str().encode(),
    }
    found = convert.named(v, given, beside, here)
    assert (found.pad, found.eos) == (0, 2)
    assert convert.named(v, {"model_type": "clip"}, beside, here) == v
