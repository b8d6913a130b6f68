"""Chameleon as Facebook laid it out, in two shards, with the codec's decoder; torch wrote it."""

import collections
import dataclasses
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from tiny import tiny_chameleon_config

import mmjax
from mmjax import config, conversion, run, start, values, verification
from mmjax.batch import Text
from mmjax.codecs import autoencoder, quantise
from mmjax.convert import chameleon, hub, incoming, original, pickled
from mmjax.data import build
from mmjax.error import UserError
from mmjax.run import read_config
from mmjax.train import train

GOLDEN = Path(__file__).parent.parent / "golden" / "facebook"
MODEL = Path("models") / "7b"
ONE = jax.devices()[:1]
INPUTS = ("input_ids", "pixel_values", "attention_mask", "labels")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A workdir made of the golden directory, and what to compare it with beside."""
    home = tmp_path_factory.mktemp("original")
    with np.load(GOLDEN / "made.npz") as file:
        made = {k: file[k] for k in file.files if k not in ("pixels", "codes")}
    np.savez(home / "inputs.npz", **{k: v for k, v in made.items() if k in INPUTS})
    np.savez(home / "outputs.npz", **{k: v for k, v in made.items() if k not in INPUTS})
    return conversion.convert(GOLDEN, home / "work", said=lambda _: None)


@pytest.fixture
def copy(tmp_path):
    """The golden directory, to be damaged."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "facebook"))


def refused(source: Path, match: str) -> None:
    with pytest.raises(UserError, match=match):
        conversion.convert(source, source.parent / "refused")
    assert not (source.parent / "refused").exists()


def test_outputs_are_torchs(work, capsys):
    assert verification.verify(work, work.parent) < 1e-4
    told = capsys.readouterr().out
    for name in ("loss", "logits_raw", "vq_indices", "hidden_2"):
        assert name in told
    assert "not compared" not in told


def test_the_codecs_decoder_is_torchs(work):
    with np.load(GOLDEN / "made.npz") as file:
        codes, wanted = file["codes"], np.moveaxis(file["pixels"], 1, -1)
    held = conversion.hold(work)
    params, codec = unflatten_dict(held.read(*held.like), sep="/"), held.model.parts.codec
    # Here codes stand in the order of their ids.
    place = chameleon.image_ids(held.given)
    rows = np.vectorize(place.__getitem__)(codes) - held.vocabulary.codes
    z = quantise.lookup(
        codec.config.quantiser, params["codec"]["book"],
        autoencoder.from_ids(codec.config, jnp.asarray(rows)),
    )  # fmt: skip
    with jax.default_matmul_precision("highest"):
        found = codec.last(params["codec"], codec.features(params["codec"], z))
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert np.abs(wanted).max() > 0.5


def test_it_draws_and_writes(work):
    model = mmjax.load(work)
    picture, again = model.draw([[Text("word24 word25")]] * 2, seed=0)
    assert picture.shape == (8, 8, 3) and picture.std() > 0
    assert (picture != again).any()


def test_it_goes_out_to_hugging_face(work, tmp_path):
    """With the names a Chameleon has there; the codec's decoder has none and stays behind."""
    back = hub.read(conversion.convert(work, tmp_path / "hub", said=lambda _: None))
    known = original.read(GOLDEN)
    wanted = {name for name in known.shapes if "vqmodel.decoder" not in name}
    assert set(back.shapes) == wanted and len(wanted) < len(known.shapes)
    for name in wanted:
        np.testing.assert_array_equal(back.tensor(name), known.tensor(name), err_msg=name)
    names = json.loads((tmp_path / "hub" / "tokenizer.json").read_text())["model"]["vocab"]
    assert names["<image>"] == 55 and "<reserved08707>" not in names


def test_halves_puts_even_places_first():
    x = np.arange(8.0)[:, None]
    found = original.halves(x, 2)[:, 0]
    np.testing.assert_array_equal(found, [0, 2, 1, 3, 4, 6, 5, 7])


def test_shards_are_put_together():
    """Rows of heads one after the other; a shard's norms go to its own heads."""
    held = original.read(GOLDEN)
    one, two = (pickled.contents(GOLDEN / MODEL / f"consolidated.0{n}.pth") for n in (0, 1))
    files = [GOLDEN / MODEL / f"consolidated.0{n}.pth" for n in (0, 1)]

    def parts(name):
        return [pickled.numbers(f, s[name]) for f, s in zip(files, (one, two), strict=True)]

    found = held.tensor("model.layers.1.self_attn.o_proj.weight")
    np.testing.assert_array_equal(found, np.hstack(parts("layers.1.attention.wo.weight")))
    norms = held.tensor("model.layers.0.self_attn.q_norm.weight")
    first, second = parts("layers.0.attention.q_normalization.weight")
    assert norms.shape == (4, 4) and (first != second).any()
    np.testing.assert_array_equal(norms[:2], [first[[0, 2, 1, 3]]] * 2)
    np.testing.assert_array_equal(norms[2:], [second[[0, 2, 1, 3]]] * 2)


@pytest.mark.parametrize("name", ["n_heads", "norm_eps"])
def test_a_size_that_is_missing_is_named(copy, name):
    file = copy / MODEL / "params.json"
    params = json.loads(file.read_text())["model"]
    del params[name]
    file.write_text(json.dumps({"model": params}))
    refused(copy, rf"params.json lacks {name}; fetch it anew")


