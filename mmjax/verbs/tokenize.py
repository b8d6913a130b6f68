"""Writes the codes or latents a trained codec makes of an experiment's data sets, once.

    mmjax tokenize --config=experiments/chameleon_scenes.py --workdir=out/codec_scenes

For each of the experiment's sources in DIR it leaves DIR.coded, which `data.coded=True` reads
instead of the pictures. After a kill the same command goes on.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mmjax import config
from mmjax.coding import tokenize
from mmjax.data import store
from mmjax.error import UserError
from mmjax.run import families
from mmjax.trained import load

CONFIG = config_flags.DEFINE_config_file("config", None, "experiment file", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "directory of a codec's training, or a model's")


def main(rest: list[str]) -> int:
    """Tokenizes the sources."""
    if CONFIG.value is None or WORKDIR.value is None or rest:
        raise UserError("give --config=experiments/NAME.py and --workdir=DIR of a trained codec")
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not Path(file).is_file():
        raise UserError(f"experiment file {file} does not exist; see experiments/*.py")
    data = config.resolve(CONFIG.value, families()).data
    for path in tokenize(data, load(WORKDIR.value)):
        print(f"{path}: ready; train with data.coded=True{store.left_out(path, store.info(path))}")
    return 0
