"""Writes the codes or latents a trained codec makes of an experiment's data sets, once.

    mmjax tokenize --config=experiments/chameleon_scenes.py --workdir=out/codec_scenes

For each of the experiment's sources in DIR it leaves DIR.coded, which `data.coded=True` reads
instead of the pictures. After a kill the same command goes on.
"""

from absl import flags
from ml_collections import config_flags

from mmjax.error import UserError

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "experiment: name or file", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "directory of a codec's training, or a model's")


def main(rest: list[str]) -> int:
    """Tokenizes the sources."""
    if CONFIG.value is None or WORKDIR.value is None or rest:
        raise UserError("give --config=NAME, or a file, and --workdir=DIR of a codec")
    from mmjax import config
    from mmjax.coding import tokenize
    from mmjax.data import signal, store
    from mmjax.run import families
    from mmjax.trained import load

    data = config.resolve(CONFIG.value, families()).data
    for path in tokenize(data, load(WORKDIR.value)):
        print(f"{path}: ready; train with data.coded=True{store.left_out(path, store.info(path))}")
        if store.info(path)["source"]["coded"]["dtype"] != "int32":
            if (found := signal.measure(path)) is not None:
                print(found.line())
    return 0
