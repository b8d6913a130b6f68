"""Data sets coded by a trained codec, and runs that begin with its weights."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import PIL.Image
import pytest
from tiny import ROOT, changed, tiny_chameleon_config, tiny_codec, tiny_codec_config, tiny_config

import mmjax
from mmjax import coding, config, run, start
from mmjax.batch import IMAGE, Image
from mmjax.codecs import autoencoder
from mmjax.data import build, pipeline, store, write
from mmjax.data import tokenizer as bpe
from mmjax.data.pixels import decode_image
from mmjax.error import UserError
from mmjax.run import directory, prepare
from mmjax.train import train
from mmjax.trained import Trained

ONE = jax.devices()[:1]
COUNT = 80  # pictures, more than go to the device at a time


def experiment(c):
    return config.resolve(c, run.families())


def chameleon(data, **changes):
    """Two steps on the coded set; `start` is as in the configuration."""
    small = {"steps": 2, "save_every": 1, "data__coded": True}
    return experiment(tiny_chameleon_config(data, **small | changes))


def same(a, b) -> bool:
    """Whether two trees hold the same numbers, bit for bit."""
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def records(path) -> dict[str, list]:
    return {
        s: [r[i] for i in range(len(r))]
        for s in pipeline.splits(path)
        for r in [pipeline.open_split(path, s)]
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """`scenes`, and `codec` trained on it."""
    path = tmp_path_factory.mktemp("home")
    build.build("scenes", path / "scenes", options={"count": COUNT, "size": 16, "level": 2})
    assert train(experiment(tiny_codec_config(path / "scenes")), path / "codec", ONE) == 0
    return path


@pytest.fixture(scope="module")
def codec(home):
    return mmjax.load(home / "codec", devices=ONE)


@pytest.fixture(scope="module")
def coded(home, codec) -> Path:
    """The coded set."""
    (made,) = coding.tokenize(chameleon(home / "scenes").data, codec)
    assert made == home / "scenes.coded"
    return made


@pytest.fixture(scope="module")
def talker(home, coded) -> Path:
    """A Chameleon trained on the coded set with the codec's weights."""
    e = chameleon(home / "scenes", start={"codec": str(home / "codec")})
    assert train(e, home / "chameleon", ONE) == 0
    return home / "chameleon"


@pytest.fixture(scope="module")
def fresh(home, coded):
    """The state such a run would begin with, were it not for `start`."""
    return prepare(chameleon(home / "scenes"), ONE).init()


def codes_on_the_fly(trained, pictures) -> np.ndarray:
    pixels = np.stack([decode_image(data, 8, "pil_box") for data in pictures])
    parts = trained.run.model.parts
    return np.asarray(
        jax.jit(lambda p: autoencoder.encode_ids(parts.codec, trained.params["codec"], p))(pixels)
    )


def test_codes_are_those_of_encoding_on_the_fly(home, coded, codec):
    before, after = (
        [r for part in records(p).values() for r in part] for p in (home / "scenes", coded)
    )
    want = codes_on_the_fly(codec, [r.images[0] for r in before])
    found = np.stack([r.document[1].coded.array() for r in after])
    assert found.shape == (COUNT, 16) and found.dtype == np.int32
    np.testing.assert_array_equal(found, want)
    assert len(np.unique(found, axis=0)) > COUNT // 2 and len(np.unique(found)) > 3
    assert (np.roll(found, 1, axis=0) != want).any(1).mean() > 0.5


def test_splits_texts_facts_and_order_are_kept(home, coded):
    before, after = records(home / "scenes"), records(coded)
    assert list(before) == list(after) and len(before) >= 4
    for split, part in before.items():
        assert [(r.id, r.caption, r.facts) for r in part] == [
            (r.id, r.caption, r.facts) for r in after[split]
        ]
        for old, new in zip(part, after[split], strict=True):
            assert [type(p) for p in old.document] == [type(p) for p in new.document]
            assert all(p.data == b"" for p in new.document if isinstance(p, Image))
    assert (coded / "tokenizer.json").read_text() == (home / "scenes/tokenizer.json").read_text()
    about = store.info(coded)["source"]
    assert about["of"] == store.info(home / "scenes")["digest"]
    assert (about["coded"]["shape"], about["coded"]["image"]) == ([16], 8)


