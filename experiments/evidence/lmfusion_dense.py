"""LMFusion against dense fine-tuning: what a text model forgets while it learns to see and draw.

    python experiments/evidence/lmfusion_dense.py [--seeds=3] [--steps=1500]

A text model is trained on prose, then on captioned pictures: with all weights shared and trained;
the same with text's weights at a tenth of the rate, and as LMFusion (text frozen, a copy of it for
images). Beside them the text model as it was. Needs out/data/scenes16, and what docstrings.py
leaves.
"""

import figures
import study
from study import Arm

DENSE = {"model.decoder.towers": 1, "model.decoder.untie": "()", "model.text_rate": 1.0}
COLUMNS = {
    "passage_nll_docstrings": "prose, nats a token",
    "passage_nll_docstrings_words": "where no picture may begin",
    "text_nll_concepts": "caption, nats a token",
    "written_all_test": "captions right",
    "drawn_all_test": "drawings right",
    "image_flow_loss_concepts": "flow loss",
}
EVALS = "likelihood,scenes,passages"
TEXT = Arm("text alone", "small_text", steps=600, evals="passages")
START = {"language": TEXT}
ARMS = (
    TEXT,
    Arm("dense", "small_lmfusion", DENSE, START, evals=EVALS),
    Arm("dense at a tenth", "small_lmfusion", DENSE | {"model.text_rate": 0.1}, START, 0, EVALS),
    Arm("lmfusion", "small_lmfusion", {}, START, evals=EVALS),
)


def main() -> None:
    """Runs what is missing and writes the table and the figure."""
    given = study.arguments("lmfusion_dense")
    found = study.runs(ARMS, given)
    rows = {n: some for n, some in found.items() if n != "text alone"}
    lines = [study.table(COLUMNS, rows)]
    for entry in list(COLUMNS)[:2]:
        before = study.values(found["text alone"], entry)
        lines += ["", f"{COLUMNS[entry]}; the text model: {study.interval(before)}"]
        for name, some in rows.items():
            change = study.difference(study.values(some, entry), before)
            lines.append(f"forgotten by {name}: {change}")
    study.tell(lines, given)
    figures.bars(rows, COLUMNS, given.out / "results.png")


if __name__ == "__main__":
    study.begin(main)
