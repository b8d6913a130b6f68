"""Evaluations on a tiny trained run: names, chance for a model that knows nothing, baselines."""

import base64
import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny import tiny

import mmjax
from mmjax.batch import Image, Text
from mmjax.data import build
from mmjax.error import UserError
from mmjax.evals import EVALS, caption, heldout, likelihood
from mmjax.evaluate import evaluate
from mmjax.log import read_metrics
from mmjax.train import train

NAMES = {
    "text_nll", "text_nll_alone", "text_nll_unigram", "image_flow_loss", "image_flow_loss_mean",
    "image_flow_loss_zero", "image_flow_loss_linear", "choice_among_10",
    "choice_among_10_pmi", "drawn_choice_among_10", "frechet_lite0", "frechet_lite0_true",
}  # fmt: skip


@pytest.fixture(scope="module")
def workdir(openmoji, tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(tiny(openmoji), path, jax.devices()[:1])
    return path


@pytest.fixture(scope="module")
def trained(workdir):
    return mmjax.load(workdir, devices=jax.devices()[:1])


def test_summary_holds_every_name_with_n_seed_and_interval(workdir):
    evaluate(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    tones = {name for name in summary if name.startswith("written_tone")}
    assert {"written_tone", "written_tone_other"} <= tones  # all of these combinations have one
    assert set(summary) - tones == NAMES | {f"{n}_concepts" for n in NAMES}
    for name, entry in summary.items():
        assert set(entry) == {"value", "n", "seed", "ci95"}
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
        assert entry["n"] == 16 or name in {f"{tone}_concepts" for tone in tones}
    for split in heldout.SPLITS:
        for kind in ("drawn", "written"):
            with PILImage.open(workdir / "samples" / f"{kind}_{split}.png") as sheet:
                assert sheet.width > 300 and len(sheet.getcolors(1 << 24)) > 50


def test_a_tone_counts_only_where_all_of_it_and_nothing_else_is_named():
    true = ["light", "medium-light", "dark", "light + dark"]
    right = [f"man, {tone.replace(' + ', ' skin tone, ')} skin tone" for tone in true]
    assert caption.tones(right, true, 0)["written_tone"].value == 1.0
    assert caption.tones(right, true, 0)["written_tone_other"].value == 0.0
    wrong = ["man", "man, light skin tone", "man, dark skin tone, dark skin tone", right[0]]
    assert caption.tones(wrong, true, 0)["written_tone"].value == 0.0
    assert set(caption.tones(right[:1], true[:1], 0)) == {"written_tone"}


def test_what_was_found_before_stays_if_it_is_of_the_same_step(workdir, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    (run / "evals.json").unlink(missing_ok=True)
    first, second = (set(evaluate(run, [name])) for name in ("likelihood", "caption"))
    assert first and second and not first & second
    said = capsys.readouterr().err.splitlines()  # which evaluation, where no terminal is
    assert [line for line in said if line.startswith("evaluate") and "  " not in line] == [
        "evaluate 1/1: likelihood",
        "evaluate 1/1: caption",
    ]
    for name in ("summary.json", "evals.json"):
        assert set(json.loads((run / name).read_text())) - {"step"} == first | second
    old = json.loads((run / "evals.json").read_text())
    (run / "evals.json").write_text(json.dumps(old | {"step": old["step"] - 1}))
    evaluate(run, ["likelihood"])  # of another step: replaced
    assert set(json.loads((run / "summary.json").read_text())) == first
    for name in ("summary.json", "evals.json"):
        (run / name).unlink()
    assert evaluate(run, []) == {} and json.loads((run / "summary.json").read_text()) == {}
    (run / "evals.json").write_text("{")
    with pytest.raises(UserError, match=r"evals\.json is damaged; remove it"):
        evaluate(run, ["likelihood"])


def test_what_was_stopped_keeps_what_it_found_and_has_no_summary(workdir, tmp_path, monkeypatch):
    """A run whose evaluation was cut short is not taken for one that is done."""
    run = tmp_path / "run"
    shutil.copytree(workdir, run)
    for name in ("summary.json", "evals.json"):
        (run / name).unlink(missing_ok=True)

    def stopped(*given):
        raise KeyboardInterrupt

    monkeypatch.setitem(EVALS, "caption", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, ["likelihood", "caption"])
    assert "text_nll" in json.loads((run / "evals.json").read_text())
    assert not (run / "summary.json").exists()


def with_own(workdir, path, run, **pictures):
    """A copy of a run that reads another set: so many noisy pictures in each split."""
    rng = np.random.default_rng(0)
    for split, count in pictures.items():
        folder = path / "in" / split
        folder.mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(0, 256, (8, 8, 3), np.uint8)
            PILImage.fromarray(noise).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(f"{split} number {i}")
    build.build(str(path / "in"), path / "set", "folder", vocabulary=300)
    shutil.copytree(workdir, run, ignore=shutil.ignore_patterns("samples", "*evals*", "summary*"))
    config = json.loads((run / "config.json").read_text())
    config["data"]["sources"]["openmoji"]["path"] = str(path / "set")
    (run / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("pictures", "split", "suffix", "among"), [
    (dict(train=4, test=3, validation=2), "test", "", 3),
    (dict(train=4, test=1), "train", "_train", 4),
])  # fmt: skip
def test_of_few_pictures_what_there_is_is_measured_and_drawn(
    workdir, tmp_path, capsys, pictures, split, suffix, among
):
    run = tmp_path / "run"
    with_own(workdir, tmp_path, run, **pictures)
    values = evaluate(run, ["likelihood", "caption", "drawing"])
    name = f"drawn_choice_among_{among}{suffix}"
    assert values[name].n == among and values[name].high - values[name].low > 0.4
    assert f"choice_among_{among}{suffix}" in values and f"text_nll{suffix}" in values
    assert set(json.loads((run / "summary.json").read_text())) == set(values)
    sheets = {file.name for file in (run / "samples").iterdir()}
    assert sheets == {f"drawn_{split}.png", f"written_{split}.png"}
    out = capsys.readouterr().out
    assert f"contact sheets: {run / 'samples'}\n" in out
    assert ("measured on `train`" in out and "--test=0.2" in out) == (split == "train")


def test_a_split_of_ten_goes_before_fewer_and_a_held_out_one_before_training(
    trained, workdir, tmp_path
):
    for number, (pictures, wanted) in enumerate([
        (dict(train=2, compositional=2, test=10), {"test": ""}),
        (dict(train=2, compositional=2, test=9), {"compositional": "", "test": "_concepts"}),
        (dict(train=2, validation=2, test=1), {"validation": "_validation"}),
        (dict(train=1), {}),
    ]):  # fmt: skip
        place, run = tmp_path / f"{number}", tmp_path / f"run{number}"
        lines, e = [], trained.run.experiment
        for split, count in pictures.items():
            for i in range(count):
                data = heldout.draw(trained, "test", 12, 0)[i].image
                parts = [{"text": f"{split} {i}"}]
                parts.append({"image_base64": base64.b64encode(data).decode()})
                lines.append(json.dumps({"split": split, "parts": parts}))
        place.mkdir()
        (place / "a.jsonl").write_text("\n".join(lines))
        build.build(str(place), run, "jsonl", vocabulary=300)
        source = replace(e.data.sources["openmoji"], path=str(run))
        data = replace(e.data, sources={"own": source})
        own = replace(trained, run=replace(trained.run, experiment=replace(e, data=data)))
        assert heldout.splits(own) == wanted


def test_where_nothing_is_measured_no_sheet_is_promised(workdir, tmp_path, capsys):
    run = tmp_path / "run"
    with_own(workdir, tmp_path, run, train=1)
    assert evaluate(run, ["caption", "drawing"]) == {} and not (run / "samples").exists()
    out = capsys.readouterr().out
    assert "contact sheets" not in out and "nothing evaluated" in out and "--test=0.2" in out


def test_a_model_of_text_alone_trains_and_is_scored_by_it(tmp_path, capsys):
    """On real prose; documents longer than a row are left out, and that is said."""
    build.build("prose", tmp_path / "set")
    run = tmp_path / "run"
    e = tiny(tmp_path / "set", steps=2, data__length=384)
    train(e, run, jax.devices()[:1])
    # By the source's name in this experiment.
    assert set(evaluate(run)) == {"passage_nll_openmoji", "passage_nll_openmoji_words"}
    rows = read_metrics(run)
    assert rows[-1]["text/nll"] > 0 == rows[-1]["image"] and rows[-1]["left_out"] > 0
    assert "larger than a row and left out; raise data.length=384" in capsys.readouterr().err


def test_pictures_are_found_behind_a_source_of_text(trained, tmp_path):
    build.build("prose", tmp_path / "set")
    e = trained.run.experiment
    (source,) = e.data.sources.values()
    text = replace(source, path=str(tmp_path / "set"))

    def holding(**sources):
        data = replace(e.data, sources=sources)
        return replace(trained, run=replace(trained.run, experiment=replace(e, data=data)))

    both = holding(a_text=text, pictures=source)
    assert heldout.source(both) == "pictures" and heldout.splits(both) == heldout.splits(trained)
    assert heldout.draw(both, "test", 5, 0) == heldout.draw(trained, "test", 5, 0)
    alone = holding(a_text=text)
    assert heldout.source(alone) == "a_text" and not heldout.splits(alone)


def test_unknown_evaluation(workdir):
    with pytest.raises(UserError, match=r"fid.*has: likelihood"):
        evaluate(workdir, ["fid"])


def test_workdir_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        mmjax.load(tmp_path)


def test_unigram_is_a_distribution_and_knows_frequencies(trained):
    vocab = trained.run.model.parts.vocabulary
    table = likelihood.unigram(["man", "man", "cat"], trained.run.tokenizer, vocab.size, vocab.eos)
    np.testing.assert_allclose(np.exp(table).sum(), 1.0)
    assert table.argmax() == vocab.eos


def test_score_adds_up_token_by_token(trained):
    """A caption's score given its picture is what `choice` ranks by."""
    record = heldout.draw(trained, "test", 1, 0)[0]
    document = [Image(record.image), Text(record.caption)]
    other = [Image(record.image), Text("zebra crossing the street")]
    scores = trained.score([document, other])
    direct = caption.log_likelihood(trained, [document, other])
    np.testing.assert_allclose(scores, direct, rtol=1e-4)
    assert scores[0] != scores[1] and (scores < 0).all()


def test_embedding_is_of_the_document_alone(trained):
    """Neither padding nor the company a document is embedded in changes it; its content does."""
    record = heldout.draw(trained, "test", 1, 0)[0]
    document, other = ["a cat", Image(record.image)], ["a dog", Image(record.image)]
    long = ["man swimming in the sea, light skin tone", Image(record.image)]
    alone, among = trained.embed([document]), trained.embed([document, long, other])
    np.testing.assert_allclose(among[0], alone[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(among, axis=-1), 1.0, rtol=1e-5)
    assert among.shape == (3, 32) and abs(among[0] - among[2]).max() > 1e-4


def test_generate_draws_and_writes_in_order_and_by_seed(trained, tmp_path):
    record = heldout.draw(trained, "test", 1, 0)[0]
    path = tmp_path / "picture.png"
    path.write_bytes(record.image)
    prompts = [["a cat", mmjax.IMAGE], [path], ["man swimming", mmjax.IMAGE], [record.image]]
    first = trained.generate(prompts, seed=1)
    again = trained.generate(prompts, seed=1)
    assert first[0].shape == (8, 8, 3) and first[0].dtype == np.uint8
    assert isinstance(first[1], str) and first[1] == first[3]
    np.testing.assert_array_equal(first[2], again[2])
    assert (trained.generate(prompts, seed=2)[0] != first[0]).any()


def test_bad_prompts(trained, tmp_path):
    with pytest.raises(UserError, match="has a slot before its end"):
        trained.generate([[mmjax.IMAGE, "a cat"]])
    with pytest.raises(UserError, match="shorten it by"):
        trained.generate([["cat " * 200, mmjax.IMAGE]])
    with pytest.raises(UserError, match="does not exist"):
        trained.generate([[tmp_path / "no.png"]])
    with pytest.raises(UserError, match="cannot be decoded"):
        trained.generate([[b"not a picture"]])