def test_one_of_several_models_is_asked_for(copy):
    shutil.copytree(copy / MODEL, copy / "models" / "30b")
    refused(copy, r"has 30b, 7b; give one: --src=.*30b")
    assert original.read(copy / MODEL).config["hidden_size"] == 16


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (MODEL / "consolidated.01.pth", "not those of this configuration"),
        ("tokenizer/vqgan.ckpt", "vqgan.ckpt does not exist; fetch it"),
        ("tokenizer/vqgan.yaml", "vqgan.yaml does not exist; fetch it"),
        ("tokenizer/text_tokenizer.json", "text_tokenizer.json does not exist"),
    ],
)
def test_what_is_missing_is_named(copy, name, match):
    (copy / name).unlink()
    refused(copy, match)


def test_no_value_in_its_parameters_is_a_traceback(copy):
    """Every field, with values of every other kind: read, or one line."""
    file, refused = copy / MODEL / original.PARAMS, 0
    good = json.loads(file.read_text())
    for name in [*good["model"], "rope_theta", "model"]:
        for x in (None, "x", 3.0, -1, 0, [1], {}, True, 10**9):
            inner = {"model": x} if name == "model" else {"model": good["model"] | {name: x}}
            file.write_text(json.dumps(inner))
            try:
                incoming.understood(incoming.opened(copy))
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 500
    assert refused > 40
    for content in ('{"model": 3}', '{"model": {"vocab": []}}', "[]", "{"):
        (copy / "tokenizer" / original.TOKENS).write_text(content)
        with pytest.raises(UserError):
            incoming.opened(copy)


def test_a_file_cut_short_is_named(copy):
    file = copy / "tokenizer" / "vqgan.ckpt"
    file.write_bytes(file.read_bytes()[:-2000])
    refused(copy, r"vqgan\.ckpt is not as `torch.save` writes tensors")


def test_a_yaml_of_something_else_is_named(copy):
    (copy / "tokenizer" / "vqgan.yaml").write_text("model: {params: {}}\n")
    refused(copy, "does not describe a codec")


def test_shards_of_different_models_are_named(copy):
    shutil.copy(copy / "tokenizer" / "vqgan.ckpt", copy / MODEL / "consolidated.01.pth")
    refused(copy, "2 files hold different tensors")


class Harm:
    """Pickled, it would run a command."""

    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize("content", [Harm(), collections.deque([1])])
def test_a_pickle_makes_tensors_and_nothing_else(tmp_path, capsys, content):
    with zipfile.ZipFile(tmp_path / "bad.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"a": content}))
    with pytest.raises(UserError, match="which is no tensor; fetch it anew"):
        pickled.contents(tmp_path / "bad.pth")
    assert "harm" not in capsys.readouterr().out


def test_a_view_is_read_as_what_it_shows(tmp_path):
    """Numbers 0 to 11 in a record; 2 x 3 of them from the second on, columns two apart."""
    data = np.arange(12, dtype=np.float32)
    with zipfile.ZipFile(tmp_path / "view.pth", "w") as file:
        file.writestr("x/data.pkl", pickle.dumps({}))
        file.writestr("x/data/0", data.tobytes())
    storage = pickled.Storage("0", np.dtype(np.float32), 12)
    found = pickled.numbers(tmp_path / "view.pth", pickled.Stored(storage, 1, (2, 3), (1, 2)))
    np.testing.assert_array_equal(found, [[1, 3, 5], [2, 4, 6]])
    with pytest.raises(UserError, match="leaves its record"):
        pickled.numbers(tmp_path / "view.pth", pickled.Stored(storage, 8, (2, 3), (1, 2)))


def test_it_is_trained_on_with_its_own_ids_and_draws(work, tmp_path):
    """Codes stay among the words: where a run is resumed, and where it goes out."""
    given = read_config(work).model
    build.build(
        "scenes", tmp_path / "scenes",
        tokenizer=str(work / "tokenizer.json"),
        options={"count": 40, "size": given.codec.image, "level": 2},
    )  # fmt: skip
    c = tiny_chameleon_config(tmp_path / "scenes", steps=2, save_every=2)
    c.model, c.start = values.to_dict(given), {"all": str(work)}
    c.data.image, c.data.patch, c.data.length = given.codec.image, given.codec.factor, 128
    c.data.tokenizer = str(work / "tokenizer.json")
    c.optim.weight_decay = 0.0  # which moves every row of the table
    e = config.resolve(c, run.families())
    prepared = run.prepare(e, ONE)
    begun = start.begin(prepared, prepared.init())
    held = mmjax.load(work, devices=ONE)
    jax.tree.map(np.testing.assert_array_equal, begun.params, held.params)
    place = tmp_path / "tuned"
    assert train(e, place, ONE) == 0
    tuned = mmjax.load(place, devices=ONE)
    v = tuned.run.vocabulary
    assert v == held.run.vocabulary and v.codes < v.boi < v.size
    moved = np.abs(tuned.params["embed"]["table"] - held.params["embed"]["table"]).max(1) > 0
    assert moved[v.codes : v.codes + v.code_count].any() and not moved[list(v.barred)].any()
    (picture,) = tuned.generate([["a red circle", mmjax.IMAGE]])
    assert picture.shape == (given.codec.image, given.codec.image, 3)
    shutil.copytree(place, tmp_path / "later")
    further = dataclasses.replace(e, start={"all": str(tmp_path / "gone")}, steps=2)
    assert run.prepare(further, ONE, ids=tmp_path / "later").vocabulary == v
    out = conversion.convert(place, tmp_path / "out", said=lambda _: None)
    assert hub.read(out).config["vocabulary_map"] == held_map(work)
    refused = dataclasses.replace(e, data=dataclasses.replace(e.data, spans=0.5))
    with pytest.raises(UserError, match=r"spans=0\.5 takes ids of masks, which the imported"):
        run.prepare(refused, ONE)


def held_map(work: Path) -> dict:
    return json.loads((work / run.GIVEN).read_text())["vocabulary_map"]
