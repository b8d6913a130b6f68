"""The whole way from real data to batches: shapes, resumption, processes, mixing, pictures."""

import collections
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import grain
import numpy as np
import pytest
from tiny import tiny, tiny_config

from mmjax import config, run
from mmjax.batch import IMAGE, SEP, TEXT, Image, Text
from mmjax.data import mixture, pipeline, transform
from mmjax.data import tokenizer as bpe
from mmjax.data.pipeline import train_batches
from mmjax.data.pixels import decode_image
from mmjax.data.record import Record
from mmjax.data.sets import openmoji as data
from mmjax.data.spans import invert
from mmjax.error import UserError

ROWS = 8
ASKED = dataclasses.replace(SEP, loss=False)
TEXTS = 1024 - len(bpe.SENTINELS)  # ids of text; the sentinels come behind them
BOTH = {"data.caption_dropout": 0.0, "data.length": 64}  # every caption kept and short enough


@pytest.fixture(scope="module")
def exchanged(openmoji, tmp_path_factory):
    """The same data set with train and test exchanged: 222 documents of other concepts to train."""
    path = tmp_path_factory.mktemp("exchanged") / "set"
    shutil.copytree(openmoji, path)
    a, b = (next(path.glob(f"*-{split}.array_record*")) for split in ("train", "test"))
    names, spare = (a.name, b.name), path / "spare"
    a.rename(spare)
    b.rename(path / names[0])
    spare.rename(path / names[1])
    info = json.loads((path / "dataset_info.json").read_text())
    other = {"train": "test", "test": "train"}
    for split in info["splits"]:
        split["name"] = other.get(split["name"], split["name"])
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path


def settings(path, **changes):
    return tiny(path, **{k.replace(".", "__"): v for k, v in changes.items()}).data


def captions(path, split="train") -> list[str]:
    records = data.read(path, split)
    return [records[i].caption for i in range(len(records))]


def documents(batches, c, count):
    """The next documents as (kind, caption), row by row."""
    tokenizer, found = pipeline.tokenizer_of(c), []
    while len(found) < count:
        batch = next(batches)
        for r in range(len(batch.tokens)):
            for segment in range(1, batch.segment[r].max() + 1):
                mine = batch.segment[r] == segment
                words = mine & (batch.modality[r] == TEXT) & (batch.tokens[r] < TEXTS)
                picture = mine & (batch.modality[r] == IMAGE)
                kind = "image alone"
                if words.any():
                    kind = "text first" if words.argmax() < picture.argmax() else "image first"
                found.append((kind, bpe.decode(tokenizer, batch.tokens[r][words])))
    return found[:count]


def batches_of(c, seed=0, process=0, processes=1, steps=100):
    tokenizer = pipeline.tokenizer_of(c)
    return train_batches(c, tokenizer, ROWS, steps, seed, process, processes)


def read(c, count, seed=0, process=0, processes=1):
    with contextlib.closing(batches_of(c, seed, process, processes)) as batches:
        return documents(batches, c, count)


def test_batches_have_the_shapes_and_dtypes_of_a_batch(openmoji):
    c = settings(openmoji)
    with contextlib.closing(batches_of(c, 0)) as batches:
        some = [next(batches) for _ in range(20)]
    for batch in some:
        for name in batch._fields[:5]:
            field = getattr(batch, name)
            assert field.shape == (ROWS, c.length) and field.dtype == np.int32
        assert batch.weight.shape == (ROWS, c.length) and batch.weight.dtype == np.float32
        assert batch.pixels.shape == (ROWS, c.images, c.image, c.image, 3)
        assert batch.pixels.dtype == np.uint8
        assert batch.tokens.max() < 1024 and batch.image.max() == c.images
        for slot in range(1, c.images + 1):
            count = (batch.image == slot).sum(1)
            assert set(count) <= {0, c.patches}
            blank = ~batch.pixels[:, slot - 1].any(axis=(1, 2, 3))
            np.testing.assert_array_equal(blank, count == 0)
        np.testing.assert_array_equal(batch.modality == IMAGE, batch.image > 0)
    assert any((a.tokens != b.tokens).any() for a, b in itertools.pairwise(some))


