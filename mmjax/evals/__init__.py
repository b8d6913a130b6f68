"""Evaluations: functions (trained, seed, out) -> {name: Value}; `EVALS` names each family's."""

from mmjax.evals import (
    answers,
    caption,
    drawing,
    frechet,
    likelihood,
    passages,
    reconstruction,
    scenes,
)

_READS_AND_DRAWS = {
    "likelihood": likelihood.evaluate,
    "caption": caption.evaluate,
    "drawing": drawing.evaluate,
    "frechet": frechet.evaluate,
    "scenes": scenes.evaluate,
    "answers": answers.evaluate,
    "passages": passages.evaluate,
}

EVALS = {
    "transfusion": _READS_AND_DRAWS,
    "chameleon": _READS_AND_DRAWS,
    # It has no likelihood of a caption from left to right.
    "oneflow": {name: _READS_AND_DRAWS[name] for name in ("drawing", "frechet", "scenes")},
    "dial": {name: _READS_AND_DRAWS[name] for name in ("drawing", "frechet", "scenes")},
    "codec": {"reconstruction": reconstruction.evaluate},
}
