"""Trains an experiment or resumes it, then evaluates it and draws its contact sheets.

    mmjax train --config=experiments/quickstart.py --workdir=out/quickstart [--config.steps=50 ...]
                [--evals=likelihood,caption]

Leaves in the workdir: config.json, metrics.jsonl, checkpoints/, samples/, evals.json, summary.json.
The same command again resumes after any stop; a changed experiment is refused with the difference.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmjax import config
from mmjax.error import UserError
from mmjax.evaluate import check_names, evaluate
from mmjax.run import families
from mmjax.train import train

CONFIG = config_flags.DEFINE_config_file("config", None, "experiment file", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "directory for everything the run leaves")
EVALS_AFTER = flags.DEFINE_list("evals", None, "what to evaluate at the end; default: as evaluate")


def main(rest: list[str]) -> int:
    """Trains, then evaluates; returns the exit code."""
    if CONFIG.value is None or WORKDIR.value is None or rest:
        raise UserError("give --config=experiments/NAME.py and --workdir=DIR")
    # The flag reports an absent file only when its value is read, and then as a traceback.
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not Path(file).is_file():
        raise UserError(f"experiment file {file} does not exist; see experiments/*.py")
    experiment = config.resolve(CONFIG.value, families())
    check_names(experiment, EVALS_AFTER.value or ())  # now, not after the training
    signal = train(experiment, WORKDIR.value)
    if signal:
        return 128 + signal
    evaluate(WORKDIR.value, EVALS_AFTER.value)
    return 0