def test_batches_of_codes_are_those_of_pictures_encoded_on_the_way(home, talker):
    """Same order, same rows: only where the codes come from differs."""
    trained = mmjax.load(talker, devices=ONE)
    tokenizer, parts = trained.run.tokenizer, trained.run.model.parts
    batches = []
    for is_coded in (True, False):
        c = chameleon(home / "scenes", data__coded=is_coded).data
        stream = pipeline.train_batches(c, tokenizer, 8, 2, 0)
        batches.append(next(stream))
        stream.close()
    offline, fly = batches
    assert offline.pixels.shape == (8, 2, 0, 0, 3) and fly.pixels.shape == (8, 2, 8, 8, 3)
    patches = (fly.modality == IMAGE) & (fly.segment > 0)
    assert patches.any() and (offline.tokens[patches] >= parts.vocabulary.codes).all()
    assert (fly.tokens[patches] == parts.vocabulary.pad).all()
    for name in ("modality", "segment", "position", "image", "weight"):
        np.testing.assert_array_equal(getattr(fly, name), getattr(offline, name))
    made = jax.jit(parts.coded)(trained.params, fly).tokens
    np.testing.assert_array_equal(made, offline.tokens)


def watched(monkeypatch) -> list[range]:
    """The ranges of records that are encoded from now on."""
    seen, encode = [], coding.Block._encode

    def spy(self):
        seen.append(self._numbers)
        return encode(self)

    monkeypatch.setattr(coding.Block, "_encode", spy)
    return seen


def test_a_second_call_does_nothing(home, coded, codec, monkeypatch):
    seen = watched(monkeypatch)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in coded.glob("*record*")}
    assert coding.tokenize(chameleon(home / "scenes").data, codec) == [coded]
    assert before == {
        p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in coded.glob("*record*")
    }
    assert not seen and before


def test_interrupted_it_goes_on_and_ends_the_same(home, coded, codec, tmp_path, monkeypatch):
    shutil.copytree(home / "scenes", tmp_path / "scenes")
    data = chameleon(tmp_path / "scenes").data
    monkeypatch.setattr(write, "ITEMS", 10)
    monkeypatch.setattr(coding, "AHEAD", 8)
    seen, items = watched(monkeypatch), coding.items

    def broken(*args):
        for number, item in enumerate(items(*args)):
            if number == 25:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(coding, "items", broken)
    with pytest.raises(KeyboardInterrupt):
        coding.tokenize(data, codec)
    assert seen == [range(0, 8), range(8, 16), range(16, 24), range(24, 32)]
    assert not (tmp_path / "scenes.coded" / "dataset.json").exists()
    with pytest.raises(UserError, match="holds no data set"):
        pipeline.train_batches(data, codec.run.tokenizer, 8, 2, 0)
    monkeypatch.setattr(coding, "items", items)
    seen.clear()
    coding.tokenize(data, codec)
    assert seen[0] == range(16, 24)  # the block of item 20, the first that was not committed
    mine, whole = (store.info(p) for p in (tmp_path / "scenes.coded", coded))
    assert mine["digest"] == whole["digest"] and mine["splits"] != whole["splits"]
    assert records(tmp_path / "scenes.coded") == records(coded)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import jax
jax.config.update("jax_platforms", "cpu")
import mmjax
from mmjax import coding
from mmjax.data import write
from test_coding import chameleon
write.ITEMS, coding.AHEAD = 10, 8
items = coding.items
def slow(*args):
    for number, item in enumerate(items(*args)):
        print(number, flush=True)
        time.sleep(0.02)
        yield item
