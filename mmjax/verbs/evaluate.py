"""Measures a trained model on held-out data; prints a table and writes evals.json and sheets.

mmjax evaluate --workdir=out/quickstart [--evals=likelihood,caption,drawing]
"""

from absl import flags

from mmjax.error import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "directory of a `mmjax train`")
# Not asked of `mmjax.evals`, which imports jax: help should be there at once. A test compares.
KNOWN = (
    "alignment, answers, bound, caption, drawing, edits, frechet, infilling, likelihood, loss, "
    "passages, probe, reconstruction, redrawing, retrieval, scenes"
)
NAMES = flags.DEFINE_list("evals", None, f"which of {KNOWN}; default: the family's")


def main(rest: list[str]) -> int:
    """Evaluates the workdir."""
    if WORKDIR.value is None or rest:
        raise UserError("give --workdir=DIR of a `mmjax train`")
    from mmjax.evaluate import evaluate

    evaluate(WORKDIR.value, NAMES.value)
    return 0
