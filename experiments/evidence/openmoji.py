"""Transfusion against Chameleon on real pictures, at equal training FLOPs.

    python experiments/evidence/openmoji.py [--seeds=3] [--steps=1500]

Arms: Transfusion and Chameleon on OpenMoji at 32 x 32 pixels, 64 positions a picture in both, the
codec's training not counted. Measured on pictures of concepts that were seen in other combinations,
and of concepts that never were. Needs out/data/openmoji, and out/codec_openmoji and its codes (see
experiments/small_openmoji_codes.py). Leaves table.md and figures in out/evidence/openmoji.
"""

import figures
import study
from study import Arm

EVALS = "likelihood,caption,drawing,frechet"
ARMS = (
    Arm("transfusion", "small_openmoji", evals=EVALS),
    Arm("chameleon", "small_openmoji_codes", evals=EVALS),
)
ENTRIES = {
    "text_nll": "caption, nats a token",
    "choice_among_10": "own caption of 10",
    "drawn_choice_among_10": "drawing nearest its own picture of 10",
    "frechet_lite0": "Fréchet distance",
}
SPLITS = {"": "seen concepts", "_concepts": "new concepts"}
COLUMNS = {n + s: f"{t}, {of}" for n, t in ENTRIES.items() for s, of in SPLITS.items()}
BASELINES = {
    "text_nll_alone": "caption without its picture, nats a token",
    "text_nll_unigram": "caption, by the frequency of its words",
    "frechet_lite0_codec": "Fréchet distance, the codec's reconstructions",
    "frechet_lite0_true": "Fréchet distance, training pictures",
}


def main() -> None:
    """Runs what is missing and writes the table and the figures."""
    given = study.arguments("openmoji")
    arms, cost = study.matched(ARMS, given)
    found = study.runs(arms, given)
    titles = {n + s: f"{t}, {of}" for n, t in BASELINES.items() for s, of in SPLITS.items()}
    lines = [study.table(COLUMNS, found), "", *study.baselines(titles, found)]
    lines += ["", study.spent(arms, cost, found)]
    if "transfusion" in found:
        lines += ["", study.differences(COLUMNS, found, "transfusion")]
    study.tell(lines, given)
    scale = ({name: one / 1e12 for name, one in cost.items()}, "training TFLOPs")
    figures.curves(found, ["text/nll"], given.out / "loss.png", scale)
    figures.bars(found, COLUMNS, given.out / "results.png")


if __name__ == "__main__":
    study.begin(main)
