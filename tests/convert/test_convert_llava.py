"""LLaVA's and Llama's directories: spellings, what config.json says, and words that follow."""

import io
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from flax.traverse_util import unflatten_dict
from greedy import continued
from repeats import repeats
from safetensors.numpy import load_file, save_file
from test_conversion import theirs
from tiny import tiny_llava_config
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import mmjax
from mmjax import config, conversion, run, start
from mmjax.batch import IMAGE, Batch
from mmjax.convert import hub, llama
from mmjax.convert import llava as convert
from mmjax.convert.rows import wanted
from mmjax.data import build
from mmjax.error import UserError
from mmjax.train import train

GOLDEN = Path(__file__).parent.parent / "golden"
SPELLINGS = {
    "published": lambda n: n.replace("vision_tower.", "vision_tower.vision_model.", 1),
    "written": lambda n: n,
    "memory": lambda n: (
        n.replace("language_model.model", "model.language_model").removeprefix("language_model.")
        if n.startswith("language_model") else f"model.{n}"
    ),
}  # fmt: skip


def canonical(name: str) -> str:
    """As `save_pretrained` spells what the golden file has as in memory."""
    name = name.removeprefix("model.")
    if name.startswith("language_model"):
        return name.replace("language_model", "language_model.model", 1)
    return f"language_model.{name}" if name.startswith("lm_head") else name


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_all_spellings_are_the_same_weights(spelling, tmp_path):
    source = theirs("llava", tmp_path / "hub")
    held = {canonical(n): x for n, x in load_file(source / hub.WHOLE).items()}
    told = {SPELLINGS[spelling](n): x for n, x in held.items()}
    assert any(n.startswith("model.") for n in told) == (spelling == "memory")
    save_file(told, source / hub.WHOLE)
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    found = hub.read(conversion.convert(work, tmp_path / "back", said=lambda _: None))
    for name, x in held.items():
        np.testing.assert_array_equal(found.tensor(SPELLINGS["published"](name)), x)
    assert len(found.files) == len(held)


def rows(ids, held, pixels, slots, size: int = 4) -> Batch:
    """Their ids as rows; 47 stands where a picture's features do, `size` of them."""
    seen = (ids == 47).astype(np.int32)
    image = np.where(seen, (np.cumsum(seen, axis=1) - 1) // size + 1, 0).astype(np.int32)
    place = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape) * held
    shown = np.zeros((len(ids), max(slots), *pixels.shape[2:], 3), np.uint8)
    first = 0
    for row, count in enumerate(slots):
        shown[row, :count] = pixels[first : first + count].transpose(0, 2, 3, 1)
        first += count
    weight = held.astype(np.float32)
    return Batch(ids, np.where(seen, IMAGE, 0).astype(np.int32), held, place, image, weight, shown)


@pytest.mark.parametrize(
    "name",
    ["llama", "llava", "llava_siglip", *repeats("llama_biased", "llama_tied", "llava_bare")],
)
def test_words_that_follow_are_torchs(name, tmp_path):
    """Token by token through the engine, the cache and the pictures given as bytes."""
    source = theirs(name, tmp_path / "hub")
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    held = conversion.hold(work)
    params = unflatten_dict(held.read(*held.like), sep="/")
    with np.load(GOLDEN / f"hf_{name}.npz") as file:
        ids, mask = (file[f"in/{n}"].astype(np.int32) for n in ("input_ids", "attention_mask"))
        wanted, pixels = file["more/greedy"], file["more/pixels"].astype(np.uint8)
    reads = name.startswith("llava")
    batch = rows(ids, mask, pixels, [2, 1, 0], 8 if name == "llava_bare" else 4)
    if not reads:  # to it 47 is a word
        batch = batch._replace(modality=0 * ids, image=0 * ids, pixels=batch.pixels[:, :0])
    # Sentinels are words here, but for the place of a picture.
    ids = replace(held.vocabulary, pad=-1, bos=-1, eos=-1, sep=47)
    parts = held.model.parts._replace(vocabulary=ids)
    state = continued(parts, params, batch, wanted.shape[1])
    assert np.asarray(state.tokens).tolist() == wanted.tolist()
    assert len({tuple(row) for row in wanted.tolist()}) == 3


