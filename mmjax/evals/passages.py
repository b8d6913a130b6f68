"""How well plain text is predicted, source by source: what a model has learnt, or forgotten."""

from pathlib import Path

import numpy as np

from mmjax.batch import Text
from mmjax.data import pipeline
from mmjax.data import tokenizer as bpe
from mmjax.evals.caption import log_likelihood
from mmjax.evals.heldout import FEWEST, LOOKED
from mmjax.evals.value import Value, ratio
from mmjax.trained import Trained

# The first that a source has is measured, under names that end so.
SPLITS = {"test": "", "validation": "", "train": "_train"}


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """`passage_nll_<source>`: nats a token of held-out documents that are text alone.

    `passage_nll_<source>_words`: the same where no picture may begin: a model that begins pictures
    where it should not may know all the same which word comes next. Of every source that has such
    documents, also those a stage gives no weight; those too long for a row are passed over. Where a
    source holds nothing out, of training documents, and names end in `_train`.
    """
    e = trained.run.experiment
    values: dict[str, Value] = {}
    for name in e.data.sources:
        there = pipeline.splits(pipeline.path_of(e.data, name))
        for split in (s for s in SPLITS if s in there):
            texts = passages(trained, name, split, e.evals.documents, seed)
            if len(texts) < FEWEST:
                continue
            lengths = [len(bpe.encode(trained.run.tokenizer, t)) + 1 for t in texts]  # with EOS
            documents = [[Text(t)] for t in texts]
            for ending, options in (("", {}), ("_words", {"opens": False})):
                logs = log_likelihood(trained, documents, **options)
                values[f"passage_nll_{name}{ending}{SPLITS[split]}"] = ratio(-logs, lengths, seed)
            break
    return values


def passages(trained: Trained, name: str, split: str, count: int, seed: int) -> list[str]:
    """Up to `count` texts of a source's split that stand alone, in an order the seed fixes."""
    e = trained.run.experiment
    records = pipeline.records(e.data, name, split)
    found: list[str] = []
    for looked, i in enumerate(np.random.default_rng(seed).permutation(len(records)), start=1):
        if not found and looked > LOOKED:
            break
        document = records[int(i)].document
        if not all(isinstance(part, Text) for part in document):
            continue
        text = "".join(part.text for part in document if isinstance(part, Text))
        if len(bpe.encode(trained.run.tokenizer, text)) + 2 <= e.data.length:
            found.append(text)
        if len(found) == count:
            break
    return found
