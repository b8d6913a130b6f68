"""Are questions about held-out pictures answered? For models tuned on questions."""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmjax.batch import SEP, Document, Image, Text
from mmjax.data import tokenizer as bpe
from mmjax.evals import heldout
from mmjax.evals.value import Value, proportion
from mmjax.trained import Trained

TRAIN = 5000  # training records whose answers the baseline knows


class Question(NamedTuple):
    """What is asked about a picture."""

    kind: str
    question: str
    answer: str


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """One question a picture, answered greedily and compared word for word.

    `answers_<kind>`, `answers`: share answered rightly on each held-out split. `_majority`: by the
    kind's most frequent answer in training. `_blind`: asked about another picture. Questions
    without a kind are of one; those too long for a row are passed over. A clip, which writes
    nothing, chooses among the answers its kind of question had in training.

    What never occurs together in training is a trap for whoever guesses: of new combinations he
    has learnt that they are not there. So only other splits tell what is seen from what is guessed.
    """
    e = trained.run.experiment
    if e.data.sources[heldout.source(trained)].template not in ("sep", "sep_one"):
        return {}
    counts = counted(heldout.draw(trained, "train", TRAIN, seed))
    values: dict[str, Value] = {}
    for split, suffix in heldout.splits(trained).items():
        records = heldout.draw(trained, split, e.evals.documents, seed)
        found = on_records(trained, records, counts, seed)
        values |= {f"{name}{suffix}": value for name, value in found.items()}
    return values


def on_records(trained: Trained, records, counts: dict[str, Counter], seed: int):
    """The values of some records, {name: Value}; none where nothing is asked."""
    asked_of = {n: some for n, r in enumerate(records) if (some := questions(trained, r))}
    if not asked_of:
        return {}
    records = [records[n] for n in asked_of]
    asked = [some[i % len(some)] for i, some in enumerate(asked_of.values())]
    usual = {kind: found.most_common(1)[0][0] for kind, found in counts.items()}
    compares = trained.abilities.compares
    answer = partial(chosen, counts=counts) if compares else answers
    shifted = records[1:] + records[:1]
    given = {
        "": answer(trained, records, asked, seed),
        "_blind": answer(trained, shifted, asked, seed),
        "_majority": [usual.get(q.kind, "") for q in asked],
    }
    values: dict[str, Value] = {}
    for name, made in given.items():
        right = [a == q.answer for a, q in zip(made, asked, strict=True)]
        values[f"answers{name}"] = proportion(right, seed)
        for kind in sorted({q.kind for q in asked}):
            mine = [ok for ok, q in zip(right, asked, strict=True) if q.kind == kind]
            values[f"answers_{kind}{name}"] = proportion(mine, seed)
    return values


def questions(trained: Trained, record) -> list[Question]:
    """Those about a record's picture that leave room for an answer."""
    c = trained.run.experiment.data
    room = c.length - c.patches - 4  # BOS, BOI, EOI and the separator
    return [q for q in told(record) if len(bpe.encode(trained.run.tokenizer, q.question)) < room]


def told(record) -> list[Question]:
    """A record's questions as its facts have them."""
    return [
        Question(str(q.get("kind", "any")), str(q["question"]), str(q["answer"]))
        for q in record.facts.get("questions", ())
    ]


def answers(trained: Trained, records, asked, seed: int) -> list[str]:
    """What the model answers to each question about each picture."""
    prompts: list[Document] = [
        [Image(r.image), Text(q.question), SEP] for r, q in zip(records, asked, strict=True)
    ]
    return trained.write(prompts, seed, temperature=0.0)


def chosen(trained: Trained, records, asked, seed: int, counts) -> list[str]:
    """Of the answers known to each kind of question, the one whose text, behind the question, is
    nearest to the picture.
    """
    del seed
    pictures = trained.embed([[Image(r.image)] for r in records])
    lines = sorted({(q.kind, q.question) for q in asked})
    texts = [(line, answer) for line in lines for answer in sorted(counts[line[0]])]
    words = trained.embed([[Text(question), Text(a)] for (_, question), a in texts])
    found = []
    for picture, q in zip(pictures, asked, strict=True):
        mine = [n for n, (line, _) in enumerate(texts) if line == (q.kind, q.question)]
        found.append(texts[mine[int(np.argmax(words[mine] @ picture))]][1] if mine else "")
    return found


def counted(records) -> dict[str, Counter]:
    """Kind of question -> how often it has which answer."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for record in records:
        for question in told(record):
            counts[question.kind][question.answer] += 1
    return counts