def test_pictures_belong_to_their_captions(openmoji):
    c = settings(openmoji, **BOTH)
    tokenizer, records = pipeline.tokenizer_of(c), data.read(openmoji, "train")
    by_caption = {records[i].caption: records[i].images[0] for i in range(len(records))}
    with contextlib.closing(batches_of(c, 0)) as batches:
        batch = next(batches)
    for r in range(ROWS):
        for slot in range(1, batch.image[r].max() + 1):
            mine = batch.segment[r] == batch.segment[r][(batch.image[r] == slot).argmax()]
            words = mine & (batch.modality[r] == TEXT) & (batch.tokens[r] < TEXTS)
            png = by_caption[bpe.decode(tokenizer, batch.tokens[r][words])]
            pixels = decode_image(png, c.image, c.resize)
            np.testing.assert_array_equal(batch.pixels[r, slot - 1], pixels)


@pytest.mark.parametrize("steps", [0, 1, 5, 12])
def test_it_restores_bit_exactly_in_a_new_iterator(openmoji, steps):
    c = settings(openmoji)
    with contextlib.closing(batches_of(c, 3)) as batches:
        for _ in range(steps):
            next(batches)
        text = json.dumps(batches.get_state())
        rest = [next(batches) for _ in range(6)]
    assert len(text) < 200
    with contextlib.closing(batches_of(c, 3)) as again:
        again.set_state(json.loads(text))
        for want in rest:
            for x, y in zip(next(again), want, strict=True):
                np.testing.assert_array_equal(x, y)
    with contextlib.closing(batches_of(c, 3)) as fresh:
        assert np.array_equal(next(fresh).tokens, rest[0].tokens) == (steps == 0)
    with contextlib.closing(batches_of(c, 4)) as other:
        assert not np.array_equal(next(other).tokens, rest[0].tokens)


def test_an_epoch_is_every_document_once_and_the_next_has_another_order(exchanged):
    c = settings(exchanged, **BOTH | {"data.window": 222})
    found = [caption for _, caption in read(c, 444)]
    first, second = found[:222], found[222:]
    assert sorted(first) == sorted(second) == sorted(captions(exchanged))
    assert first != second and len(set(first)) == 222


def epoch(c, processes, state=None, stop=None):
    """Captions a row that `processes` processes give out from a state on, and the state then."""
    shares = [batches_of(c, 0, p, processes) for p in range(processes)]
    tokenizer, found = pipeline.tokenizer_of(c), []
    for share in shares:
        if state is not None:
            share.set_state(state)
    while shares[0].get_state()["batch"] < stop:
        for share in shares:
            batch = next(share)
            assert len(batch.tokens) == ROWS // processes
            words = (batch.modality == TEXT) & (batch.tokens < TEXTS)
            for r in range(len(batch.tokens)):
                mine = [words[r] & (batch.segment[r] == s) for s in range(1, 99)]
                found.append([bpe.decode(tokenizer, batch.tokens[r][m]) for m in mine if m.any()])
    states = [share.get_state() for share in shares]
    assert all(s == states[0] for s in states)
    for share in shares:
        share.close()
    return found, states[0]


