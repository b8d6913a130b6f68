"""Is what is missing filled in? For models trained on CM3's objective."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from mmjax.batch import Image
from mmjax.data.scenes.say import read
from mmjax.evals import heldout, reconstruction
from mmjax.evals.drawing import nearest_is_own
from mmjax.evals.scenes import shows
from mmjax.evals.value import Value, proportion
from mmjax.sample.request import IMAGE, TEXT
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained

# A word between two others: beside a comma the parts would not be cut as the whole text is.
WORD = re.compile(r"(?<=\w )\w{3,}(?= \w)")
TEXT_TOKENS = 16  # most that are written into a hole of one word


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Holes in held-out documents of each split; writes `infilled_<split>.png`.

    `infilled_word`: share of captions, their picture before them, in which one word drawn at random
    is filled in as it was. `_blind`: before another picture; `_majority`: by the most frequent
    such word of the split, which is more than chance.
    `infilled_choice_among_10`: a picture missing before its caption is nearer to the true one than
    to nine others (chance 0.10; of k pictures, fewer than ten, `_k` and 1/k). `infilled_all`: it
    shows, by the oracle, what the caption says.
    """
    if not trained.run.experiment.data.spans:
        return {}
    values: dict[str, Value] = {}
    for split, suffix in heldout.splits(trained).items():
        records = heldout.draw(trained, split, trained.run.experiment.evals.documents, seed)
        found = words(trained, records, seed) | pictures(trained, records, split, seed, out)
        values |= {f"infilled_{name}{suffix}": value for name, value in found.items()}
    return values


def holes(captions, seed: int) -> list[tuple[int, str, str, str]]:
    """(number, what is before, the word, what is behind) for each caption that has such a word."""
    rng = np.random.default_rng(seed)
    found = []
    for number, caption in enumerate(captions):
        if some := list(WORD.finditer(caption)):
            at = some[rng.integers(len(some))]
            before, behind = caption[: at.start()].strip(), caption[at.end() :].strip()
            found.append((number, before, at[0], behind))
    return found


def words(trained: Trained, records, seed: int) -> dict[str, Value]:
    """Text into a caption."""
    cut = holes([r.caption for r in records], seed)
    if not cut:
        return {}

    def right(shift: int) -> list[bool]:
        prompts = [
            [Image(records[(n + shift) % len(records)].image), before, TEXT, behind]
            for n, before, _, behind in cut
        ]
        made = trained.generate(prompts, seed, text=TEXT_TOKENS, temperature=0.0)
        return [m == word for m, (_, _, word, _) in zip(made, cut, strict=True)]

    usual = Counter(word for _, _, word, _ in cut).most_common(1)[0][0]
    return {
        "word": proportion(right(0), seed),
        "word_blind": proportion(right(1), seed),
        "word_majority": proportion([word == usual for _, _, word, _ in cut], seed),
    }


def pictures(trained: Trained, records, split: str, seed: int, out: Path) -> dict[str, Value]:
    """Pictures before their captions."""
    records = records[: trained.run.experiment.evals.drawings]
    made = np.stack(trained.generate([[IMAGE, r.caption] for r in records], seed))
    true = reconstruction.pictures(trained, records)
    among = heldout.choices(range(len(records)))
    table = heldout.others(range(len(records)), among, seed)
    found = {f"choice_among_{among}": proportion(nearest_is_own(made, true, table), seed)}
    if read(records[0].caption):
        hits = [shows(m, r.caption)["all"] for m, r in zip(made, records, strict=True)]
        found["all"] = proportion(hits, seed)
    rows = list(zip(made, true, records, strict=True))[: heldout.SHOWN]
    cells = [Cell([m, t], [r.caption]) for m, t, r in rows]
    sheet(cells, out / f"infilled_{split}.png", f"{split}: filled in (left) and true (right)")
    return found
