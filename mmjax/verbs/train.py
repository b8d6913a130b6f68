"""Trains an experiment or resumes it, then evaluates it and draws its contact sheets.

    mmjax train --config=experiments/quickstart.py --workdir=out/quickstart [--config.steps=50 ...]
                [--evals=likelihood,caption]

Leaves in the workdir: config.json, metrics.jsonl, checkpoints/, samples/, evals.json, summary.json.
The same command again resumes after any stop; a changed experiment is refused with the difference.
"""

from absl import flags
from ml_collections import config_flags

from mmjax.error import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "experiment: name or file", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "directory for everything the run leaves")
EVALS_AFTER = flags.DEFINE_list("evals", None, "what to evaluate at the end; default: as evaluate")


def main(rest: list[str]) -> int:
    """Trains, then evaluates; returns the exit code."""
    if CONFIG.value is None or WORKDIR.value is None or rest:
        raise UserError("give --config=NAME, or a file, and --workdir=DIR")
    # After the flags: who mistypes one, or asks for help, need not wait for jax.
    from mmjax import config
    from mmjax.evaluate import check_names, evaluate
    from mmjax.run import families
    from mmjax.train import train

    experiment = config.resolve(CONFIG.value, families())
    check_names(experiment, EVALS_AFTER.value or ())  # now, not after the training
    signal = train(experiment, WORKDIR.value)
    if signal:
        return 128 + signal
    evaluate(WORKDIR.value, EVALS_AFTER.value)
    return 0