coding.items = slow
coding.tokenize(chameleon(sys.argv[2]).data, mmjax.load(sys.argv[1], devices=jax.devices()[:1]))
"""


@pytest.mark.slow
def test_killed_it_goes_on_by_the_command_and_ends_the_same(home, coded, tmp_path):
    shutil.copytree(home / "scenes", tmp_path / "scenes")
    code = KILLED.format(tests=str(ROOT / "tests"))
    args = [sys.executable, "-c", code, str(home / "codec"), str(tmp_path / "scenes")]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 33:
                break
        process.kill()
    assert process.returncode == -9
    draft = tmp_path / "scenes.coded" / "progress.json"
    assert 30 <= json.loads(draft.read_text())["items"] < COUNT
    done = [command(tmp_path, f"--workdir={home / 'codec'}"), command(tmp_path)]
    out, said = done[0].communicate(timeout=120)
    assert (done[0].returncode, out) == (
        0, f"{tmp_path}/scenes.coded: ready; train with data.coded=True\n",
    ), said  # fmt: skip
    assert store.info(draft.parent)["digest"] == store.info(coded)["digest"]
    out, said = done[1].communicate(timeout=120)
    assert (done[1].returncode, out) == (2, "") and said.count("\n") == 1
    assert "--workdir=DIR of a codec" in said


def command(path: Path, *args: str) -> subprocess.Popen:
    """`mmjax tokenize` of the scenes in a directory."""
    file = path / "experiment.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        f"from tiny import tiny_chameleon_config\n\n"
        f"def get_config():\n    return tiny_chameleon_config({str(path / 'scenes')!r})\n"
    )
    argv = [sys.executable, "-m", "mmjax", "tokenize", f"--config={file}", *args]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=os.environ)


def test_a_talker_keeps_the_codecs_weights_bit_for_bit(talker, codec, fresh):
    found = mmjax.load(talker, devices=ONE)
    assert found.step == 2 and same(found.params["codec"], codec.params["codec"])
    assert not same(fresh.params["codec"], codec.params["codec"])
    assert not same(fresh.params["embed"], found.params["embed"])


def test_after_a_resume_it_still_does(home, talker, codec, tmp_path):
    shutil.copytree(talker, tmp_path / "run")
    shutil.rmtree(directory(tmp_path / "run") / "2")
    assert mmjax.load(tmp_path / "run", devices=ONE).step == 1
    # What the codec's run has become since does not matter: the weights are the checkpoint's.
    e = chameleon(home / "scenes", start={"codec": str(home / "codec")})
    assert train(e, tmp_path / "run", ONE) == 0
    found, whole = (mmjax.load(p, devices=ONE) for p in (tmp_path / "run", talker))
    assert found.step == 2 and same(found.params, whole.params)
    assert same(found.params["codec"], codec.params["codec"])


def untrained(e) -> Trained:
    """A model as it begins."""
    begun = prepare(e, ONE)
    return Trained(begun, begun.init().params, 0)


def refused(e, path, match: str) -> None:
    """`mmjax train` says so in one line, and trains nothing."""
    with pytest.raises(UserError, match=match) as error:
        train(e, path / "run", ONE)
    assert "\n" not in str(error.value)
    assert not (path / "run" / "checkpoints").exists() or not os.listdir(directory(path / "run"))


def test_codes_of_another_codec_are_refused(home, coded, tmp_path):
    other = untrained(experiment(tiny_codec_config(home / "scenes", seed=1)))
    with pytest.raises(UserError, match=r"scenes.coded was made by another codec.*remove it first"):
        coding.tokenize(chameleon(home / "scenes").data, other)
    # Without `start` the codec is a random one.
    match = r"scenes.coded was coded by another codec \(\w{12}\) than the one this run has \(\w{12}"
    refused(chameleon(home / "scenes"), tmp_path, match)


def test_codes_of_another_size_are_refused(home, coded, codec, tmp_path):
    larger = {"data__image": 16, "data__patch": 4}
    third = {"multipliers": (1, 2, 2)}  # a level more: as many codes of a larger picture
    e = chameleon(home / "scenes", **larger, model__codec=tiny_codec(16) | third)
    refused(e, tmp_path, r"made with data.image=8, not 16; remove it and tokenize again")
    refused(
        chameleon(home / "scenes", data__resize="nearest"), tmp_path, r"'pil_box', not 'nearest'"
    )
    with pytest.raises(UserError, match=r"data.image=16, but the codec was trained at 8"):
        coding.tokenize(e.data, codec)


def test_a_model_with_the_codec_tokenizes_as_it_does(home, coded, talker, tmp_path):
    """The directory's name may end in a slash, as shells write it."""
    shutil.copytree(home / "scenes", tmp_path / "scenes")
    e = chameleon(f"{tmp_path / 'scenes'}/")
    (made,) = coding.tokenize(e.data, mmjax.load(talker, devices=ONE))
    assert made == tmp_path / "scenes.coded" == pipeline.path_of(e.data, "openmoji")
    assert store.info(made) == store.info(coded)
    plain = untrained(experiment(tiny_config(home / "scenes")))
    with pytest.raises(UserError, match=r"holds a transfusion without a codec; give that of a"):
        coding.tokenize(e.data, plain)