def test_a_run_may_go_on_with_another_number_of_processes(exchanged):
    """No document twice, none lost, and the very same batches."""
    c = settings(exchanged, **BOTH | {"data.window": 37})
    whole, _ = epoch(c, 1, stop=16)
    first, state = epoch(c, 4, stop=5)
    second, state = epoch(c, 2, json.loads(json.dumps(state)), 11)
    third, _ = epoch(c, 1, state, 16)
    assert first + second + third == whole
    given = [caption for row in whole for caption in row][:222]
    assert sorted(given) == sorted(captions(exchanged))
    assert epoch(c, 1, stop=5)[0] != epoch(settings(exchanged, **BOTH), 1, stop=5)[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches_and_may_change_on_the_way(openmoji, workers):
    plain, many = settings(openmoji), settings(openmoji, **{"data.workers": workers})
    with contextlib.closing(batches_of(plain)) as batches:
        want = [next(batches) for _ in range(7)]
    with contextlib.closing(batches_of(many)) as batches:
        got = [next(batches) for _ in range(3)]
        state = batches.get_state()
    with contextlib.closing(batches_of(plain)) as batches:
        batches.set_state(state)
        got += [next(batches) for _ in range(2)]
        state = batches.get_state()
    with contextlib.closing(batches_of(many)) as batches:
        batches.set_state(state)
        got += [next(batches) for _ in range(2)]
    for a, b in zip(got, want, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(want[0].tokens, want[1].tokens)


def test_a_killed_worker_is_one_line(openmoji):
    c = settings(openmoji, **{"data.workers": 2})
    with contextlib.closing(batches_of(c)) as batches:
        next(batches)
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"a data worker was killed .*data\.workers"):
            for _ in range(20):
                next(batches)
    assert not multiprocessing.active_children()


ORPHAN = """
import sys, time
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    import multiprocessing
    import test_pipeline
    batches = test_pipeline.batches_of(test_pipeline.settings({path!r}, **{{"data.workers": 1}}))
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


def test_workers_leave_with_their_parent_however_it_ends(openmoji, tmp_path):
    script = tmp_path / "script.py"
    tests = os.path.dirname(__file__)
    script.write_text(ORPHAN.format(tests=tests, path=str(openmoji)))
    path = os.pathsep.join([os.path.dirname(tests), os.path.dirname(os.path.dirname(tests))])
    environment = os.environ | {"PYTHONPATH": path}
    args = [sys.executable, str(script)]
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with subprocess.Popen(args, text=True, env=environment, **quiet) as process:
        worker = int(process.stdout.readline())
        os.kill(worker, 0)  # it is there
        process.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and os.path.exists(f"/proc/{worker}/cmdline"):
        with contextlib.suppress(OSError), open(f"/proc/{worker}/cmdline") as file:
            if not file.read():  # ended, and nobody asked how
                break
        time.sleep(0.05)
    else:
        assert not os.path.exists(f"/proc/{worker}/cmdline")


def test_captions_are_dropped_and_put_first_as_often_as_asked(openmoji):
    c = settings(openmoji, **{"data.text_first": 0.8, "data.caption_dropout": 0.1})
    count = collections.Counter(kind for kind, _ in read(c, 2000))
    assert abs(count["image alone"] / 2000 - 0.1) < 0.025
    with_text = count["text first"] + count["image first"]
    assert abs(count["text first"] / with_text - 0.8) < 0.03
    never = settings(openmoji, **BOTH | {"data.text_first": 0.0})
    assert {kind for kind, _ in read(never, 200)} == {"image first"}


def test_a_document_has_its_caption_and_its_picture(openmoji):
    record = data.read(openmoji, "train")[0]
    text, image = Text(record.caption), Image(record.images[0])
    rng = np.random.default_rng(0)
    for first, dropout, want in (
        (1.0, 0.0, [text, image]),
        (0.0, 0.0, [image, text]),
        (0.5, 1.0, [image]),
    ):
        c = settings(openmoji, **{"data.text_first": first, "data.caption_dropout": dropout})
        assert list(transform.to_document(c, "", record, rng)) == want


def two(openmoji, exchanged, weights):
    """Two sources under names of the user's own."""
    c = tiny_config(openmoji, **{k.replace(".", "__"): v for k, v in BOTH.items()})
    paths = (openmoji, exchanged)
    c.data.sources = {
        name: {"path": str(p), "weight": w, "template": "", "balance": False}
        for name, p, w in zip(("mine", "yours"), paths, weights, strict=True)
    }
    return config.resolve(c, run.families()).data


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.1, 0.4)])
def test_sources_are_mixed_by_weight(openmoji, exchanged, weights):
    mine = set(captions(openmoji))
    assert not mine & set(captions(exchanged))
    found = [caption for _, caption in read(two(openmoji, exchanged, weights), 640)]
    share = sum(caption in mine for caption in found) / len(found)
    assert abs(share - weights[0] / sum(weights)) < 0.01


def test_a_hundred_thousand_draws_come_out_as_asked():
    weights = (0.62, 0.0, 0.31, 0.07)
    parts = [grain.MapDataset.source([k] * 7).repeat() for k in range(4)]
    mixed = mixture.mix(parts, weights)
    count = collections.Counter(mixed[n] for n in range(100_000))
    for k, weight in enumerate(weights):
        assert abs(count[k] / 100_000 - weight) < 1e-3
    early = collections.Counter(mixed[n] for n in range(100))
    assert all(abs(early[k] / 100 - w) < 0.02 for k, w in enumerate(weights))  # from the start on
    assert abs(count[0] - count[2]) > 30_000


