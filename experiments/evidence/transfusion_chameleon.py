"""Transfusion against Chameleon at equal training FLOPs, and some of Transfusion's choices.

    python experiments/evidence/transfusion_chameleon.py [--seeds=3] [--steps=1500]

Arms: Transfusion; the same with an attention that is causal inside pictures too (the paper's Table
5); without the noise limit for pictures that text follows (Table 8); with clean copies of pictures
to read; with as many patches as Chameleon has codes; and Chameleon, the codec's training not
counted. Needs out/data/scenes16, and out/small_codec and its codes (see experiments/small_*.py).
Leaves table.md and figures in out/evidence/transfusion_chameleon.
"""

import figures
import study
from study import Arm

EVALS = "likelihood,scenes,frechet"
ARMS = (
    study.BASE,
    Arm("causal", "small_transfusion", {"model.picture_mask": "causal"}, evals=EVALS),
    Arm("no limit", "small_transfusion", {"model.context_time": 0.0}, evals=EVALS),
    Arm("clean copies", "small_transfusion", {"model.context": "clean"}, evals=EVALS),
    Arm("64 patches", "small_transfusion", {"model.patch": 2, "data.patch": 2}, evals=EVALS),
    Arm("chameleon", "small_chameleon", evals=EVALS),
)
MATCHED = ("clean copies", "64 patches", "chameleon")  # others cost the same but for attention
COLUMNS = {
    "text_nll_concepts": "caption, nats a token",
    "written_objects_test": "captions right",
    "drawn_all_test": "drawings right",
    "drawn_all_compositional": "drawings of unseen pairs right",
    "frechet_lite0_concepts": "Fréchet distance",
}
BASELINES = {
    "written_objects_nearest_test": "objects exact, caption of the nearest training picture",
    "drawn_all_nearest_test": "drawn all, training picture of the nearest caption",
    "drawn_all_chance_test": "drawn all, another caption's drawing",
    "drawn_all_true_test": "drawn all, true pictures",
    "drawn_all_codec_test": "drawn all, the codec's reconstructions",
    "frechet_lite0_codec_concepts": "Fréchet distance, the codec's reconstructions",
    "frechet_lite0_true_concepts": "Fréchet distance, training pictures",
}


def main() -> None:
    """Runs what is missing and writes the table and the figures."""
    given = study.arguments("transfusion_chameleon")
    arms, cost = study.matched(ARMS, given, MATCHED)
    found = study.runs(arms, given)
    ends = {arm: some for arm, some in found.items() if arm in ("transfusion", "chameleon")}
    lines = [study.table(COLUMNS, found), "", *study.baselines(BASELINES, ends)]
    lines += ["", study.spent(arms, cost, found)]
    if "transfusion" in found:
        lines += ["", study.differences(COLUMNS, found, "transfusion")]
    study.tell(lines, given)
    scale = ({name: one / 1e12 for name, one in cost.items()}, "training TFLOPs")
    figures.curves(found, ["text/nll", "image"], given.out / "loss.png", scale)
    figures.bars(found, {n: COLUMNS[n] for n in list(COLUMNS)[1:]}, given.out / "results.png")


if __name__ == "__main__":
    study.begin(main)