def test_files_that_are_not_whole_stop_it_before_anything_is_written(home, codec, tmp_path):
    """Record by record, all of a split would be damaged, and nothing but a count would say so."""
    src = tmp_path / "scenes"
    shutil.copytree(home / "scenes", src)
    data = chameleon(src).data
    (shard,) = src.glob("train-*")
    kept = shard.read_bytes()
    shard.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(
        UserError, match=r"train-\S+ is not the file that was written .*make it again$"
    ):
        coding.tokenize(data, codec)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-\S+ is missing; bring .*make it again"):
        coding.tokenize(data, codec)
    shard.write_bytes(kept)
    (src / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=r"tokenizer.json is missing; remove .*make it again"):
        coding.tokenize(data, codec)
    (tmp_path / "tokenizer.json").rename(src / "tokenizer.json")
    assert not (tmp_path / "scenes.coded").exists()
    (made,) = coding.tokenize(data, codec)
    assert {s: len(r) for s, r in records(made).items()} == {
        s: len(r) for s, r in records(src).items()
    }


def test_data_that_were_not_coded_name_the_command(home, tmp_path):
    shutil.copytree(home / "scenes", tmp_path / "scenes")
    refused(chameleon(tmp_path / "scenes"), tmp_path, r"no .*scenes.coded; make it with `mmjax tok")


def test_a_start_of_another_configuration_is_refused_by_name(home, coded, tmp_path):
    codec = tiny_codec() | {"channels": 16}
    e = chameleon(home / "scenes", start={"codec": str(home / "codec")}, model__codec=codec)
    refused(e, tmp_path, r"config.model.codec differs from that of .*: channels: 8 -> 16$")
    assert not (tmp_path / "run").exists()
    e = chameleon(home / "scenes", start={"codec": str(tmp_path / "none")})
    refused(e, tmp_path, r"none/config.json does not exist")


def test_a_start_whose_decoder_is_run_otherwise_is_refused(home, talker, tmp_path):
    """Weights of the same shapes, which under other frequencies or another epsilon are no model."""
    at = {"start": {"all": str(talker)}}
    e = chameleon(home / "scenes", **at, model__decoder__theta=5000.0)
    refused(e, tmp_path, r"config.model.decoder differs from that of .*: theta: 10000.0 -> 5000.0$")
    start.check(chameleon(home / "scenes", **at, model__decoder__dropout=0.1))


def test_a_start_of_a_part_that_is_not_there_is_refused_by_name(home, coded, tmp_path):
    e = chameleon(home / "scenes", start={"codex": str(home / "codec")})
    refused(e, tmp_path, r"config.start names 'codex', of which this model has no weights")
    assert not (tmp_path / "run").exists()
    begun = prepare(chameleon(home / "scenes", start={"embed": str(home / "codec")}), ONE)
    with pytest.raises(UserError, match=r"start.embed=.*: weight embed/table is absent there and"):
        start.begin(begun, begun.abstract)  # shapes are all it needs to complain


def test_a_start_of_another_shape_is_refused_by_the_weights_name(home, talker):
    e = chameleon(home / "scenes", start={"all": str(talker)}, model__decoder__mlp=32)
    begun = prepare(e, ONE)
    with pytest.raises(UserError, match=r"weight decoder/blocks/mlp/\w+ is \(2, .* there and of"):
        start.begin(begun, begun.abstract)


