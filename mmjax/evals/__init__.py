"""Evaluations: functions (trained, seed, out) -> {name: Value}; `EVALS` names each family's."""

from mmjax.evals import caption, drawing, likelihood, reconstruction, scenes

_READS_AND_DRAWS = {
    "likelihood": likelihood.evaluate,
    "caption": caption.evaluate,
    "drawing": drawing.evaluate,
}

EVALS = {
    "transfusion": _READS_AND_DRAWS | {"scenes": scenes.evaluate},
    "chameleon": _READS_AND_DRAWS | {"scenes": scenes.evaluate},
    "codec": {"reconstruction": reconstruction.evaluate},
}
