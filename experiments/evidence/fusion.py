"""Four ways to let a language model see, from one data set and at equal training FLOPs.

    python experiments/evidence/fusion.py [--seeds=3] [--steps=1000]

Questions about scenes of one object. Late, contrastive: two towers whose vectors meet (CLIP), which
choose among the answers known. Late, by cross-attention: words look aside at what a resampler made
of the tower's output (Flamingo). Medium: the tower's features stand among the words (LLaVA). Early:
codes of pictures are words (Chameleon), or patches are (Transfusion, whose pictures have no loss
here and are therefore read as they are). Beside them the decoder alone, which sees nothing. The
towers of Flamingo and LLaVA are those of one CLIP, trained on captions, and frozen; neither its
training nor the codec's is counted, and a frozen tower's steps are counted as if it were trained.
CLIP has one vector for a text: it reads one question a picture, drawn anew each time, in rows as
full of pictures as of words, for it pays for slots that are empty. "Captions first" learns to read
and draw captioned pictures for half of its FLOPs. Needs out/data/scenes16, out/small_codec and its
codes, and out/small_clip (see experiments/small_*.py).
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import figures
import numpy as np
import study
from study import Arm

import mmjax
from mmjax import config
from mmjax.evals import answers, heldout

EVALS = "answers"
DOCUMENTS = {"evals.documents": 400}  # questions on each split
ASKS = DOCUMENTS | {"data.sources.scenes.template": "sep"}
ASKS_ONE = DOCUMENTS | {
    "data.sources.scenes.template": "sep_one", "data.images": 9, "model.text.length": 32,
}  # fmt: skip
ARMS = (
    Arm("medium (LLaVA)", "small_llava", DOCUMENTS, evals=EVALS),
    Arm("late (cross-attention)", "small_flamingo", DOCUMENTS, evals=EVALS),
    Arm("late (contrastive)", "small_clip", ASKS_ONE, evals=EVALS),
    Arm("early (codes)", "small_chameleon", ASKS | {"sample.text": 12}, evals=EVALS),
    Arm("early (patches)", "small_transfusion", ASKS | {"sample.text": 12}, evals=EVALS),
    Arm(
        "early (patches, captions first)", "small_answers", DOCUMENTS,
        {"all": study.BASE._replace(evals="likelihood")}, evals=EVALS,
    ),
    Arm("sees nothing", "small_language", DOCUMENTS, evals=EVALS),
)  # fmt: skip
BASELINES = ("answers_blind_concepts", "answers_majority_concepts")
COUNT, ROUNDS = 64, 5  # questions at a time, and how often, for the time of an answer
# New pictures of known combinations, and last of combinations that are new; see `evals.answers`.
COLUMNS = {
    "answers_concepts": "right",
    "answers_count_concepts": "how many",
    "answers_existence_concepts": "is there",
    "answers_colour_concepts": "which colour",
    "answers_blind_concepts": "about another picture",
    "answers_majority_concepts": "the usual answer",
    "answers": "new combinations",
}


def positions(arm: Arm) -> str:
    """Positions of a row that a picture takes."""
    c = config.load(str(study.ROOT / "experiments" / f"{arm.experiment}.py"))
    if c.family == "language":
        return "-"
    return str((c.data.image // c.data.patch) ** 2)


def sized(arm: Arm, budget: float) -> Arm:
    """The arm with the steps its FLOPs allow; what it begins as has half of them."""
    mine = budget / 2 if arm.start else budget
    start = {part: sized(other, mine) for part, other in arm.start.items()}
    return arm._replace(steps=round(mine / study.flops_per_step(arm)), start=start)


def answering(workdir):
    """What answers COUNT questions about held-out pictures, one each; it has done so once."""
    trained = mmjax.load(workdir)
    records = heldout.draw(trained, "test", COUNT, 0)
    asked = [answers.told(record)[0] for record in records]
    how = answers.answers
    if trained.run.experiment.family == "clip":
        counts = answers.counted(heldout.draw(trained, "train", answers.TRAIN, 0))
        how = partial(answers.chosen, counts=counts)
    run = partial(how, trained, records, asked, 0)
    run()
    return run


def clocked(found: Mapping[str, Sequence[study.Run]]) -> dict[str, float]:
    """Milliseconds an answer, COUNT at a time: medians of rounds in turns, A B C, C B A, ...

    Only of arms whose weights are there.
    """
    here = {n: some[0].workdir for n, some in found.items() if study.finished(some[0].workdir)}
    ready = {name: answering(workdir) for name, workdir in here.items()}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for n in range(ROUNDS):
        for name in list(ready)[:: 1 if n % 2 == 0 else -1]:
            start = time.perf_counter()
            ready[name]()
            times[name].append(1e3 * (time.perf_counter() - start) / COUNT)
    return {name: float(np.median(some)) for name, some in times.items()}


def main() -> None:
    """Runs what is missing and writes the table and the figure."""
    given = study.arguments("fusion")
    chosen = [a for a in ARMS if not given.arms or a.name in given.arms.split(",")]
    budget = given.steps * study.flops_per_step(ARMS[0])
    arms = [sized(arm, budget) for arm in chosen]
    found = study.runs(arms, given)
    took = clocked(found)
    head = ["", "positions a picture", "steps", "pictures", "training, s", "an answer, ms"]
    lines = [study.table(COLUMNS, found), "", "| " + " | ".join(head) + " |", "|---" * 6 + "|"]
    for arm in arms:
        each = [*arm.start.values(), arm]
        spent = study.interval([arm.steps * one for one in study.seconds(found[arm.name])])
        if arm.start:
            spent += ", after captions"
        pictures = f"{sum(one.steps * study.per_step(one).pictures for one in each):,.0f}"
        cells = [arm.name, positions(arm), " + ".join(str(one.steps) for one in each)]
        cells += [pictures, spent, f"{took[arm.name]:.1f}" if arm.name in took else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"{budget / 1e12:.3g} TFLOPs each; n = {given.seeds} seeds."]
    study.tell(lines, given)
    shown = {n: title for n, title in COLUMNS.items() if n not in BASELINES}
    usual = {n: n.removesuffix("_concepts") + "_majority" for n in shown}
    usual |= {n: f"{usual[n]}_concepts" for n in shown if n.endswith("_concepts")}
    figures.bars(found, shown, given.out / "results.png", usual)


if __name__ == "__main__":
    study.begin(main)
