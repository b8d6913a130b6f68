"""Why none of the four ways to see knows shapes: what can be read from what LLaVA looks at.

    python experiments/evidence/shapes.py [--seeds=3] [--steps=1000]

For the runs of LLaVA in fusion.py: a linear classifier reads the colour and the shape of held-out
objects from the tower's features, from pixels, and from the features of a tower that was never
trained; and what LLaVA answers to "is there a green ring?" where all, the colour or the shape is
right. Needs what fusion.py needs.
"""

from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
import study
from fusion import ARMS
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mmjax
from mmjax.data.pixels import decode_image
from mmjax.evals import answers, heldout
from mmjax.layers.vision import standard
from mmjax.models import llava
from mmjax.trained import Trained

TRAIN, TEST = 4000, 400  # pictures; new ones of known combinations of colour and shape
BATCH = 200
PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)  # of the classifier: the best is chosen on its training set
SPLIT = "test"
KINDS = ("colour", "shape")


def seen(trained: Trained, pixels: np.ndarray, vision) -> np.ndarray:
    """[n, features] of pictures, as the projector reads them; `vision` are the tower's weights."""
    c, tower = trained.run.experiment.model, trained.run.model.parts.vision

    @jax.jit
    def look(params, pixels):
        return llava.features(c, tower(params, standard(pixels, c.mean, c.std))[1])

    rows = (pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))
    return np.concatenate([look({"vision": vision}, some) for some in rows]).reshape(
        len(pixels), -1
    )


def readable(train: np.ndarray, test: np.ndarray, names: Sequence[Sequence[str]]) -> float:
    """Share of test pictures whose name a linear classifier gives; names of both sets."""
    model = make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES))
    return float(model.fit(train, names[0]).score(test, names[1]))


def read(trained: Trained, seed: int) -> dict[tuple[str, str], float]:
    """(What is looked at, colour or shape) -> share of held-out objects that is read from it."""
    data = trained.run.experiment.data
    sets = [heldout.draw(trained, s, n, seed) for s, n in (("train", TRAIN), (SPLIT, TEST))]
    pixels = [
        np.stack([decode_image(r.image, data.image, data.resize) for r in some]) for some in sets
    ]
    fresh = trained.run.model.init(jax.random.key(seed))["vision"]
    looked = {
        "the tower": [seen(trained, x, trained.params["vision"]) for x in pixels],
        "a tower before training": [seen(trained, x, fresh) for x in pixels],
        "pixels": [x.reshape(len(x), -1) / 255 for x in pixels],
    }
    found = {}
    for name, (train, test) in looked.items():
        for kind in KINDS:
            names = [[r.facts["objects"][0][kind] for r in some] for some in sets]
            found[name, kind] = readable(train, test, names)
    return found


def said(trained: Trained, seed: int) -> dict[str, tuple[int, int]]:
    """What is right of an object that is asked for -> how often LLaVA says yes, and of how many."""
    records = heldout.draw(trained, SPLIT, TEST, seed)
    asked = [[q for q in answers.told(r) if q.kind == "existence"] for r in records]
    pairs = [(record, some[0]) for record, some in zip(records, asked, strict=True) if some]
    records, questions = zip(*pairs, strict=True)
    yes: Counter = Counter()
    of: Counter = Counter()
    made = answers.answers(trained, records, questions, seed)
    for record, question, answer in zip(records, questions, made, strict=True):
        *_, colour, shape = question.question.rstrip("?").split()
        (thing,) = record.facts["objects"]
        right = (thing["colour"] == colour, thing["shape"] == shape)
        name = {(True, True): "both", (True, False): "its colour", (False, True): "its shape"}[
            right
        ]
        of[name] += 1
        yes[name] += answer == "yes"
    return {name: (yes[name], of[name]) for name in sorted(of)}


def main() -> None:
    """Prints and writes both tables."""
    given = study.arguments("shapes")
    (runs,) = study.runs(ARMS[:1], given, weights=True).values()
    models = [mmjax.load(one.workdir) for one in runs]
    tables = [read(trained, seed) for seed, trained in enumerate(models)]
    counts = [said(trained, seed) for seed, trained in enumerate(models)]
    lines = ["| a linear classifier on | colour | shape |", "|---|---|---|"]
    for name in dict.fromkeys(name for name, _ in tables[0]):
        cells = [study.interval([table[name, kind] for table in tables]) for kind in KINDS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| right in the question | LLaVA says yes |", "|---|---|"]
    for name in counts[0]:
        shares = [yes / of for yes, of in (count[name] for count in counts)]
        lines.append(f"| {name} | {study.interval(shares)} |")
    study.tell(lines, given)


if __name__ == "__main__":
    study.begin(main)
