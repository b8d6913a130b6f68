"""Evaluations: functions (trained, seed) -> {name: Value}; `EVALS` names them."""

from mmjax.evals import choice, contact, likelihood

EVALS = {
    "likelihood": likelihood.evaluate,
    "choice": choice.evaluate,
    "contact": contact.evaluate,
}
