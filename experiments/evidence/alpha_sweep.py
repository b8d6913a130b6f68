"""The dial between flow and autoregression: quality against the cost of sampling.

    python experiments/evidence/alpha_sweep.py [--seeds=3]

Arms: pictures at five values of alpha, 1, 2, 4, 8 and 16 blocks of their 16 patches, with text from
left to right; and text at three values, pictures by flow, captions filled up with EOS, and once
from left to right after fewer steps. In both all blocks are trained at once, in copies behind the
row.
Each model is trained once and sampled with several numbers of steps a token. Quality: share of
held-out captions whose drawing shows what they say, and Fréchet distance; share of held-out
pictures whose caption is right. Cost of a picture or a caption: passes over the network one after
the other, and positions they run. Needs out/data/scenes16.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import study
from figures import plt
from matplotlib.ticker import NullFormatter
from study import Arm, Run

import mmjax
from mmjax.batch import Image
from mmjax.codecs import efficientnet
from mmjax.evals import frechet, heldout, reconstruction
from mmjax.evals.scenes import said, table, things
from mmjax.sample import dial
from mmjax.sample.span import options_of
from mmjax.sample_config import SampleConfig
from mmjax.trained import Trained

# All blocks are trained at once, at one cost whatever their number.
BLOCKS = {"model.form": "block", "model.transfusion.context": "clean"}
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


# Tokens a caption is written in, EOS among them; a span's length is known before its words.
ROOM = 16
TRAINED = {"pictures": 600, "text": 1000}  # steps


def arm(name: str, text: float, image: float) -> Arm:
    """An arm with these two alphas."""
    changes = {"model.text_alpha": text, "model.image_alpha": image} | BLOCKS
    if name == "text":
        changes |= {"data.ends": ROOM}
    if text < 1:
        changes |= {"model.two_streams": True}
    title = f"{name} {text if name == 'text' else image}"
    evals = "bound" if name == "text" else ""
    return Arm(title, "small_dial", changes, steps=TRAINED[name], evals=evals)


PICTURES = tuple(arm("pictures", 1.0, alpha) for alpha in ALPHAS)
# The last is asked for hardly more words than masked text is in its 1,000 steps.
TEXTS = (
    *(arm("text", alpha, 0.0) for alpha in (0.0, 0.5, 1.0)),
    PICTURES[0]._replace(name="text 1.0 after 600 steps"),
)
STEPS = {"pictures": (1, 2, 5, 10, 25), "text": (1, 2, 4, 8, 16, 32, 64)}
SPLIT, COUNT, SEED = "test", 200, 0
QUALITY = {
    "pictures": {"all": "drawings right", "frechet": "Fréchet distance"},
    "text": {"all": "captions right"},
}


def cost(trained: Trained, kind: str, sample: SampleConfig) -> dict[str, float]:
    """Passes one after the other, and positions they run, for one picture or text."""
    model, how = trained.run.experiment.model, options_of(trained.run, kind == "pictures", sample)
    alpha = model.image_alpha if kind == "pictures" else model.text_alpha
    chart = dial.plan(model.form, alpha, how.size, how.steps, how.discrete)
    passes = len(chart.active)
    return {"passes": passes, "positions": passes * chart.rows, "evaluations": chart.evaluations}


def drawn(trained: Trained, records, steps: int, true) -> dict[str, float]:
    """Quality of drawings."""
    asked = [heldout.request(trained, r.caption) for r in records]
    made = trained.draw(asked, SEED, steps=steps)
    found = {name: hit for name, hit in table(made, records).items() if np.size(hit)}
    hits = {name: float(np.mean(hit)) for name, hit in found.items()}
    return hits | {"frechet": frechet.frechet(frechet.features(efficientnet.load(), made), true)}


def written(trained: Trained, records, steps: int) -> dict[str, float]:
    """Quality of captions."""
    texts = trained.write([[Image(r.image)] for r in records], SEED, steps=steps, text=ROOM)
    rows = [said(t, things(r.facts)) for t, r in zip(texts, records, strict=True)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def place(one: Run, kind: str) -> Path:
    """Where what is measured of a run is kept, beside its log."""
    asked = "-".join(map(str, STEPS[kind]))
    return one.home / f"sweep_{kind}_{asked}_{SPLIT}{COUNT}_{ROOM}.json"


def measure(workdir: Path, kind: str) -> list[dict]:
    """A row a number of steps."""
    trained = mmjax.load(workdir)
    records = heldout.draw(trained, SPLIT, COUNT, SEED)
    if kind == "pictures":
        true = frechet.features(efficientnet.load(), reconstruction.pictures(trained, records))
    rows: list[dict] = []
    for steps in STEPS[kind]:
        sample = trained.sample_config({"steps": steps, "text": ROOM})
        price = cost(trained, kind, sample)
        if rows and rows[-1]["passes"] == price["passes"]:
            continue  # at alpha = 1 a word is one pass, however many steps are asked for
        found = (
            drawn(trained, records, steps, true)
            if kind == "pictures"
            else written(trained, records, steps)
        )
        rows.append({"steps": steps} | price | found)
    return rows


def sweep(kind: str, found: Mapping[str, Sequence[Run]]) -> dict[str, list[list[dict]]]:
    """For each arm, for each seed, its rows."""
    return {
        name: [study.once(place(one, kind), partial(measure, one.workdir, kind)) for one in some]
        for name, some in found.items()
    }


def bounds_of(found: Mapping[str, Sequence[Run]]) -> list[str]:
    """Markdown: what a held-out caption takes at most; at alpha = 1 what it takes."""
    lines = ["", "| | caption, nats a token, at most |", "|---|---|"]
    for name, some in found.items():
        exact = "text_nll_concepts" in some[0].summary
        entry = "text_nll_concepts" if exact else "text_nll_bound_concepts"
        lines.append(f"| {name} | {study.either(some, entry)} |")
    return lines


def lines_of(kind: str, found: dict[str, list[list[dict]]]) -> list[str]:
    """Markdown: a row an arm and number of steps."""
    titles = QUALITY[kind]
    head = ["", "steps a token", "passes", "positions", *titles.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, seeds in found.items():
        for same in zip(*seeds, strict=True):
            at = [str(same[0][n]) for n in ("steps", "passes", "positions")]
            cells = [study.interval([row[quality] for row in same]) for quality in titles]
            lines.append("| " + " | ".join([name, *at, *cells]) + " |")
    return lines


def plot(kind: str, found: dict[str, list[list[dict]]], path: Path) -> None:
    """Quality over passes and over positions; a line an arm: its seeds' mean and range."""
    titles = QUALITY[kind]
    figure, axes = plt.subplots(len(titles), 2, figsize=(9, 3.1 * len(titles)), squeeze=False)
    for row, (quality, title) in zip(axes, titles.items(), strict=True):
        for axis, price in zip(row, ("passes", "positions"), strict=True):
            for number, (name, seeds) in enumerate(found.items()):
                x = [one[price] for one in seeds[0]]
                y = np.array([[one[quality] for one in some] for some in seeds])
                color = plt.cm.viridis(number / max(len(found) - 1, 1) * 0.9)
                axis.plot(x, y.mean(0), "o-", ms=3, label=name, color=color)
                axis.fill_between(x, y.min(0), y.max(0), alpha=0.12, lw=0, color=color)
                if len(x) == 1:  # of which a band shows nothing
                    axis.vlines(x, y.min(0), y.max(0), lw=1, color=color)
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel(f"{price} for one {'picture' if kind == 'pictures' else 'caption'}")
            axis.set_ylabel(title)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Runs what is missing and writes the tables and the figures."""
    given = study.arguments("alpha_sweep")
    text: list[str] = []
    for kind, arms in (("pictures", PICTURES), ("text", TEXTS)):
        runs = study.measured(arms, given, partial(place, kind=kind))
        if not runs:
            continue  # none of these arms was asked for
        found = sweep(kind, runs)
        text += [f"{kind}, n = {COUNT}, {given.seeds} seeds", "", *lines_of(kind, found), ""]
        text += bounds_of(runs) if kind == "text" else []
        plot(kind, found, given.out / f"{kind}.png")
    print("\n".join(text))
    if not given.arms:  # else a part, which is not to take the place of the whole
        (given.out / "table.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    study.begin(main)