@pytest.mark.parametrize("name", ["llama", "llava", "llava_siglip"])
def test_what_is_trained_is_what_was_held_against_torch(name, tmp_path):
    """The family's own loss is torch's, and its gradient that of what conversion is tested by."""
    source = theirs(name, tmp_path / "hub")
    held = conversion.hold(conversion.convert(source, tmp_path / "work", said=lambda _: None))
    flat, loss = held.read(*held.like), held.model.loss
    with np.load(GOLDEN / f"hf_{name}.npz") as file:
        inputs = {k.removeprefix("in/"): file[k] for k in file.files if k.startswith("in/")}
        ids, mask = (inputs[n].astype(np.int32) for n in ("input_ids", "attention_mask"))
        wanted, pixels = float(file["out/loss"]), file["more/pixels"].astype(np.uint8)
    batch = rows(ids, mask, pixels, [2, 1, 0])
    if name == "llama":
        batch = batch._replace(modality=0 * ids, image=0 * ids, pixels=batch.pixels[:, :0])
    batch = batch._replace(weight=(inputs["labels"] >= 0).astype(np.float32))
    keys = jax.random.split(jax.random.key(0), len(ids))

    def ours(flat):
        term = loss(unflatten_dict(flat, sep="/"), batch, keys)["text"]
        return term.sum / term.count

    kind = conversion.BY_FAMILY[held.experiment.family]

    def compared(flat):
        params = unflatten_dict(flat, sep="/")
        return kind.outputs(held.model.parts, params, inputs, held.given)["loss"]

    with jax.default_matmul_precision("highest"):
        found, grads = jax.jit(jax.value_and_grad(ours))(flat)
        same = jax.grad(compared)(flat)
    assert float(found) == pytest.approx(wanted, abs=5e-5)
    for path, x in same.items():
        if not path.startswith("vision/"):  # frozen in training
            np.testing.assert_allclose(grads[path], x, atol=1e-4, err_msg=path)
            assert np.abs(x).max() > 1e-4


