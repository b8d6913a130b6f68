"""Measures a trained model on held-out data; prints a table and writes evals.json and sheets.

mmjax evaluate --workdir=out/quickstart [--evals=likelihood,caption,drawing]
"""

from absl import flags

from mmjax.error import UserError
from mmjax.evals import EVALS
from mmjax.evaluate import evaluate

WORKDIR = flags.DEFINE_string("workdir", None, "directory of a `mmjax train`")
NAMES = flags.DEFINE_list(
    "evals", None, f"which of {', '.join(sorted(EVALS))}; default: the family's"
)


def main(rest: list[str]) -> int:
    """Evaluates the workdir."""
    if WORKDIR.value is None or rest:
        raise UserError("give --workdir=DIR of a `mmjax train`")
    evaluate(WORKDIR.value, NAMES.value)
    return 0
