"""Evaluations: functions (trained, seed, out) -> {name: Value}; `EVALS` names them."""

from mmjax.evals import caption, drawing, likelihood

EVALS = {
    "likelihood": likelihood.evaluate,
    "caption": caption.evaluate,
    "drawing": drawing.evaluate,
}
