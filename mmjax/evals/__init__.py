"""Evaluations: functions (trained, seed, out) -> {name: Value}; `EVALS` names each family's."""

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
    passages,
    probe,
    reconstruction,
    redrawing,
    retrieval,
    scenes,
)

_READS = {
    "likelihood": likelihood.evaluate,
    "caption": caption.evaluate,
    "answers": answers.evaluate,
    "passages": passages.evaluate,
}
_READS_AND_DRAWS = {
    "likelihood": likelihood.evaluate,
    "caption": caption.evaluate,
    "drawing": drawing.evaluate,
    "frechet": frechet.evaluate,
    "scenes": scenes.evaluate,
    "answers": answers.evaluate,
    "edits": edits.evaluate,
    "passages": passages.evaluate,
    "alignment": alignment.evaluate,
    "probe": probe.evaluate,
    "redrawing": redrawing.evaluate,
}
# Scores of reconstruction, which take longest.
RECONSTRUCTS = ("alignment", "probe", "redrawing")

EVALS = {
    "transfusion": _READS_AND_DRAWS,
    "chameleon": _READS_AND_DRAWS | {"infilling": infilling.evaluate},
    # It has no likelihood of a caption from left to right.
    "oneflow": {name: _READS_AND_DRAWS[name] for name in ("drawing", "frechet", "scenes")},
    "dial": {"bound": bound.evaluate}
    | {name: _READS_AND_DRAWS[name] for name in ("drawing", "frechet", "scenes")},
    "codec": {"reconstruction": reconstruction.evaluate, "frechet": frechet.reconstructed},
    "language": _READS,
    "llava": _READS,
    "flamingo": _READS,
    "clip": {"retrieval": retrieval.evaluate, "answers": answers.evaluate},
}


def usual(e: Experiment) -> list[str]:
    """The evaluations a run gets unasked: all of its family's, but the scores of reconstruction
    only if it was trained to reconstruct.
    """
    told = any(source.template == "reconstruct" for source in e.data.sources.values())
    return [name for name in EVALS[e.family] if told or name not in RECONSTRUCTS]
