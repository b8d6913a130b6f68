"""CLIP and SigLIP on OpenMoji: retrieval of concepts never seen, and digits told in words.

    python experiments/evidence/contrastive.py [--seeds=3] [--steps=1000]

Recall at 1, 5 and 10 among all held-out pictures, both ways, beside chance and a linear map from
words to the histogram of a picture's colours. Zero-shot: the 1,797 handwritten digits of 8 x 8
pixels, each told in three texts. Needs out/data/openmoji and out/data/digits (`mmjax data build`).
"""

from pathlib import Path

import numpy as np
import study
from study import Arm

import mmjax
from mmjax.data.store import read

DIGITS, SPLITS = Path("out/data/digits"), ("train", "validation", "test")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("keycap: {}", "the digit {}", "the number {}, written by hand")
ARMS = (
    Arm("CLIP", "clip_openmoji", evals="retrieval"),
    Arm("SigLIP", "siglip_openmoji", evals="retrieval"),
)
COLUMNS = {
    f"{what}_at_{k}": f"{title} at {k}"
    for what, title in (("image", "picture"), ("text", "text"))
    for k in (1, 5, 10)
}


def digits(run: study.Run) -> float:
    """Share of digits whose own name is nearest."""
    trained = mmjax.load(run.workdir)
    records = [r for split in SPLITS for r in read(DIGITS, split)]
    names = [f"{n} {word}" for n, word in enumerate(NAMES)]
    found = trained.classify([r.images[0] for r in records], names, TEMPLATES).argmax(1)
    return float(np.mean(found == [int(r.facts["label"]) for r in records]))


def main() -> None:
    """Runs what is missing and writes the table and the figure."""
    given = study.arguments("contrastive")
    found = study.runs(ARMS, given)
    columns = {n: t for n, t in COLUMNS.items()}
    lines = [study.table(columns, found)]
    some = next(iter(found.values()))
    for end, title in (("_colours", "by colours alone"), ("_chance", "chance")):
        cells = [study.interval(study.values(some[:1], n + end)) for n in columns]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for arm, runs in found.items():
        lines += ["", f"{arm}: {study.interval([digits(run) for run in runs])} of digits"]
    text = "\n".join(lines)
    print(text)
    (given.out / "table.md").write_text(text + "\n")
    study.bars(found, columns, given.out / "results.png")


if __name__ == "__main__":
    main()