def words(place: Path, size: int = 48, begins: bool = True) -> None:
    """A tokenizer of `size` words beside a model; begins: it puts BOS before texts."""
    names = {f"w{n}": n for n in range(size)} | {"[UNK]": 0, "<s>": 1, "</s>": 2}
    names = {name: n for name, n in names.items() if name not in ("w0", "w1", "w2")}
    tokenizer = Tokenizer(models.WordLevel(names, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer.save(str(place / "tokenizer.json"))


@pytest.mark.parametrize(("name", "size"), [("llava", 4), ("llava_bare", 8)])
def test_what_is_imported_answers_questions_about_pictures(name, size, tmp_path):
    """No sentinel around a picture: their rows are BOS, features, words."""
    source = theirs(name, tmp_path / "hub")
    words(source)
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    model = mmjax.load(work, devices=jax.devices()[:1])
    file = io.BytesIO()
    with np.load(GOLDEN / f"hf_{name}.npz") as held:
        pixels = held["more/pixels"].astype(np.uint8)
    PIL.Image.fromarray(pixels[0].transpose(1, 2, 0)).save(file, "PNG")
    rows = model.laid([[file.getvalue(), "w5 w6"], ["w7"]])
    assert rows.tokens[0, [0, size + 1, size + 2, size + 3]].tolist() == [1, 5, 6, 2]
    assert rows.image[0].tolist()[: size + 2] == [0, *[1] * size, 0]
    (told,) = model.generate([[file.getvalue(), "w5 w6"]], text=4)
    assert 0 < len(told.split()) <= 4 and set(told.split()) <= {f"w{n}" for n in range(48)}
    assert model.score([[file.getvalue(), "w5 w6"]]) != model.score([["w5 w6"]])


@pytest.mark.parametrize("known", [48, 30])
def test_imported_parts_begin_a_training_with_fresh_rows_for_our_sentinels(known, tmp_path):
    """known: words of the tokenizer; with 30, our sentinels find room in the table's 48 rows."""
    home = {}
    for name in ("llama", "clip"):
        source = theirs(name, tmp_path / name)
        words(source, known if name == "llama" else 40)
        home[name] = conversion.convert(source, tmp_path / f"{name}_work", said=lambda _: None)
    build.build("scenes", tmp_path / "scenes", options={"count": 40, "size": 20, "level": 2})
    c = tiny_llava_config(
        tmp_path / "scenes", model__layers=(-2,), data__image=20,
        data__tokenizer=str(home["llama"] / "tokenizer.json"),
        start={"language": str(home["llama"]), "vision": str(home["clip"])},
    )  # fmt: skip
    c.model["decoder"].update(width=16, heads=4, kv_heads=2, mlp=20, qk_norm=False, theta=5000.0)
    c.model["vision"].update(image=20, pre_norm=True)
    c.model["vision"]["encoder"].update(width=16, depth=3, heads=4, mlp=24, dtype="bfloat16")
    prepared = run.prepare(config.resolve(c, run.families()))
    begin = start.begin(prepared, prepared.init()).params
    text, eyes = (mmjax.load(home[name]).params for name in ("llama", "clip"))
    v = prepared.model.parts.vocabulary
    assert (v.bos, v.eos, v.pad) == (1, 2, known) and (v.size > 55) == (known == 48)
    np.testing.assert_array_equal(begin["embed"]["table"][:48], text["embed"]["table"])
    np.testing.assert_array_equal(begin["head"]["w"][:, :48], text["head"]["w"])
    assert v.size == 48 or np.abs(begin["embed"]["table"][48:]).min() > 0
    for mine, other in ((begin["decoder"], text["decoder"]), (begin["vision"], eyes["vision"])):
        jax.tree.map(np.testing.assert_array_equal, mine, other)


@pytest.mark.parametrize("name", ["llava", "idefics"])
def test_what_is_imported_whole_is_trained_on(name, tmp_path):
    """Also where the table has more rows than the tokenizer has words, or ids have theirs apart."""
    source = theirs(name, tmp_path / "hub")
    words(source, 30 if name == "llava" else 42)
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    build.build("scenes", tmp_path / "scenes", options={"count": 40, "size": 8, "level": 2})
    plain = json.loads((work / "config.json").read_text())
    where = {"scenes": {"path": str(tmp_path / "scenes"), "weight": 1.0, "template": "",
                        "balance": False}}  # fmt: skip
    plain["data"] |= {"sources": where, "tokenizer": str(work / "tokenizer.json")}
    plain["data"] |= {"length": 64, "images": 2}
    e = config.resolve(plain | {"start": {"all": str(work)}}, run.families())
    prepared = run.prepare(e, jax.devices()[:1])
    begin = start.begin(prepared, prepared.init()).params
    before = conversion.hold(work)
    assert prepared.vocabulary.size == before.vocabulary.size == (48 if name == "llava" else 42)
    jax.tree.map(
        np.testing.assert_array_equal, begin, unflatten_dict(before.read(*before.like), sep="/")
    )
    train(e, tmp_path / "more", jax.devices()[:1])
    after = mmjax.load(tmp_path / "more", devices=jax.devices()[:1])
    assert after.run.vocabulary == prepared.vocabulary
    trained = {
        "llava": "language_model.model.embed_tokens.weight",
        "idefics": "model.gated_cross_attn_layers.1.cross_attn.q_proj.weight",
    }[name]
    now, was = (
        hub.read(conversion.convert(run, tmp_path / f"{run.name}_out", said=lambda _: None))
        for run in (tmp_path / "more", work)
    )
    assert now.shapes == was.shapes
    assert np.abs(now.tensor(trained) - was.tensor(trained)).max() > 0


@pytest.fixture(scope="module")
def given():
    with np.load(GOLDEN / "hf_llava.npz") as file:
        return json.loads(str(file["config"]))


def test_the_released_sizes_follow_from_defaults():
    """LLaVA 1.5 7B's weights, from a config.json that says no more than theirs."""
    c = convert.config({"model_type": "llava", "text_config": {"vocab_size": 32064}})
    v = convert.vocabulary({"model_type": "llava", "text_config": {"vocab_size": 32064}})
    assert (c.tokens, c.layers, c.select, c.vision.encoder.depth) == (576, (-2,), "patches", 24)
    shapes = {row.ours: row.shape for row in convert.rows(c, v)}
    count = sum(int(np.prod(r.shape)) * max(r.layers, 1) for r in convert.rows(c, v))
    assert shapes["projector/up"] == (1024, 4096) and shapes["vision/position"] == (577, 1024)
    assert count == 7_063_427_072


@pytest.mark.parametrize("name", ["llava", "llava_siglip", "llava_bare"])
def test_there_and_back(name):
    with np.load(GOLDEN / f"hf_{name}.npz") as file:
        given = json.loads(str(file["config"]))
    c, v = convert.config(given), convert.vocabulary(given)
    back = convert.given(c, v)
    assert convert.config(back) == c and convert.vocabulary(back) == v
    assert c.layers == {"llava": (-2,), "llava_siglip": (1, -1), "llava_bare": (-1,)}[name]
    bare = name == "llava_bare"
    assert (c.bias, c.vision.pool == "mean") == (not bare, bare)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_config": {"model_type": "dinov2"}}, "vision_config.model_type='dinov2'"),
        ({"text_config": {"model_type": "opt"}}, "text_config.model_type='opt'"),
        ({"vision_feature_select_strategy": "cls"}, "vision_feature_select_strategy='cls'"),
        ({"projector_hidden_act": "tanh"}, "projector_hidden_act='tanh'"),
        ({"text_config": {"hidden_act": "tanh"}}, "hidden_act='tanh'"),
    ],
)
def test_what_is_not_known_is_refused(given, changes, words):
    with pytest.raises(UserError, match=words):
        convert.config({**given, **changes})


def test_models_of_ours_that_they_lack_are_refused(given):
    c, v = convert.config(given), convert.vocabulary(given)
    for change, words in (
        (replace(c, decoder=replace(c.decoder, qk_norm=True)), "model.decoder.qk_norm=True"),
        (replace(c, vision=replace(c.vision, positions="sincos")), "positions=.sincos."),
    ):
        with pytest.raises(UserError, match=words):
            convert.given(change, v)


def test_what_the_first_llamas_kept_is_left_out():
    c, v = llama.config({"model_type": "llama"}), llama.vocabulary({"model_type": "llama"})
    assert (v.bos, v.eos, v.pad, v.boi, v.size) == (1, 2, 2, -1, 32000)
    rows = llama.rows(c, v)
    shapes = {name: wanted(row) for row in rows for name in row.names}
    shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (64,)
    conversion.check(rows, shapes, llama.IGNORED)
    with pytest.raises(UserError, match="1 unknown"):
        conversion.check(rows, shapes)
