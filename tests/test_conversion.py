"""Hugging Face's directories in and out, on models that torch has run."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from safetensors.numpy import load_file, save_file
from tiny import tiny_config
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from verb_flags import taken_back

from mmjax import config, conversion, leaf, run, values, verification
from mmjax.__main__ import run_verb
from mmjax.convert import hub, incoming
from mmjax.convert.rows import stacked
from mmjax.data import pipeline
from mmjax.error import UserError

GOLDEN = Path(__file__).parent / "golden"


def verb(words: list[str]) -> int:
    """The verb's exit code."""
    with taken_back():
        return run_verb("convert", words)


def theirs(name: str, place: Path, shards: int = 1) -> Path:
    """A golden file as a directory of theirs, with what torch made beside it."""
    place.mkdir()
    with np.load(GOLDEN / f"hf_{name}.npz") as file:
        arrays = {k: file[k] for k in file.files}
    (place / "config.json").write_text(str(arrays.pop("config")))
    parts: dict[str, dict] = {"in": {}, "out": {}, "state": {}, "more": {}}
    for key, x in arrays.items():
        part, _, rest = key.partition("/")
        parts[part][rest] = x
    np.savez(place / "inputs.npz", **parts["in"])
    np.savez(place / "outputs.npz", **parts["out"])
    names = sorted(parts["state"])
    if shards == 1:
        save_file(parts["state"], place / hub.WHOLE)
        return place
    places = {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        save_file({k: parts["state"][k] for k in names[n::shards]}, place / file)
        places |= dict.fromkeys(names[n::shards], file)
    (place / hub.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return place


ALL = ["clip", "siglip", "chameleon", "chameleon_swin", "llama", "llava", "llava_siglip"]
ALL += ["idefics", "idefics_plain", "llama_biased", "clip_first", "llava_bare"]
ALL += ["clip_wide", "siglip_wide"]
WRITES = {
    "chameleon": ("logits_raw", "vq_indices"),
    "llava": ("image_features",),
    "llama": (),
    "idefics": ("image_features",),
}


@pytest.fixture(scope="module", params=ALL)
def each(request, tmp_path_factory):
    """(their directory, the workdir made of it)."""
    return made(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=["clip", "llava"])
def both(request, tmp_path_factory):
    """The same of two kinds, for what does not depend on the kind."""
    return made(request.param, tmp_path_factory)


def made(name: str, tmp_path_factory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp(name)
    source = theirs(name, home / "hub", shards=3)
    return source, conversion.convert(source, home / "work", said=lambda _: None)


def test_outputs_are_torchs(each, capsys):
    source, work = each
    assert verification.verify(work, source) < 1e-4
    told = capsys.readouterr().out
    contrastive = "logits_per_image", "image_embeds", "vision_hidden_3", "text_hidden_0"
    kind = json.loads((source / "config.json").read_text())["model_type"]
    wanted = (*WRITES[kind], "logits", "hidden_2") if kind in WRITES else contrastive
    for name in ("loss", *wanted):
        assert name in told
    assert "not compared" not in told


def test_a_wrong_weight_shows(both, tmp_path, capsys):
    source, _ = both
    other = tmp_path / "other"
    shutil.copytree(source, other)
    file = next(other.glob("model-00002*"))
    held = load_file(file)
    name = next(n for n in held if "layers.1." in n and n.endswith("weight"))
    save_file(held | {name: held[name] + 0.01}, file)
    words = [f"--src={other}", f"--dst={tmp_path / 'work'}", f"--verify={source}"]
    assert verb(words) == 1
    assert "above --tolerance=0.0001" in capsys.readouterr().err
    assert verb([f"--src={tmp_path / 'work'}", words[2], "--tolerance=100"]) == 0


def test_padding_is_not_compared_and_all_else_is(tmp_path):
    source = theirs("llama", tmp_path / "hub")
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    with np.load(source / "inputs.npz") as file:
        row, column = np.argwhere(file["attention_mask"] == 0)[0]
    with np.load(source / "outputs.npz") as file:
        held = dict(file)
    for at, worst in (((row, column), 1e-4), ((row, column - 1), 100.0)):
        wrong = held["hidden_1"].copy()
        wrong[at] += 100.0
        np.savez(source / "outputs.npz", **held | {"hidden_1": wrong})
        off = verification.verify(work, source, said=lambda _: None)
        assert off < worst if worst < 1 else off == pytest.approx(worst, rel=1e-3)


def test_features_may_be_a_vector_a_picture(tmp_path):
    """As later versions of theirs give an IDEFICS's: the tower's pooled output."""
    source = theirs("idefics", tmp_path / "hub")
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    known = hub.read(source)
    w, bias = (known.tensor(f"model.vision_model.post_layernorm.{n}") for n in ("weight", "bias"))
    with np.load(source / "outputs.npz") as file:
        held = dict(file)
    x = held["vision_hidden_3"][:, 0].astype(np.float64)
    x -= x.mean(-1, keepdims=True)
    eps = known.config["vision_config"].get("layer_norm_eps", 1e-5)
    pooled = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w + bias
    for given, off in ((pooled, 0.0), (pooled + 1.0, 1.0)):
        np.savez(source / "outputs.npz", **held | {"image_features": given})
        found = verification.verify(work, source, said=lambda _: None)
        assert found == pytest.approx(off, abs=1e-4)


def test_there_and_back(each, tmp_path, monkeypatch):
    """The same tensors under the same names, in one file and in several."""
    source, work = each
    kind = incoming.KINDS[hub.read(source).config["model_type"]]
    known = hub.read(source).renamed(getattr(kind, "RENAMED", ()))
    before = {name: known.tensor(name) for name in known.files}
    for size in (hub.SHARD, 4000):
        monkeypatch.setattr(hub, "SHARD", size)
        back = hub.read(conversion.convert(work, tmp_path / f"back{size}", said=lambda _: None))
        assert (len(set(back.files.values())) > 3) == (size == 4000)
        assert back.shapes == known.shapes
        for name, x in before.items():
            np.testing.assert_array_equal(back.tensor(name), x, err_msg=name)
    assert kind.config(back.config) == kind.config(hub.read(source).config)
    assert kind.vocabulary(back.config) == kind.vocabulary(hub.read(source).config)


def test_what_is_there_is_replaced_only_when_asked(both, tmp_path):
    source, _ = both
    dst = tmp_path / "work"
    dst.mkdir()
    conversion.convert(source, dst, said=lambda _: None)  # an empty one is free
    (dst / "evals.json").write_text("{}")
    with pytest.raises(UserError, match="exists; give --overwrite"):
        conversion.convert(source, dst)
    assert (dst / "evals.json").exists()
    conversion.convert(source, dst, overwrite=True, said=lambda _: None)
    assert not (dst / "evals.json").exists() and (dst / "vocabulary.json").exists()
    out = conversion.convert(dst, tmp_path / "out", said=lambda _: None)
    conversion.convert(dst, out, overwrite=True, said=lambda _: None)  # an export of ours
    conversion.convert(source, out, overwrite=True, said=lambda _: None)  # for a workdir
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "work"]


def test_it_goes_on_where_it_was(both, tmp_path, monkeypatch):
    """Killed in the middle, it reads only what it has not; of another source, all anew."""
    source, _ = both
    read: list[str] = []

    def until(count):
        def some(row, *rest):
            if len(read) == count:
                raise KeyboardInterrupt
            read.append(row.ours)
            stacked(row, *rest)

        return some

    dst = tmp_path / "work"
    monkeypatch.setattr(conversion, "stacked", until(5))
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(source, dst, said=lambda _: None)
    assert not dst.exists()
    monkeypatch.setattr(conversion, "stacked", until(-1))
    conversion.convert(source, dst, said=lambda _: None)
    assert len(read) == len(set(read)) > 20
    assert verification.verify(dst, source, said=lambda _: None) < 1e-4
    read.clear()
    monkeypatch.setattr(conversion, "stacked", until(5))
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(source, tmp_path / "next", said=lambda _: None)
    other = tmp_path / "hub"
    shutil.copytree(source, other)
    (other / "config.json").touch()
    monkeypatch.setattr(conversion, "stacked", until(-1))
    conversion.convert(other, tmp_path / "next", said=lambda _: None)
    assert len(read) == 5 + len(set(read))


def test_the_way_out_goes_on_too(both, tmp_path, monkeypatch):
    """Files that are whole stay, and what they hold is not read again; damage leaves nothing."""
    _, work = both
    monkeypatch.setattr(hub, "SHARD", 4000)
    whole = hub.read(conversion.convert(work, tmp_path / "whole", said=lambda _: None))
    dst, partial = tmp_path / "back", tmp_path / "back.partial"
    count, read = [0], []

    def killed(*args, **kwargs):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        save_file(*args, **kwargs)

    def noted(self):
        read.append(self.name)
        yield from layers(self)

    layers = leaf.Leaf.__iter__
    with monkeypatch.context() as patch:
        patch.setattr(hub, "save_file", killed)
        with pytest.raises(KeyboardInterrupt):
            conversion.convert(work, dst, said=lambda _: None)
    assert not dst.exists()
    before = {file.name: file.stat().st_mtime_ns for file in partial.glob("*.part")}
    assert [*sorted(before)] == ["0.part", "1.part", "2.part"]
    monkeypatch.setattr(leaf.Leaf, "__iter__", noted)
    back = hub.read(conversion.convert(work, dst, said=lambda _: None))
    assert {file.stat().st_mtime_ns for file in dst.glob("*.safetensors")} > {*before.values()}
    assert back.shapes == whole.shapes
    assert json.loads((dst / conversion.MARK).read_text()) == {"made_by": "mmjax"}
    for name in whole.shapes:
        np.testing.assert_array_equal(back.tensor(name), whole.tensor(name))
    some = len(read)
    read.clear()
    conversion.convert(work, dst, overwrite=True, said=lambda _: None)
    assert some < len(read)

    shutil.copytree(work, tmp_path / "bad")
    name = max(read)
    place = leaf.opened(tmp_path / "bad" / "checkpoints" / "0", name)
    place[0].write(np.asarray(place[0].read().result()) + 1).result()
    with pytest.raises(UserError, match=f"damaged, leaf {name}: checksum differs; make it again"):
        conversion.convert(tmp_path / "bad", tmp_path / "never")
    assert not [*tmp_path.glob("never*")]


def change(source: Path, edit) -> None:
    """Edits the tensors of a directory with one file."""
    held = load_file(source / hub.WHOLE)
    edit(held)
    save_file(held, source / hub.WHOLE)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda s: s.pop("logit_scale"), "1 missing: logit_scale"),
        (lambda s: s.update(strange=np.zeros(3, np.float32)), "1 unknown: strange"),
        (
            lambda s: s.update({"visual_projection.weight": np.zeros((2, 2), np.float32)}),
            r"1 of another shape: visual_projection.weight \(2, 2\) for \(10, 16\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(edit, words, tmp_path):
    source = theirs("clip", tmp_path / "hub")
    change(source, edit)
    with pytest.raises(UserError, match=words):
        conversion.convert(source, tmp_path / "work")
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


def test_what_is_missing_is_counted_and_the_first_are_named(tmp_path):
    """In the order of layers: 2 before 10."""
    source = theirs("clip", tmp_path / "hub")
    whole = json.loads((source / "config.json").read_text())
    whole["vision_config"]["num_hidden_layers"] = 12
    (source / "config.json").write_text(json.dumps(whole))
    with pytest.raises(UserError) as error:
        conversion.convert(source, tmp_path / "work")
    said = str(error.value)
    count = int(re.search(r"(\d+) missing: ", said)[1])
    names = re.findall(r"vision_model\.\S+?(?=,| and|$)", said)
    assert count > 100 and len(names) == 3 and f" and {count - 3} more" in said
    assert all(".layers.3." in name for name in names) and len(said) < 500


def test_a_picture_mask_of_other_pictures_is_one_line(tmp_path):
    source = theirs("idefics", tmp_path / "hub")
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    with np.load(source / "inputs.npz") as file:
        held = dict(file)
    cut = held["image_attention_mask"][:, :, :1]
    for other in (cut, held["image_attention_mask"][:1]):
        np.savez(source / "inputs.npz", **held | {"image_attention_mask": other})
        with pytest.raises(UserError, match=r"image_attention_mask has shape .* it must be"):
            verification.verify(work, source, said=lambda _: None)


def test_what_is_not_read_is_told_and_objects_are_skipped(both, tmp_path):
    source, work = both
    with np.load(source / "inputs.npz") as file:
        held = dict(file)
    np.savez(tmp_path / "inputs.npz", **held, position_ids=np.arange(3))
    with np.load(source / "outputs.npz") as file:
        made = dict(file)
    np.savez(tmp_path / "outputs.npz", **made, others=np.array([{}], object))
    told: list[str] = []
    assert verification.verify(work, tmp_path, said=told.append) < 1e-4
    assert "not read: position_ids" in told
    assert told[-1].startswith("not compared: others (unknown); names known are ")


@pytest.mark.parametrize(
    ("says", "resize", "mean"),
    [
        ({}, "shortest=20 kernel=bicubic crop=20x20", None),
        ({"resample": 1, "size": 24}, "shortest=24 kernel=lanczos crop=20x20", None),
        (
            {"resample": 2, "do_center_crop": False, "size": [20, 20], "image_mean": None},
            "pil_bilinear_stretch",
            None,
        ),
        (
            {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_normalize": False},
            "pad=122,116,104 shortest=20 kernel=bicubic crop=20x20",
            0.0,
        ),
    ],
)
def test_pictures_come_to_size_as_the_file_beside_says(says, resize, mean, tmp_path):
    source = theirs("clip", tmp_path / "hub")
    if says:
        (source / hub.PREPROCESSOR).write_text(json.dumps(says))
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    e = run.read_config(work)
    assert e.data.resize == resize
    assert e.data.length == 9 + 8  # a whole text, and what stands beside it
    assert e.model.mean[0] == (0.48145466 if mean is None else mean)
    pipeline.check(e.data)
    (source / hub.PREPROCESSOR).write_text(
        json.dumps(says | {"crop_size": 24, "do_center_crop": True})
    )
    with pytest.raises(UserError, match=r"preprocessor_config\.json has crop_size=24, by which"):
        conversion.convert(source, tmp_path / "never")
    assert not [*tmp_path.glob("never*")]


def test_what_was_trained_since_goes_out_as_it_is(tmp_path):
    """In f32, which is what config.json then says; what was imported alone keeps what it said."""
    given = {"dtype": "bfloat16", "text_config": {"torch_dtype": "float16"}, "hidden_size": 4}
    told = conversion.in_full(given)
    assert told == {
        "dtype": "float32", "text_config": {"torch_dtype": "float32"}, "hidden_size": 4,
    }  # fmt: skip
    source = theirs("llama", tmp_path / "hub")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    for step, wanted in ((0, "bfloat16"), (1, "float32")):
        if step:
            (work / "checkpoints" / "0").rename(work / "checkpoints" / "1")
        out = conversion.convert(work, tmp_path / f"out{step}", said=lambda _: None)
        assert hub.read_json(out / "config.json")["dtype"] == wanted


def test_ids_they_have_no_names_for_come_back(tmp_path):
    """Of a model trained here: what goes out and comes in again has the sentinels it had."""
    for name in ("siglip", "llava"):
        source = theirs(name, tmp_path / name)
        work = conversion.convert(source, tmp_path / f"{name}_work", said=lambda _: None)
        old = run.read_vocabulary(work, 0)
        mine = dataclasses.replace(old, pad=20, bos=21, eos=22, boi=23, eoi=24, sep=25)
        (work / run.VOCABULARY).write_text(json.dumps(dataclasses.asdict(mine)))
        out = conversion.convert(work, tmp_path / f"{name}_out", said=lambda _: None)
        back = conversion.convert(out, tmp_path / f"{name}_back", said=lambda _: None)
        assert run.read_vocabulary(back, 0) == mine != old
        assert conversion.OURS not in json.loads((source / "config.json").read_text())


def test_damaged_files_are_named(tmp_path, capsys):
    source = theirs("clip", tmp_path / "hub", shards=2)
    words = [f"--src={source}", f"--dst={tmp_path / 'work'}"]
    last = source / "model-00002-of-00002.safetensors"
    whole = last.read_bytes()
    last.write_bytes(whole[:-50])
    assert verb(words) == 2
    assert "model-00002-of-00002.safetensors is damaged" in capsys.readouterr().err
    last.unlink()
    assert verb(words) == 2
    assert "model-00002-of-00002.safetensors does not exist" in capsys.readouterr().err
    (source / "config.json").write_text('{"model_type": "bert"}')
    last.write_bytes(whole)
    assert verb(words) == 2
    assert (
        "model_type='bert' is unknown; have: clip, siglip, chameleon, llama, llava, idefics"
        in capsys.readouterr().err
    )
    (source / "config.json").write_text("{")
    assert verb(words) == 2
    assert "config.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_an_index_that_is_none_and_weights_of_another_kind_are_named(tmp_path):
    source = theirs("clip", tmp_path / "hub", shards=2)
    (source / hub.INDEX).write_text("{}")
    with pytest.raises(UserError, match=r"index.json has no weight_map; fetch it anew"):
        conversion.convert(source, tmp_path / "work")
    (source / hub.INDEX).unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor .*index.json; fetch"):
        conversion.convert(source, tmp_path / "work")
    (source / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"has pytorch_model\.bin; save the model as"):
        conversion.convert(source, tmp_path / "work")
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


@pytest.mark.parametrize("x", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(x, tmp_path, capsys):
    source = theirs("llama", tmp_path / "hub")
    held = load_file(source / hub.WHOLE)
    name = "model.layers.1.mlp.up_proj.weight"
    held[name][2, 3] = held[name][0, 1] = x
    save_file(held, source / hub.WHOLE)
    assert verb([f"--src={source}", f"--dst={tmp_path / 'work'}"]) == 2
    said = capsys.readouterr().err
    assert f"tensor {name}: 2 of 320 numbers are NaN or infinite in f32" in said
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


def test_one_tensor_in_two_spellings_or_two_files_is_refused(tmp_path, capsys):
    source = theirs("llava", tmp_path / "hub")
    held = load_file(source / hub.WHOLE)
    name = "multi_modal_projector.linear_1.weight"
    old = name if name in held else f"model.{name}"
    new = f"model.{name}" if name in held else name
    save_file(held | {new: held[old] + 1}, source / hub.WHOLE)
    words = [f"--src={source}", f"--dst={tmp_path / 'work'}"]
    assert verb(words) == 2
    assert "two spellings of one tensor; remove one" in capsys.readouterr().err
    source = theirs("llama", tmp_path / "shards", shards=2)
    one, two = sorted(source.glob("model-*.safetensors"))
    twice = dict([next(iter(load_file(one).items()))])
    save_file(load_file(two) | twice, two)
    assert verb([f"--src={source}", words[1]]) == 2
    said = capsys.readouterr().err
    assert f"has {next(iter(twice))} in {one.name} and in {two.name}" in said
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (hub.INDEX, "[1]", "index.json is damaged: it holds a list"),
        (hub.INDEX, '{"weight_map": [1]}', "index.json has no weight_map"),
        (hub.INDEX, '{"weight_map": {"a": 3}}', "weight_map names 3, which is no safetensors"),
        (hub.INDEX, '{"weight_map": {"a": ["x"]}}', r"weight_map names \['x'\], which is no safe"),
        (hub.INDEX, '{"weight_map": {"a": null}}', "weight_map names None, which is no safe"),
        (
            hub.INDEX, '{"weight_map": {"a": "../b.safetensors"}}',
            "weight_map names '../b.safetensors', which is no safetensors beside it",
        ),
        (hub.INDEX, '{"weight_map": {"a": "/etc/passwd"}}', "weight_map names '/etc/passwd', whi"),
        (hub.GENERATION, "{", r"generation_config\.json is damaged"),
        (hub.GENERATION, "[]", r"generation_config\.json is damaged: it holds a list"),
        (hub.GENERATION, '{"eos_token_id": [2, 99]}', "the id 99 of eos_token_id has no row"),
        ("tokenizer_config.json", "{", r"tokenizer_config\.json is damaged"),
        (hub.CONFIG, "\xff", r"config\.json is damaged"),
    ],
)  # fmt: skip
def test_files_that_are_damaged_are_named_themselves(name, content, words, tmp_path, capsys):
    """And not config.json in their stead."""
    source = theirs("llama", tmp_path / "hub", shards=2)
    (source / name).write_bytes(content.encode("latin-1"))
    if name == "tokenizer_config.json":
        Tokenizer(WordLevel({"a": 0}, "a")).save(str(source / "tokenizer.json"))
    assert verb([f"--src={source}", f"--dst={tmp_path / 'work'}"]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["hub"]


def test_a_source_that_is_a_file_or_not_there_is_one_line(tmp_path, capsys):
    source = theirs("llama", tmp_path / "hub")
    for src, words in (
        (source / hub.WHOLE, "model.safetensors is a file; give the directory that it"),
        (source / "nothing", "config.json does not exist; give a directory that has it"),
    ):
        assert verb([f"--src={src}", f"--dst={tmp_path / 'work'}"]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


def test_weights_are_mapped_and_not_held(tmp_path, monkeypatch):
    """What is written lies in a file, whose pages may be had back, and of a stack it is a layer."""
    source, held = theirs("llama", tmp_path / "hub"), []
    write = conversion.checkpoint.write

    def watched(directory, step, like, read, meta):
        def some(name, index):
            x = read(name, index)
            held.append((isinstance(x, np.memmap), name, x.size))
            return x

        write(directory, step, like, some, meta)
        stacks = {name: x.size // x.shape[0] for name, x in like.items() if x.ndim > 2}
        assert len(stacks) > 5
        assert {(n, size) for _, n, size in held if n in stacks} == {*stacks.items()}

    monkeypatch.setattr(conversion.checkpoint, "write", watched)
    conversion.convert(source, tmp_path / "work", said=lambda _: None)
    assert len(held) > 10 and all(mapped for mapped, *_ in held)
    assert verification.verify(tmp_path / "work", source, said=lambda _: None) < 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": None}, r"inputs.npz lacks input_ids; it has: attention_mask, labels"),
        ({"input_ids": np.ones(4, int)}, r"input_ids has shape \(4,\); it must have 2 axes"),
        ({"labels": np.ones((1, 2), int)}, r"labels has shape \(1, 2\), input_ids \(2, 2\)"),
        ({"input_ids": np.ones((0, 2), int)}, r"shape \(0, 2\); it must have 2 axes, none empty"),
        (
            {"input_ids": np.ones((2, 2))},
            "input_ids holds float64; it must hold numbers that are w",
        ),
        ({"labels": np.full((2, 2), "a")}, "labels holds <U1; it must hold numbers that are whole"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change, words):
    inputs = {n: np.ones((2, 2), int) for n in ("input_ids", "attention_mask", "labels")} | change
    inputs = {name: x for name, x in inputs.items() if x is not None}
    with pytest.raises(UserError, match=words):
        verification.check_inputs("inputs.npz", inputs, verification.AXES, needs_words=True)
    if "input_ids" not in inputs:
        verification.check_inputs("inputs.npz", inputs, verification.AXES, needs_words=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("null", "config.json is damaged: it holds a NoneType"),
        (
            '{"model_type": "llama", "rope_scaling": {"type": "linear", "factor": "x"}}',
            "rope_scaling.factor='x' must be a number above 0",
        ),
        (
            '{"model_type": "idefics", "cross_layer_interval": 0}',
            "cross_layer_interval=0 must be a whole number from 1",
        ),
        ('{"model_type": "chameleon", "vocabulary_map": {"IMGIMGZ": 3}}', "has: ValueError"),
        ('{"model_type": ["llama"]}', r"model_type=\['llama'\] is unknown"),
        (
            '{"model_type": "llama", "num_attention_heads": "four"}',
            "num_attention_heads='four' must be a whole",
        ),
        ("[" * 100_000, "config.json is damaged: groups lie too deep in it"),
    ],
)
def test_a_config_of_wrong_values_is_named(content, words, tmp_path):
    source = theirs("llama", tmp_path / "hub")
    (source / "config.json").write_text(content)
    with pytest.raises(UserError, match=words):
        conversion.convert(source, tmp_path / "work")


def test_nothing_to_compare_is_an_error(both, tmp_path, capsys):
    source, work = both
    words = [f"--src={work}", f"--verify={tmp_path}"]
    assert verb(words) == 2
    assert "inputs.npz does not exist" in capsys.readouterr().err
    with np.load(source / "inputs.npz") as file:
        inputs = {n: file[n] for n in file.files if n != "pixel_values"}
    kind = json.loads((source / "config.json").read_text())["model_type"]
    if kind == "llava":  # without pictures there are no places for them
        inputs["input_ids"] = np.minimum(inputs["input_ids"], 46)
    np.savez(tmp_path / "inputs.npz", **inputs)
    np.savez(tmp_path / "outputs.npz", logitz=np.zeros(3), vision_hidden_0=np.zeros(3))
    assert verb(words) == 2
    said = capsys.readouterr().err
    assert "nothing to compare: logitz (unknown), vision_hidden_0 (inputs.npz lacks pix" in said
    assert "makes " in said and "hidden_0 ... " in said and said.count("\n") == 1
    name = "text_embeds" if kind == "clip" else "hidden_0"
    for wrong, words_of, code in (
        (np.zeros(3), f"{name} is (3,) there", 2),
        (np.array(["a"]), f"{name} holds <U1, which are no numbers", 2),
    ):
        np.savez(tmp_path / "outputs.npz", **{name: wrong})
        assert verb(words) == code
        assert words_of in capsys.readouterr().err
    with np.load(source / "outputs.npz") as file:
        shape = file[name].shape
    np.savez(tmp_path / "outputs.npz", **{name: np.full(shape, np.nan)})
    assert verb(words) == 1  # NaN is no agreement


@pytest.mark.parametrize("name", ["llama", "chameleon"])
def test_each_array_is_compared_by_itself(name, tmp_path):
    """Losses, hidden states, codes and logits: wrong where they are wrong, and nowhere else."""
    source = theirs(name, tmp_path / "hub")
    work = conversion.convert(source, tmp_path / "work", said=lambda _: None)
    with np.load(source / "outputs.npz") as file:
        held = dict(file)
    layers = [held[f"hidden_{n}"] for n in range(len(held)) if f"hidden_{n}" in held]
    held |= {"hidden_states": np.stack(layers), "last_hidden_state": layers[-1]}
    wrong = {*sorted(held)[::2], "hidden_states"} - {"last_hidden_state"}
    made = {n: x + x.dtype.type(n in wrong) for n, x in held.items()}
    np.savez(source / "outputs.npz", **made)
    told: list[str] = []
    verification.verify(work, source, said=told.append)
    off = {line.split()[0]: float(line.split()[1]) for line in told}
    assert set(off) == set(held) and {"loss", "logits"} < set(off)
    assert {n for n, x in off.items() if x > 0.9} == wrong
    assert all(off[n] < 1e-4 for n in set(held) - wrong)
    if name != "chameleon":
        return
    with np.load(source / "inputs.npz") as file:  # codes of pictures alone
        np.savez(source / "inputs.npz", pixel_values=file["pixel_values"])
    np.savez(source / "outputs.npz", vq_indices=held["vq_indices"], loss=held["loss"])
    told.clear()
    assert verification.verify(work, source, said=told.append) == 0
    assert told[-1].startswith("not compared: loss (inputs.npz lacks labels)")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("input_ids", lambda x: x + 10**6, r"input_ids has 10\d+; the model has \d+ ids"),
        ("input_ids", lambda x: x - 10**6, r"input_ids has -\d+; the model has \d+ ids"),
        ("pixel_values", lambda x: np.moveaxis(x, 1, -1), r"it must end in \(3, "),
        ("pixel_values", lambda x: x[..., :1], r"pixel_values has shape .* it must end in \(3, "),
        ("pixel_values", lambda x: x[:, 0], r"pixel_values has shape .* must have 4 axes"),
        ("pixel_values", lambda x: x[:, None], r"pixel_values has shape .* must have 4 axes"),
    ],
)
def test_inputs_that_the_model_does_not_read_are_one_line(
    both, tmp_path, capsys, name, change, words
):
    source, work = both
    with np.load(source / "inputs.npz") as file:
        inputs = {n: file[n] for n in file.files}
    np.savez(tmp_path / "inputs.npz", **inputs | {name: change(inputs[name])})
    shutil.copyfile(source / "outputs.npz", tmp_path / "outputs.npz")
    assert verb([f"--src={work}", f"--verify={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1


def test_only_a_workdir_of_a_kind_they_have_is_verified(both, tmp_path, capsys):
    source, work = both
    assert verb([f"--src={source}", f"--verify={source}"]) == 2
    assert "is a directory of theirs; give --dst too" in capsys.readouterr().err
    shutil.copytree(work, tmp_path / "work")
    other = values.to_dict(config.resolve(tiny_config(), run.families()))
    (tmp_path / "work" / "config.json").write_text(json.dumps(other))
    assert verb([f"--src={tmp_path / 'work'}", f"--verify={source}"]) == 2
    assert "is a transfusion, which they have no model for" in capsys.readouterr().err


def test_numbers_of_eight_bits_are_refused_by_name(tmp_path, capsys):
    source = theirs("llama", tmp_path / "hub")
    tensors = {n: hub.read(source).tensor(n) for n in hub.read(source).shapes}
    name = next(iter(tensors))
    small = jnp.asarray(tensors[name], jnp.float8_e4m3fn)
    safetensors.flax.save_file(
        {n: jnp.asarray(x) for n, x in tensors.items()} | {name: small}, source / hub.WHOLE
    )
    assert verb([f"--src={source}", f"--dst={tmp_path / 'work'}"]) == 2
    said = capsys.readouterr().err
    assert f"tensor {name} is F8_E4M3; save the model as one of F64, F32" in said
    assert not (tmp_path / "work").exists()


def test_mean_and_deviation_are_those_of_the_file_beside_the_weights(tmp_path):
    """Told plainly, as most do, or within the file of a processor; and they go out again."""
    source = theirs("clip", tmp_path / "hub")
    plain = conversion.convert(source, tmp_path / "plain", said=lambda _: None)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    for name, told in ((hub.PREPROCESSOR, said), (hub.PROCESSOR, {"image_processor": said})):
        (source / name).write_text(json.dumps(told))
        work = conversion.convert(source, tmp_path / name, said=lambda _: None)
        model = run.read_config(work).model
        assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert run.read_config(plain).model.mean != model.mean
        back = conversion.convert(work, tmp_path / f"{name}.back", said=lambda _: None)
        assert (back / name).read_text() == json.dumps(told)
        (source / name).unlink()
    back = conversion.convert(plain, tmp_path / "back", said=lambda _: None)
    made = json.loads((back / hub.PREPROCESSOR).read_text())
    assert made["image_mean"] == list(run.read_config(plain).model.mean)