def test_a_start_of_all_begins_where_another_run_ended(home, talker, fresh, tmp_path):
    there = mmjax.load(talker, devices=ONE)
    begun = prepare(chameleon(home / "scenes", start={"all": str(talker)}), ONE)
    state = start.begin(begun, fresh)
    assert same(state.params, there.params)
    assert same(state.ema, {k: v for k, v in there.params.items() if k != "codec"})
    assert int(state.step) == 0
    lone = prepare(chameleon(home / "scenes", start={"head": str(talker)}), ONE)
    part = start.begin(lone, fresh).params
    assert same(part["head"], there.params["head"])
    assert same(part["embed"], fresh.params["embed"])
    assert not same(part["embed"], there.params["embed"])
    # Ids of another tokenizer would mean other words.
    build.save(bpe.train(["other words"], 400), tmp_path / "other.json")
    words = {"data__tokenizer": str(tmp_path / "other.json")}
    foreign = prepare(chameleon(home / "scenes", start={"all": str(talker)}, **words), ONE)
    with pytest.raises(UserError, match=r"tokenizer is another; give data.tokenizer=.*chameleon"):
        start.begin(foreign, foreign.abstract)


def test_a_codec_of_latents_writes_float16_and_batches_carry_them(home, tmp_path):
    shutil.copytree(home / "scenes", tmp_path / "scenes")
    kl = tiny_codec_config(tmp_path / "scenes", model__codec=tiny_codec(kind="kl", codes=0))
    trained = untrained(experiment(kl))
    # As a family of latents would read them: 16 positions a picture.
    c = experiment(changed(kl, {"data__patch": 2})).data
    (made,) = coding.tokenize(c, trained)
    before, after = records(tmp_path / "scenes")["train"], records(made)["train"]
    found = np.stack([r.document[1].coded.array() for r in after])
    assert (found.dtype, found.shape[1:]) == (np.float16, (4, 4, 4))
    pixels = np.stack([decode_image(r.images[0], 8, "pil_box") for r in before])
    parts = trained.run.model.parts
    want = autoencoder.encode_latents(parts.codec, trained.params["codec"], pixels)
    np.testing.assert_allclose(found, want, atol=2e-3, rtol=2e-3)
    assert np.abs(found - np.roll(found, 1, axis=0)).max() > 2e-2
    known = {x.tobytes() for x in found}
    c = dataclasses.replace(c, coded=True, caption_dropout=0.0)
    stream = pipeline.train_batches(c, trained.run.tokenizer, 8, 1, 0)
    batch = next(stream)
    stream.close()
    assert (batch.pixels.dtype, batch.pixels.shape) == (np.float16, (8, 4, 4, 4, 4))
    used = batch.image.max(1)
    assert used.max() >= 1
    for row, count in zip(batch.pixels, used, strict=True):
        assert all(x.tobytes() in known for x in row[:count])
        assert not row[count:].any()
    patches = batch.tokens[batch.modality == IMAGE]
    assert len(patches) and (patches == parts.vocabulary.pad).all()


def test_one_damaged_picture_costs_one_document(home, codec, tmp_path, monkeypatch):
    shutil.copytree(home / "scenes", tmp_path / "scenes")
    decode, seen = coding.decode_all, []

    def one_is_damaged(pictures):
        seen.append(pictures)
        bad = [picture._replace(data=b"no picture") for picture in pictures]
        return decode(bad if len(seen) == 7 else pictures)

    monkeypatch.setattr(coding, "decode_all", one_is_damaged)
    (made,) = coding.tokenize(chameleon(tmp_path / "scenes").data, codec)
    assert store.info(made)["rejected"] == 1
    assert store.left_out(made, store.info(made)).startswith("\ndamaged and left out: 1, named in ")
    assert store.left_out(home / "scenes", store.info(home / "scenes")) == ""
    (line,) = (made / store.REJECTS).read_text().splitlines()
    assert "cannot be decoded" in json.loads(line)["reason"]
    assert (
        sum(map(len, records(made).values()))
        == sum(map(len, records(home / "scenes").values())) - 1
    )


@pytest.fixture(scope="module")
def talks(home) -> Path:
    """Twelve conversations about wide pictures: the odd ones show them, the even ones ask for."""
    path = home / "talks"
    path.mkdir()
    told = []
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 24, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path / f"{number}.png")
        texts = ("<image>What is it?", "noise") if number % 2 else ("Noise, please.", "<image>")
        turns = [{"from": who, "value": t} for who, t in zip(("human", "gpt"), texts, strict=True)]
        told.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (path / "talks.json").write_text(json.dumps(told))
    words = str(home / "scenes/tokenizer.json")
    build.build(str(path / "talks.json"), home / "talked", "llava", tokenizer=words)
    return home / "talked"


