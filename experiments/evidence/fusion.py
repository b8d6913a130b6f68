"""Four ways to let a language model see, on equal data and at equal training FLOPs.

    python experiments/evidence/fusion.py [--seeds=3] [--steps=1000]

Questions about scenes of one object. Late, contrastive: two towers whose vectors meet (CLIP), which
choose among the answers known. Late, by cross-attention: words look aside at what a resampler made
of the tower's output (Flamingo). Medium: the tower's features stand among the words (LLaVA). Early:
codes of pictures are words (Chameleon), or patches are (Transfusion, pictures clean). Beside them
the decoder alone, which sees nothing. The towers of Flamingo and LLaVA are those of one CLIP,
trained on captions, and frozen; neither its training nor the codec's is counted, and a frozen
tower's steps are counted as if it were trained. Needs out/data/scenes16, out/small_codec and its
codes, and out/small_clip (see experiments/small_*.py).
"""

import study
from study import Arm

from mmjax import config

EVALS = "answers"
ASKS = {"data.sources.scenes.template": "sep"}
EYES = {"start.vision": "out/small_clip"}
ASIDE = ("resampler", "cross", "added", "embed", "decoder", "head")
ARMS = (
    Arm("medium (LLaVA)", "small_llava", evals=EVALS),
    Arm("late, cross-attention", "small_flamingo", EYES | {"model.train": ASIDE}, evals=EVALS),
    Arm("late, contrastive", "small_clip", ASKS, evals=EVALS),
    Arm("early, codes", "small_chameleon", ASKS | {"sample.text": 12}, evals=EVALS),
    Arm(
        "early, patches", "small_transfusion",
        ASKS | {"model.context": "clean", "sample.text": 12}, evals=EVALS,
    ),
    Arm("sees nothing", "small_language", evals=EVALS),
)  # fmt: skip
COLUMNS = {
    "answers": "right",
    "answers_count": "how many",
    "answers_existence": "is there",
    "answers_colour": "which colour",
    "answers_blind": "about another picture",
    "answers_majority": "the usual answer",
}


def positions(arm: Arm) -> str:
    """Positions of a row that a picture takes."""
    c = config.load(str(study.ROOT / "experiments" / f"{arm.experiment}.py"))
    if c.family == "language":
        return "-"
    return str((c.data.image // c.data.patch) ** 2)


def main() -> None:
    """Runs what is missing and writes the table and the figure."""
    given = study.arguments("fusion")
    chosen = [a for a in ARMS if not given.arms or a.name in given.arms.split(",")]
    cost = {arm.name: study.flops_per_step(arm) for arm in chosen}
    budget = given.steps * cost[chosen[0].name]
    steps = {name: round(budget / one) for name, one in cost.items()}
    found = study.runs([arm._replace(steps=steps[arm.name]) for arm in chosen], given)
    lines = [study.table(COLUMNS, found), ""]
    for arm in chosen:
        seconds = study.seconds(found[arm.name])
        lines.append(
            f"{arm.name}: {positions(arm)} positions a picture, {steps[arm.name]} steps of "
            f"{cost[arm.name] / 1e9:.1f} GFLOPs, {study.interval(seconds)} s each"
        )
    text = "\n".join(lines)
    print(text)
    (given.out / "table.md").write_text(text + "\n")
    study.bars(found, COLUMNS, given.out / "results.png")


if __name__ == "__main__":
    main()
