"""Evaluations: functions (trained, seed, out) -> {name: Value}; `EVALS` has them by name.

Which of them a family has, and what others of its own, its module says: see
`models.family.Abilities`. Every family has `loss`.
"""

from collections.abc import Callable

from mmjax.config import Experiment
from mmjax.evals import (
    alignment,
    answers,
    bound,
    caption,
    drawing,
    edits,
    frechet,
    infilling,
    likelihood,
    loss,
    passages,
    probe,
    reconstruction,
    redrawing,
    retrieval,
    scenes,
)
from mmjax.models import abilities_of

EVALS: dict[str, Callable] = {
    "likelihood": likelihood.evaluate,
    "caption": caption.evaluate,
    "drawing": drawing.evaluate,
    "frechet": frechet.of_either,
    "scenes": scenes.evaluate,
    "answers": answers.evaluate,
    "edits": edits.evaluate,
    "passages": passages.evaluate,
    "alignment": alignment.evaluate,
    "probe": probe.evaluate,
    "redrawing": redrawing.evaluate,
    "infilling": infilling.evaluate,
    "bound": bound.evaluate,
    "reconstruction": reconstruction.evaluate,
    "retrieval": retrieval.evaluate,
    "loss": loss.evaluate,
}
# Scores of reconstruction, which take longest.
RECONSTRUCTS = ("alignment", "probe", "redrawing")


def of(e: Experiment) -> dict[str, Callable]:
    """The evaluations of an experiment's family, by name, in the order they are made."""
    can = abilities_of(e.family, e.model)
    return {name: EVALS[name] for name in can.evals} | dict(can.own) | {"loss": loss.evaluate}


def usual(e: Experiment) -> list[str]:
    """The evaluations a run gets unasked: all of its family's, but the scores of reconstruction
    only if it was trained to reconstruct, and the loss only where there is nothing else.
    """
    told = any(source.template == "reconstruct" for source in e.data.sources.values())
    names = [name for name in of(e) if told or name not in RECONSTRUCTS]
    return names if names == ["loss"] else [name for name in names if name != "loss"]