def test_kinds_of_documents_take_turns(openmoji):
    """Ninety captions and ten captioned pictures come in equal shares."""
    pictures = [data.read(openmoji, "train")[i] for i in range(10)]
    texts = [Record(str(i), (Text(f"text {i}"),)) for i in range(90)]
    source = config.SourceConfig("unused", 1.0, "", True)
    balanced = mixture.stream(source, texts + pictures, 0)
    drawn = [[type(part) for part in balanced[n][1].document] for n in range(200)]
    assert sum(Image in parts for parts in drawn) == 100
    plain = mixture.stream(dataclasses.replace(source, balance=False), texts + pictures, 0)
    drawn = [[type(part) for part in plain[n][1].document] for n in range(200)]
    assert sum(Image in parts for parts in drawn) == 20
    first = [balanced[n][1].document for n in range(20)]
    assert len({part.data for d in first for part in d if isinstance(part, Image)}) == 10


def test_kinds_are_those_of_what_a_template_makes_of_records():
    """Ninety ask about a picture and ten for one; as they lie there, all are interleaved."""
    roles = {"roles": ["human", "human", "gpt"]}
    seen = (Text("what is it?"), Image(b"x"), Text("a cat"))
    wanted = (Image(b"x"), Text("and in black?"), Image(b"y"))
    records = [Record(str(i), seen if i < 90 else wanted, roles) for i in range(100)]
    assert {transform.kind(record.document) for record in records} == {"interleaved"}
    source = config.SourceConfig("unused", 1.0, "sep", True)
    for balance, want in ((True, 100), (False, 20)):
        drawn = mixture.stream(dataclasses.replace(source, balance=balance), records, 0)
        assert sum(int(drawn[n][1].id) >= 90 for n in range(200)) == want


def test_the_mixture_changes_with_its_stage_and_goes_on_from_anywhere(openmoji, exchanged):
    c = two(openmoji, exchanged, (1.0, 1.0))
    only = [{"mine": 1.0, "yours": 0.0}, {"mine": 0.0, "yours": 1.0}]
    parts = zip((0.5, 1.0), only, strict=True)
    stages = {str(until): config.StageConfig(until, weights) for until, weights in parts}
    staged = dataclasses.replace(c, stages=stages)
    mine = set(captions(openmoji))
    with contextlib.closing(batches_of(staged, steps=8)) as batches:
        whole, states = [], []
        for _ in range(8):
            states.append(batches.get_state())
            whole.append(next(batches))
    tokenizer = pipeline.tokenizer_of(c)
    for step, batch in enumerate(whole):
        words = (batch.segment[0] == 1) & (batch.modality[0] == TEXT) & (batch.tokens[0] < TEXTS)
        assert (bpe.decode(tokenizer, batch.tokens[0][words]) in mine) == (step < 4)
    for step in (3, 4, 5):  # before, at and after the change
        with contextlib.closing(batches_of(staged, steps=8)) as again:
            again.set_state(json.loads(json.dumps(states[step])))
            for want in whole[step:]:
                np.testing.assert_array_equal(next(again).tokens, want.tokens)


