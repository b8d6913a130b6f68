"""Torch beside us: new weights and inputs each seed, gradients, and what `transformers` loads.

Needs the `hf` extra: `make test-hf`. The default run checks golden files of the same models.
"""

import json
import os
from dataclasses import replace

import jax
import numpy as np
import PIL.Image
import pytest
from flax.traverse_util import unflatten_dict
from tiny import ROOT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import make_golden  # noqa: E402
import make_original  # noqa: E402

from mmjax import config, conversion, run, verification  # noqa: E402
from mmjax.convert import hub, processor  # noqa: E402
from mmjax.data.steps import to_size  # noqa: E402

pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("default")]
NAMES = [*make_golden.NAMES]
SEEDS = range(int(os.environ.get("MMJAX_PARITY_SEEDS", "2")))
INPUTS = ("input_ids", "pixel_values", "attention_mask", "labels", "image_attention_mask")


@pytest.fixture(scope="module", params=[(n, s) for n in NAMES for s in SEEDS], ids=str)
def both(request, tmp_path_factory):
    """(torch's model, its inputs and outputs, its directory, the workdir made of it)."""
    name, seed = request.param
    model = make_golden.drawn(name, seed + 10)
    with torch.no_grad():
        made = make_golden.RUNS.get(name.split("_")[0], make_golden.contrastive)(model, seed + 20)
    home = tmp_path_factory.mktemp(f"{name}{seed}")
    model.save_pretrained(home / "hub")
    numbers = {k: v.numpy() for k, v in made.items()}
    inputs = {k: v for k, v in numbers.items() if k in INPUTS}
    wanted = {k: v for k, v in numbers.items() if k not in INPUTS and not k.startswith("more/")}
    np.savez(home / "inputs.npz", **inputs)
    np.savez(home / "outputs.npz", **wanted)
    work = conversion.convert(home / "hub", home / "work", said=lambda _: None)
    return model, made, home, work


def test_outputs(both, capsys):
    *_, home, work = both
    assert verification.verify(work, home) < 1e-4
    assert "not compared" not in capsys.readouterr().out


def test_losses_and_gradients(both):
    """Losses to 5e-5; each weight's gradient to a thousandth of its own largest entry."""
    model, made, home, work = both
    given = {k: v for k, v in made.items() if k in INPUTS}
    contrastive = "labels" not in given
    model.zero_grad()
    loss = model(**given, **({"return_loss": True} if contrastive else {})).loss
    loss.backward()
    held = conversion.hold(work)
    kind = conversion.BY_FAMILY[held.experiment.family]
    inputs = verification.arrays(home / "inputs.npz")
    flat = held.read(*held.like)

    def objective(flat):
        params = unflatten_dict(flat, sep="/")
        return kind.outputs(held.model.parts, params, inputs, held.given)["loss"]

    with jax.default_matmul_precision("highest"):
        mine, grads = jax.value_and_grad(objective)(flat)
    assert float(mine) == pytest.approx(float(loss.detach()), abs=5e-5)
    # What has no gradient there (a tower's last layer, where features come from the one before)
    # has one of zeros here.
    named = dict(model.named_parameters())
    theirs = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
    known = hub.Hub(home, {}, dict.fromkeys(theirs, home), dict.fromkeys(theirs, ()), {
        n: n for n in theirs
    }).renamed(getattr(kind, "RENAMED", ()))  # fmt: skip
    tied = "lm_head.weight" not in theirs and "head/w" in grads
    compared = set()
    for row in kind.rows(held.experiment.model, held.vocabulary, held.given):
        if any(n not in known.there for n in row.names):
            continue  # of a codec, which has none there
        some = [row.here(theirs[known.there[n]].numpy()) for n in row.names]
        want = np.stack(some) if row.layers else some[0]
        if row.ours == "embed/table" and tied:  # two weights here: theirs has the sum of both
            grads["embed/table"] = grads["embed/table"] + grads["head/w"].T
        off = np.abs(np.asarray(grads[row.ours]) - want).max()
        assert off <= 1e-3 * max(np.abs(want).max(), 1e-4), (row.ours, off, np.abs(want).max())
        compared.add(row.ours)
    assert len(compared) > 10
    # What theirs has no gradient for: codecs, tied outputs, and a bias that a softmax ignores.
    left = set(flat) - compared - ({"head/w"} if tied else set())
    assert all(np.abs(np.asarray(grads[name])).max() < 1e-6 for name in left), left


def test_transformers_loads_what_is_written(both):
    """No key missing, none left over, and the same numbers come out."""
    model, made, home, work = both
    back = home / "back"
    if not back.exists():
        conversion.convert(work, back, said=lambda _: None)
    config = json.loads((back / "config.json").read_text())
    again, about = type(model).from_pretrained(back, output_loading_info=True)
    assert not any(about.values()), about
    assert config["model_type"] == model.config.model_type
    again.config._attn_implementation = "eager"
    given = {k: v for k, v in made.items() if k in INPUTS}
    with torch.no_grad():
        one, two = (m.eval()(**given) for m in (model, again))
    name = "logits_per_image" if hasattr(one, "logits_per_image") else "logits"
    assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize(
    "how",
    ["nearest", "pil_lanczos", "pil_bilinear_aa", "pil_bicubic_aa", "pil_bicubic_stretch",
     "pil_box", "pil_bilinear_stretch", "pil_bicubic_pad", "shortest=20 kernel=bicubic crop=16x16"],
)  # fmt: skip
def test_pictures_are_brought_to_size_as_the_file_beside_a_model_says(how, tmp_path):
    e = config.resolve(config.load(str(ROOT / "experiments" / "small_clip.py")), run.families())
    mean = processor.CLIP_MEAN
    e = replace(e, data=replace(e.data, resize=how), model=replace(e.model, mean=mean))
    (tmp_path / hub.PREPROCESSOR).write_text(json.dumps(processor.told(e)[0]))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    found = theirs(images=PIL.Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    want = np.moveaxis(to_size(pixels, e.model.image, how), -1, 0) / 255.0
    mean, std = (np.array(x)[:, None, None] for x in (e.model.mean, e.model.std))
    np.testing.assert_allclose(found, (want - mean) / std, atol=1e-5)
    seen = processor.read(tmp_path, "clip", e.model.image)
    assert processor.standardised(replace(e.model, mean=(0.0,) * 3), seen) == e.model


@pytest.mark.parametrize(("swin", "shards"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("seed", SEEDS)
def test_facebooks_release(swin, shards, seed, tmp_path, capsys):
    """In one file and in shards; out again to Hugging Face's, which loads it."""
    model, decoder = make_original.drawn(swin, shards, seed + 10)
    make_original.write(tmp_path / "facebook", model, decoder, shards)
    made = make_original.made(model, decoder, seed + 20)
    wanted = {k: v for k, v in made.items() if k not in (*INPUTS, "pixels", "codes")}
    np.savez(tmp_path / "inputs.npz", **{k: v for k, v in made.items() if k in INPUTS})
    np.savez(tmp_path / "outputs.npz", **wanted)
    work = conversion.convert(tmp_path / "facebook", tmp_path / "work", said=lambda _: None)
    assert verification.verify(work, tmp_path) < 1e-4
    assert "not compared" not in capsys.readouterr().out
    conversion.convert(work, tmp_path / "hub", said=lambda _: None)
    back, report = type(model).from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, x in model.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[name], x, err_msg=name)
