"""Picture to caption: which of ten captions fits, and what does the model write?"""

import re
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from mmjax import watch
from mmjax.batch import Image, Text
from mmjax.data.pixels import decode_image
from mmjax.evals import heldout
from mmjax.evals.value import Value, proportion
from mmjax.sample import prompt
from mmjax.sample.decode import word_weight
from mmjax.sheet import Cell, sheet
from mmjax.trained import Trained

ROWS = 256  # scored at a time
_TONE = re.compile(r"(medium-light|medium-dark|light|medium|dark) skin tone")


def evaluate(trained: Trained, seed: int, out: Path) -> dict[str, Value]:
    """Choices and captions on each held-out split; writes `written_<split>.png`.

    `choice_among_10`: of ten different captions, nine drawn at random from the same split, the
    picture's own has the highest likelihood after the picture (chance 0.10). Where there are only
    k different captions, `choice_among_k` (chance 1/k).
    `choice_among_10_pmi`: the highest ratio of that to its likelihood after no picture: short and
    common captions gain nothing.
    `written_tone`: where records have a fact `tone`, as OpenMoji's people have, the share whose
    written caption names just that skin tone, or those of two; `written_tone_other`: the same of
    the caption written for the next record, what ignoring the picture gives.
    """
    values: dict[str, Value] = {}
    e = trained.run.experiment
    for split, suffix in heldout.splits(trained).items():
        records = heldout.draw(trained, split, e.evals.documents, seed)
        found = caption_choice(trained, records, seed)
        values |= {name + suffix: value for name, value in found.items()}
        toned = [i for i, r in enumerate(records) if r.facts.get("tone")]
        asked = sorted({*range(min(len(records), heldout.SHOWN)), *toned})
        made = trained.write([[Image(records[i].image)] for i in asked], seed)
        written = dict(zip(asked, made, strict=True))
        if toned:
            found = tones(
                [written[i] for i in toned], [str(records[i].facts["tone"]) for i in toned], seed
            )
            values |= {name + suffix: value for name, value in found.items()}
        cells = [
            Cell([decode_image(r.image, e.data.image, e.data.resize)], [w, f"({r.caption})"])
            for r, (_, w) in zip(records[: heldout.SHOWN], written.items(), strict=False)
        ]
        sheet(cells, out / f"written_{split}.png", f"{split}: written, and (true)")
    return values


def tones(written: Sequence[str], true: Sequence[str], seed: int) -> dict[str, Value]:
    """Whether captions name the true skin tones, "light" or "light + dark"; see `evaluate`."""
    named = [" + ".join(_TONE.findall(text)) for text in written]
    values = {"written_tone": [a == b for a, b in zip(named, true, strict=True)]}
    other = [a == b for a, b in zip(named[1:] + named[:1], true, strict=True)]
    values |= {"written_tone_other": other} if len(named) > 1 else {}
    return {name: proportion(hits, seed) for name, hits in values.items()}


def log_likelihood(trained: Trained, documents, **options) -> np.ndarray:
    """[n] nats of all words of each document; options as in `Trained.log_likelihood`."""
    data = trained.run.experiment.data
    vocab = trained.run.model.parts.vocabulary
    rows = prompt.lay_out(documents, data, trained.run.tokenizer, vocab, draw=False, end=True)
    weight = np.asarray(word_weight(rows, vocab))
    out = []
    for start in watch.pieces(range(0, len(documents), ROWS), "documents", ROWS, len(documents)):
        part = jax.tree.map(lambda x, at=start: x[at : at + ROWS], rows)
        logs = trained.log_likelihood(part, **options)
        out.append((logs * weight[start : start + ROWS]).sum(1))
    return np.concatenate(out)


def caption_choice(trained: Trained, records, seed: int) -> dict[str, Value]:
    """Picture to caption."""
    captions = [r.caption for r in records]
    choices = heldout.choices(captions)
    if choices < 2:
        return {}
    table = heldout.others(captions, choices, seed)
    pairs = [[Image(records[row[0]].image), Text(records[j].caption)] for row in table for j in row]
    after = log_likelihood(trained, pairs).reshape(table.shape)
    alone = log_likelihood(trained, [[Text(r.caption)] for r in records])[table]
    return {
        f"choice_among_{choices}": proportion(after.argmax(1) == 0, seed),
        f"choice_among_{choices}_pmi": proportion((after - alone).argmax(1) == 0, seed),
    }