def test_spans_move_in_the_stream_and_back(openmoji):
    c = settings(openmoji, **BOTH | {"data.spans": 1.0})
    tokenizer = pipeline.tokenizer_of(c)
    vocab = bpe.vocabulary(tokenizer)
    plain = pipeline.documents(
        settings(openmoji, **BOTH), tokenizer, vocab, 0, 0, {"openmoji": 1.0}
    )
    moved = pipeline.documents(c, tokenizer, vocab, 0, 0, {"openmoji": 1.0})
    some = list(zip(plain(range(200)), moved(range(200)), strict=True))
    for a, b in some:
        back = invert(b, vocab)
        assert all(np.array_equal(a[k], back[k]) for k in ("tokens", "image", "position"))
    assert 60 < sum(len(a["tokens"]) < len(b["tokens"]) for a, b in some) < 180
    for (_, a), b in zip(some, moved(range(200)), strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
    exact = settings(openmoji, **BOTH | {"data.spans": 1.0, "data.spans_fixed": True})
    every = pipeline.documents(exact, tokenizer, vocab, 0, 0, {"openmoji": 1.0})(range(200))
    grown = [len(b["tokens"]) - len(a["tokens"]) for (a, _), b in zip(some, every, strict=True)]
    assert set(grown) <= {0, 3} and sum(g == 3 for g in grown) > 190
    with pytest.raises(UserError, match=r"data\.spans=0\.5 with data\.spans_fixed=True must be"):
        settings(openmoji, **BOTH | {"data.spans": 0.5, "data.spans_fixed": True})
    other = moved(range(200, 400))
    assert not np.array_equal(other[0]["tokens"], some[0][1]["tokens"])


def test_conversations_are_laid_out_by_their_template(openmoji):
    c = settings(openmoji)
    asked = [
        {"question": "what is it?", "answer": "a cat"},
        {"question": "how many?", "answer": "one"},
    ]
    record = Record("x", (Text("a cat"), Image(b"")), {"questions": asked})
    document = transform.to_document(c, "sep", record, np.random.default_rng(0))
    assert [part for part in document if not isinstance(part, Image)] == [
        Text("what is it?", False), ASKED, Text("a cat"), SEP,
        Text("how many?", False), ASKED, Text("one"),
    ]  # fmt: skip
    told = transform.to_document(c, "vicuna", record, np.random.default_rng(0))
    said = [(part.text, part.loss) for part in told if isinstance(part, Text)]
    assert said[1:4] == [("what is it?", False), ("ASSISTANT:", False), ("a cat", True)]
    for seed in range(4):
        drawn = transform.to_document(c, "sep_one", record, np.random.default_rng(seed))
        assert [p for p in drawn if not isinstance(p, Image)] in (
            [Text("what is it?", False), ASKED, Text("a cat")],
            [Text("how many?", False), ASKED, Text("one")],
        )
    drawn = transform.to_document(c, "sep_draw", record, np.random.default_rng(0))
    assert drawn == (Text("a cat", False), ASKED, Image(b""))
    assert transform.kind(drawn) == "text_to_image" != transform.kind(document)
    with pytest.raises(UserError, match="record y has no picture, which the template 'sep_draw'"):
        transform.to_document(c, "sep_draw", Record("y", (Text("a cat"),)), None)
    for known in ("", *transform.TEMPLATES):
        source = config.SourceConfig("unused", 1.0, known, False)
        pipeline.check(dataclasses.replace(c, sources={"mine": source}))
    wrong = config.SourceConfig("unused", 1.0, "chat", False)
    with pytest.raises(UserError, match=r"template='chat' is unknown; have: .*sep"):
        pipeline.check(dataclasses.replace(c, sources={"mine": wrong}))
    with pytest.raises(UserError, match=r"resize='cubic' is unknown; have: pil_box"):
        pipeline.check(dataclasses.replace(c, resize="cubic"))
    with pytest.raises(UserError, match=r"resize_prompt='cubic' is unknown; have: pil_box"):
        pipeline.check(dataclasses.replace(c, resize_prompt="cubic"))
    for share in ("text_first", "caption_dropout"):
        with pytest.raises(UserError, match=rf"data.{share}=10.0 is a share: give 0 to 1"):
            dataclasses.replace(c, **{share: 10.0})


def test_a_mixture_restores_too(openmoji, exchanged):
    c = two(openmoji, exchanged, (1.0, 1.0))
    with contextlib.closing(batches_of(c, 0)) as batches:
        for _ in range(7):
            next(batches)
        state, want = json.dumps(batches.get_state()), next(batches)
    with contextlib.closing(batches_of(c, 0)) as again:
        assert not np.array_equal(next(again).tokens, want.tokens)
        again.set_state(json.loads(state))
        np.testing.assert_array_equal(next(again).tokens, want.tokens)


def test_data_that_is_not_there_names_the_command(openmoji, tmp_path):
    nothing = settings(tmp_path / "nothing")
    command = f"mmjax data build --src=openmoji --dst={tmp_path / 'nothing'}"
    for function in (pipeline.tokenizer_of, batches_of):
        with pytest.raises(UserError, match="no data set in") as error:
            function(nothing)
        assert f"`{command}`" in str(error.value)
    assert not (tmp_path / "nothing").exists()
    for name, text in (("dataset_info.json", "["), ("dataset.json", "["), ("dataset.json", "{}")):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match="damaged"):
            pipeline.open_split(tmp_path, "train")
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match="holds no data set; `mmjax data build`"):
        pipeline.open_split(tmp_path, "train")


def test_a_damaged_record_is_one_line_in_the_loop(exchanged, tmp_path):
    """The error comes out of two threads of grain as what it is."""
    shutil.copytree(exchanged, tmp_path / "set")
    file = next((tmp_path / "set").glob("*-train.array_record*"))
    raw = bytearray(file.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 4096] = b"\xff" * 4096
    file.write_bytes(raw)
    with pytest.raises(UserError, match="damaged"):
        read(settings(tmp_path / "set"), 222)


def test_a_closed_iterator_has_stopped_its_thread(openmoji):
    batches = batches_of(settings(openmoji), 0)
    next(batches)
    before = threading.active_count()
    batches.close()
    batches.close()
    assert threading.active_count() < before