PADDED = {"data__sources__openmoji__template": "sep", "data__resize_prompt": "pil_lanczos_pad"}


def test_pictures_of_prompts_are_padded_and_those_of_answers_cut(talks, codec):
    (made,) = coding.tokenize(chameleon(talks, **PADDED).data, codec)
    parts, modes = codec.run.model.parts, {True: "pil_lanczos_pad", False: "pil_box"}
    after = {r.id: r for part in records(made).values() for r in part}
    before = [r for part in records(talks).values() for r in part]
    assert len(after) == len(before) == 12
    for record in before:
        read = int(record.id) % 2 == 1
        (found,) = [p.coded.array() for p in after[record.id].document if isinstance(p, Image)]
        for mode, same in ((modes[read], True), (modes[not read], False)):
            pixels = decode_image(record.images[0], 8, mode)[None]
            want = autoencoder.encode_ids(parts.codec, codec.params["codec"], pixels)
            assert np.array_equal(np.asarray(want)[0], found) is same, (record.id, mode)


def test_rows_of_conversations_are_padded_and_cut_alike(talks):
    c = chameleon(talks, **PADDED, data__coded=False).data
    batches = pipeline.train_batches(c, bpe.load(talks / "tokenizer.json"), 8, 1, 0)
    with contextlib.closing(batches):
        batch = next(batches)
    known = {r.id: r.images[0] for part in records(talks).values() for r in part}
    seen = {True: 0, False: 0}
    for row, slot in np.argwhere(batch.pixels.any((2, 3, 4))):
        read = batch.weight[row][batch.image[row] == slot + 1].max() == 0
        mode = "pil_lanczos_pad" if read else "pil_box"
        mine = [decode_image(data, 8, mode) for n, data in known.items() if int(n) % 2 == read]
        assert any((batch.pixels[row, slot] == pixels).all() for pixels in mine)
        seen[bool(read)] += 1
    assert min(seen.values()) > 0


def test_codes_of_other_prompts_are_refused(home, talks, codec, tmp_path):
    shutil.copytree(talks, tmp_path / "talks")
    e = chameleon(tmp_path / "talks", **PADDED)
    coding.tokenize(e.data, codec)
    pipeline.shape_of(e.data)
    for change, message in (
        ({"data__resize_prompt": ""}, "was made with data.resize_prompt='pil_lanczos_pad', not ''"),
        ({"data__sources__openmoji__template": ""}, r"openmoji.template='sep', not '', and"),
    ):
        with pytest.raises(UserError, match=message):
            pipeline.shape_of(chameleon(tmp_path / "talks", **PADDED | change).data)
    both = config.SourceConfig(str(tmp_path / "talks"), 1.0, "sep_draw", False)
    two = dataclasses.replace(e.data, sources={**e.data.sources, "drawn": both})
    with pytest.raises(UserError, match=r"drawn.template='sep_draw', but another source reads"):
        coding.tokenize(two, codec)
    same = dataclasses.replace(both, template="reconstruct")
    with pytest.raises(UserError, match=r"template='reconstruct' shows the pictures it asks for"):
        coding.tokenize(dataclasses.replace(e.data, sources={"drawn": same}), codec)
    with pytest.raises(UserError, match=r"resize_prompt='pil_lanczos_pad' is for conversations"):
        pipeline.check(dataclasses.replace(e.data, spans=1.0))


def test_codes_are_for_families_that_read_them(home, coded, codec):
    e = experiment(tiny_codec_config(home / "scenes", data__coded=True))
    with pytest.raises(UserError, match="this codec does not read the codes"):
        start.check_codes(prepare(e, ONE), None)


def test_a_codec_is_no_model_to_talk_to(codec):
    asks = codec.generate, codec.score, codec.embed
    said = "neither reads, writes nor draws", "has no likelihood of a text", "embeds nothing"
    for ask, why in zip(asks, said, strict=True):
        with pytest.raises(UserError, match=f"a codec {why}"):
            ask([["a"]])


def test_codes_have_positions_of_their_own(home):
    with pytest.raises(UserError, match="shared_position=True is for patches"):
        chameleon(home / "scenes", data__shared_position=True)
