"""Are questions about held-out pictures answered? For models tuned on questions."""

from collections import Counter, defaultdict
from pathlib import Path

from mmjax.batch import Document, Image, Text
from mmjax.data.tokenizer import SEPARATOR
from mmjax.evals import heldout
from mmjax.evals.value import Value, proportion
from mmjax.trained import Trained

TRAIN = 5000  # training records whose answers the baseline knows


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """One question a picture, of each kind in turn, answered greedily and compared word for word.

    `answers_<kind>`, `answers`: share answered rightly on the first held-out split. `_majority`: by
    the kind's most frequent answer in training. `_blind`: asked about another picture.
    """
    e = trained.run.experiment
    if e.data.sources[heldout.source(trained)].template != "sep":
        return {}
    split = next(iter(heldout.splits(trained)), None)
    records = heldout.draw(trained, split, e.evals.documents, seed) if split else []
    records = [r for r in records if r.facts.get("questions")]
    if not records:
        return {}
    asked = [
        q["questions"][i % len(q["questions"])] for i, q in enumerate(r.facts for r in records)
    ]
    usual = majority(heldout.draw(trained, "train", TRAIN, seed))
    shifted = records[1:] + records[:1]
    given = {
        "": answers(trained, records, asked, seed),
        "_blind": answers(trained, shifted, asked, seed),
        "_majority": [usual.get(q["kind"], "") for q in asked],
    }
    values: dict[str, Value] = {}
    for name, made in given.items():
        right = [a == q["answer"] for a, q in zip(made, asked, strict=True)]
        values[f"answers{name}"] = proportion(right, seed)
        for kind in sorted({q["kind"] for q in asked}):
            some = [ok for ok, q in zip(right, asked, strict=True) if q["kind"] == kind]
            values[f"answers_{kind}{name}"] = proportion(some, seed)
    return values


def answers(trained: Trained, records, asked, seed: int) -> list[str]:
    """What the model answers to each question about each picture."""
    prompts: list[Document] = [
        [Image(r.image), Text(q["question"]), Text(SEPARATOR)]
        for r, q in zip(records, asked, strict=True)
    ]
    return trained.write(prompts, seed, temperature=0.0)


def majority(records) -> dict[str, str]:
    """Kind of question -> its most frequent answer."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for record in records:
        for question in record.facts.get("questions", ()):
            counts[question["kind"]][question["answer"]] += 1
    return {kind: found.most_common(1)[0][0] for kind, found in counts.items()}
