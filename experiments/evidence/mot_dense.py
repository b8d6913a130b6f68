"""Mixture-of-Transformers against the dense decoder, and the ladder of what is untied.

    python experiments/evidence/mot_dense.py [--seeds=3] [--steps=1500]

Arms: Transfusion dense; with the MLPs untied by modality; with the MLPs and attention's
projections; with all weights of the blocks. A position costs the same FLOPs in each, so steps
compare FLOPs too. For each modality: at which share of the dense run's steps the same (smoothed)
training loss is reached, and the results at the end. Needs out/data/scenes16.
"""

from collections.abc import Sequence

import numpy as np
import study
from study import Arm, Run

FFN, PROJECTIONS = "ffn", "ffn,qkv,o"
ALL = "qkv,o,qk_norm,attn_norm,ffn,ffn_norm"


def untied(name: str, what: str) -> Arm:
    """An arm with some weights untied."""
    names = "(" + "".join(f"'{w}'," for w in what.split(",")) + ")"
    return Arm(name, "small_transfusion", {"model.decoder.untie": names, "model.decoder.towers": 2})


ARMS = (
    study.BASE._replace(name="dense"),
    untied("ffn", FFN),
    untied("ffn and attention", PROJECTIONS),
    untied("all", ALL),
)
LOSSES = {"text/nll": "text", "image": "pictures"}
WIDTH = 9  # logged rows a smoothed loss averages
COLUMNS = {
    "text_nll_concepts": "caption, nats a token",
    "image_flow_loss_concepts": "flow loss",
    "written_all_test": "captions right",
    "drawn_all_test": "drawings right",
    "drawn_all_compositional": "drawings right, unseen pairs",
}


def reached(log: Sequence[dict], panel: str, goal: float) -> float:
    """The first logged step at which the smoothed loss is no more than `goal`; infinite if none."""
    mean = study.smooth([row[panel] for row in log], WIDTH)
    below = np.flatnonzero(mean <= goal)
    return log[below[0]]["step"] if len(below) else np.inf


def matched(some: Sequence[Run], dense: Sequence[Run], panel: str) -> list[float]:
    """For each seed, in how many of the dense run's steps its last loss is reached, as a share.

    Losses go up and down, so the dense run is there before its end too: it is asked likewise.
    """
    shares = []
    for mine, theirs in zip(some, dense, strict=True):
        goal = study.smooth([r[panel] for r in theirs.metrics], WIDTH)[-WIDTH // 2]
        own = reached(theirs.metrics, panel, goal)
        shares.append(reached(mine.metrics, panel, goal) / own)
    return shares


def main() -> None:
    """Runs what is missing and writes the table and the figures."""
    given = study.arguments("mot_dense")
    found = study.runs(ARMS, given)
    lines = [
        study.table(COLUMNS, found),
        "",
        "Share of the dense run's steps to its last loss:",
        "",
    ]
    lines += ["| | text | pictures |", "|---|---|---|"]
    for arm, some in found.items():
        cells = [study.interval(matched(some, found["dense"], panel)) for panel in LOSSES]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    text = "\n".join(lines)
    print(text)
    (given.out / "table.md").write_text(text + "\n")
    study.curves(found, list(LOSSES), given.out / "loss.png")
    study.bars(found, COLUMNS, given.out / "results.png")


if __name__ == "__main__":
    main()
