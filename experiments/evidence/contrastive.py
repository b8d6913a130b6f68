"""CLIP and SigLIP on OpenMoji: retrieval of what was never seen, and digits told in words.

    python experiments/evidence/contrastive.py [--seeds=3] [--steps=600]

Recall at 1, 5 and 10 among all held-out pictures, both ways, of new combinations of what was seen
in training and of new concepts, beside chance and a linear map from words to the histogram of a
picture's colours. Zero-shot: 1,797 handwritten digits of 8 x 8 pixels, each told in three texts.
Needs out/data/openmoji and out/data/digits (`mmjax data build`).
"""

from pathlib import Path

import figures
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
FIRST = ("image_at_1", "text_at_1")
SPLIT = {"": "new combinations", "_concepts": "new concepts"}


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
    found = study.runs(ARMS, given, weights=True)
    some = next(iter(found.values()))
    lines: list[str] = []
    for split, told in SPLIT.items():
        columns = {n + split: t for n, t in COLUMNS.items()}
        lines += [f"{told}:", "", study.table(columns, found)]
        for end, title in (("_colours", "by colours alone"), ("_chance", "chance")):
            cells = [study.interval(study.values(some[:1], n + end + split)) for n in COLUMNS]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        lines.append("")
    for arm, runs in found.items():
        lines += ["", f"{arm}: {study.interval([digits(run) for run in runs])} of digits"]
    study.tell(lines, given)
    shown = {f"{n}{end}": f"{COLUMNS[n]}, {told}" for end, told in SPLIT.items() for n in FIRST}
    colours = {f"{n}{end}": f"{n}_colours{end}" for end in SPLIT for n in FIRST}
    figures.bars(found, shown, given.out / "results.png", colours)


if __name__ == "__main__":
    study.begin(main)
