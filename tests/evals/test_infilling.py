"""Holes in captions, and what is put into them against what was there."""

import re
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image as PILImage
from tiny import tiny_chameleon_config

import mmjax
from mmjax import config, run
from mmjax.batch import Image
from mmjax.data import build
from mmjax.data import tokenizer as bpe
from mmjax.evals import heldout, infilling
from mmjax.trained import Trained

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Trained:
    """A Chameleon of CM3's objective that was never trained, on scenes."""
    home = tmp_path_factory.mktemp("infilling") / "scenes"
    build.build("scenes", home, options={"count": 150, "size": 16, "level": 3})
    changes = {"data__spans": 1.0, "data__length": 96, "start": {}}
    c = tiny_chameleon_config(home, **changes)
    c.evals.documents, c.evals.drawings = 12, 11
    parts = run.prepare(config.resolve(c, run.families()), ONE)
    return Trained(parts, parts.init().params, 0)


@pytest.fixture(scope="module")
def records(untrained):
    return heldout.draw(untrained, next(iter(heldout.splits(untrained))), 12, 0)


def test_a_hole_is_a_word_between_two_words_and_the_rest_is_cut_as_the_whole_is(untrained, records):
    captions = [r.caption for r in records]
    found = infilling.holes(captions, 0)
    tokens = untrained.run.tokenizer
    assert len(found) == len(captions)
    for (_, before, word, behind), caption in zip(found, captions, strict=True):
        assert f"{before} {word} {behind}" == caption
        assert len(word) > 2 and re.search(r"\w$", before) and re.search(r"^\w", behind)
        pieces = [i for part in (before, word, behind) for i in bpe.encode(tokens, part)]
        assert pieces == bpe.encode(tokens, caption)
    assert infilling.holes(captions, 0) == found != infilling.holes(captions, 1)
    assert infilling.holes(["one, two", "a red ring", "the"], 0) == [(1, "a", "red", "ring")]


@dataclass
class Reader:
    """Fills in the word its picture's caption has there, or always `fixed`."""

    trained: Trained
    captions: dict
    fixed: str = ""

    def __getattr__(self, name) -> Any:
        return getattr(self.trained, name)

    def generate(self, prompts, seed, **options):
        out = []
        for picture, before, slot, behind in prompts:
            assert slot is mmjax.TEXT and isinstance(picture, Image)
            caption = self.captions[picture.data]
            inside = caption.startswith(before) and caption.endswith(behind)
            out.append(self.fixed or (caption.split()[len(before.split())] if inside else ""))
        return out


def test_words_are_held_against_the_caption_and_the_blind_see_another_picture(untrained, records):
    captions = {r.image: r.caption for r in records}
    seeing = infilling.words(Reader(untrained, captions), records, 0)
    assert seeing["word"].value == 1.0 and seeing["word_blind"].value < 0.3
    words = [word for _, _, word, _ in infilling.holes(list(captions.values()), 0)]
    usual = max(set(words), key=words.count)
    always = infilling.words(Reader(untrained, captions, usual), records, 0)
    assert always["word"].value == seeing["word_majority"].value == words.count(usual) / len(words)
    assert 0 < always["word"].value < 1 and always["word_blind"] == always["word"]


def test_an_untrained_model_is_no_better_than_chance_and_others_are_not_asked(untrained, tmp_path):
    values = infilling.evaluate(untrained, 0, tmp_path)
    names = {"word", "word_blind", "word_majority", "choice_among_10", "all"}
    splits = heldout.splits(untrained)
    assert set(values) == {f"infilled_{n}{s}" for n in names for s in splits.values()}
    assert values["infilled_word"].value == values["infilled_all"].value == 0.0
    assert values["infilled_choice_among_10"].n == 11
    for split in splits:
        with PILImage.open(tmp_path / f"infilled_{split}.png") as sheet:
            assert sheet.width > 300
    e = untrained.run.experiment
    other = replace(untrained.run, experiment=replace(e, data=replace(e.data, spans=0.0)))
    assert infilling.evaluate(replace(untrained, run=other), 0, tmp_path) == {}


def test_pictures_missing_before_their_captions_are_the_ones_asked_for(
    untrained, records, tmp_path, monkeypatch
):
    true = np.stack([np.asarray(p) for p in infilling.reconstruction.pictures(untrained, records)])
    asked = []

    def generate(self, prompts, seed, **options):
        asked.extend(prompts)
        return list(true[:11])

    monkeypatch.setattr(Trained, "generate", generate)
    found = infilling.pictures(untrained, records, "compositional", 0, tmp_path)
    assert found["choice_among_10"].value == 1.0
    assert asked == [[mmjax.IMAGE, r.caption] for r in records[:11]]
    true = np.roll(true, 1, axis=0)
    found = infilling.pictures(untrained, records, "compositional", 0, tmp_path)
    assert found["choice_among_10"].value < 0.4
