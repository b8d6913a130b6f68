"""Mixture-of-Transformers against the dense decoder, and the ladder of what is untied.

    python experiments/evidence/mot_dense.py [--seeds=3] [--steps=1500]

Arms: Transfusion dense; with the MLPs untied by modality; with the MLPs and attention's
projections; with all weights of the blocks. A position costs the same FLOPs in each, so steps
compare FLOPs too. One more arm is dense with MLPs twice as wide, at more FLOPs: what as many
weights bring that all tokens go through, if anything. For each modality: the training loss over
the dense one, the share of the dense run's steps that this comes to, when the dense run's last loss
was first seen, and the results at the end; and the share of a token's weights that all modalities
have. Needs out/data/scenes16.
"""

import ast
from collections.abc import Sequence

import figures
import numpy as np
import study
from study import Arm, Run

from mmjax import config
from mmjax.layers.tower import shared_fraction
from mmjax.run import families, prepare

WIDTH = 11  # logged losses that are averaged, to see when one is reached
FFN, PROJECTIONS = "ffn", "ffn,qkv,o"
ALL = "qkv,o,qk_norm,attn_norm,ffn,ffn_norm"


def untied(name: str, what: str) -> Arm:
    """An arm with some weights untied."""
    names = "(" + "".join(f"'{w}'," for w in what.split(",")) + ")"
    changes = {"untie": names, "towers": 2, "grouped": True}
    return Arm(name, "small_transfusion", {f"model.decoder.{n}": x for n, x in changes.items()})


ARMS = (
    study.BASE._replace(name="dense"),
    untied("ffn", FFN),
    untied("ffn and attention", PROJECTIONS),
    untied("all", ALL),
    Arm("twice the MLPs", "small_transfusion", {"model.decoder.mlp": 688}),
)
LOSSES = {"text/nll": "text", "image": "pictures"}
COLUMNS = {
    "text_nll_concepts": "caption, nats a token",
    "image_flow_loss_concepts": "flow loss",
    "written_all_test": "captions right",
    "drawn_all_test": "drawings right",
    "drawn_all_compositional": "drawings right, unseen pairs",
}


def half(one: Run, panel: str) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the steps and losses of a run's second half."""
    rows = [row for row in one.metrics if row["step"] > one.metrics[-1]["step"] / 2]
    return np.log([row["step"] for row in rows]), np.log([row[panel] for row in rows])


def ratios(some: Sequence[Run], dense: Sequence[Run], panel: str) -> list[float]:
    """For each seed the loss over that of the dense run; both see the same batches, in order."""
    pairs = zip(some, dense, strict=True)
    return [float(np.exp((half(a, panel)[1] - half(d, panel)[1]).mean())) for a, d in pairs]


def shares(some: Sequence[Run], dense: Sequence[Run], panel: str) -> list[float]:
    """For each seed, in which share of the dense run's steps its loss is reached.

    Where the dense loss falls as step^-b, over its second half, one that is r times it is as low
    as the dense one's last after r^(1 / b) of the steps.
    """
    slopes = [-np.polyfit(*half(one, panel), 1)[0] for one in dense]
    return [r ** (1 / b) for r, b in zip(ratios(some, dense, panel), slopes, strict=True)]


def reached(some: Sequence[Run], dense: Sequence[Run], panel: str) -> str:
    """When the loss, smoothed, first is as low as the dense run's last, as a share of its steps.

    Mean and interval of the runs that get there, and how many do.
    """
    shares = []
    for one, other in zip(some, dense, strict=True):
        losses, last = (
            figures.smooth([row[panel] for row in run.metrics if panel in row], WIDTH)
            for run in (one, other)
        )
        steps = [row["step"] for row in one.metrics if panel in row]
        # Means over a few batches at either end are of no use.
        inner = slice(WIDTH // 2, len(losses) - WIDTH // 2)
        at = np.flatnonzero(losses[inner] <= last[inner][-1])
        if len(at):
            shares.append(steps[inner][at[0]] / steps[inner][-1])
    mean = study.interval(shares) if shares else "-"
    return f"{mean} ({len(shares)} of {len(some)})"


def shared(arm: Arm) -> float:
    """The share of the weights on a token's way through the decoder that all modalities share."""
    c = config.load(str(study.ROOT / "experiments" / f"{arm.experiment}.py"))
    told = {n: ast.literal_eval(x) if isinstance(x, str) else x for n, x in arm.changes.items()}
    c.update_from_flattened_dict(told)
    run = prepare(config.resolve(c, families()))
    return shared_fraction(run.abstract.params["decoder"])


def main() -> None:
    """Runs what is missing and writes the table and the figures."""
    given = study.arguments("mot_dense")
    found = study.runs(ARMS, given)
    lines = [study.table(COLUMNS, found), "", "Against dense, in the second half of training:", ""]
    titles = [f"{w}, {title}" for title in LOSSES.values() for w in ("loss", "steps", "reached")]
    lines += ["| | shared | " + " | ".join(titles) + " |", "|---" * (len(titles) + 2) + "|"]
    parts = {arm.name: f"{shared(arm):.2f}" for arm in ARMS}
    for arm, some in found.items():
        cells = [
            cell
            for panel in LOSSES
            for cell in (
                *(study.interval(of(some, found["dense"], panel)) for of in (ratios, shares)),
                reached(some, found["dense"], panel),
            )
        ]
        lines.append(f"| {arm} | {parts[arm]} | {' | '.join(cells)} |")
    lines += ["", study.differences(COLUMNS, found, "dense")]
    study.tell(lines, given)
    figures.curves(found, list(LOSSES), given.out / "loss.png")
    figures.bars(found, COLUMNS, given.out / "results.png")


if __name__ == "__main__":
    study.begin(main)
