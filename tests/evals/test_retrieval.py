"""Recall: whose is nearest, ties, equal texts, chance, and the baseline that knows colours."""

import itertools

import numpy as np

from mmjax.evals.retrieval import RANKS, by_colours, chances, colours, ranks, recalls


def test_a_rank_counts_what_lies_before_ones_own():
    score = np.array([[0.9, 0.5, 0.1], [0.8, 0.5, 0.9], [0.0, 0.0, 0.0]])
    assert ranks(score, "abc").tolist() == [0, 2, 2]  # ties are lost: a constant finds nothing
    # The first two have the same text: either picture will do, and neither stands in the way.
    assert ranks(score, "aab").tolist() == [0, 1, 2]
    found = recalls(np.eye(12) + 0.01, [str(i) for i in range(12)])
    assert set(found) == {f"{a}_at_{k}" for a in ("image", "text") for k in RANKS}
    assert all(hits.all() for hits in found.values())
    turned = recalls(np.roll(np.eye(12), 1, axis=1), [str(i) for i in range(12)])
    assert not any(hits.any() for hits in turned.values())


def test_vectors_that_are_no_numbers_find_nothing():
    score = np.eye(12)
    score[0], score[:, 1] = np.nan, np.nan  # text 0, picture 1
    found = recalls(score, [str(i) for i in range(12)])
    assert not any(hits[:2].any() for hits in found.values())
    assert not found["image_at_1"].any() and found["image_at_5"][2:].all()


def test_both_directions_are_told_apart():
    score = np.array([[0.5, 0.6], [0.1, 0.7]])  # text 0 prefers picture 1; picture 0 its own text
    found = recalls(score, "ab")
    assert found["image_at_1"].tolist() == [False, True]
    assert found["text_at_1"].tolist() == [True, True]


def test_chance_is_that_of_all_orders():
    names = "aabc"
    hits = {k: [] for k in (1, 5)}
    for order in itertools.permutations(range(4)):
        for i, k in itertools.product(range(4), hits):
            hits[k].append(any(names[j] == names[i] for j in order[:k]))
    found = chances(names)
    for k, some in hits.items():
        assert abs(found[f"image_at_{k}"] - np.mean(some)) < 1e-12
        assert found[f"image_at_{k}"] == found[f"text_at_{k}"]


def test_colours_tell_what_words_name_them():
    rng = np.random.default_rng(0)
    palette = {"red": (220, 20, 20), "green": (20, 200, 30), "blue": (10, 10, 240)}
    words = [str(rng.choice(list(palette))) for _ in range(60)]
    noise = rng.integers(-8, 9, (60, 6, 6, 3))
    shown = np.clip(np.array([palette[w] for w in words])[:, None, None] + noise, 0, 255)
    shown = shown.astype(np.uint8)
    np.testing.assert_allclose((colours(shown) ** 2).sum(1), 1.0)
    score = by_colours(words[:40], shown[:40], words[40:], shown[40:])
    assert recalls(score, words[40:])["image_at_1"].all()
    assert recalls(np.roll(score, 1, axis=1), words[40:])["image_at_1"].mean() < 0.7
