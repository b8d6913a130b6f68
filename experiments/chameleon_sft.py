"""Instruction tuning of the small Chameleon on questions about scenes.

Chameleon, section 3: the loss is on answers alone (template "sep"), kinds of tasks are balanced,
the rate decays from 1e-5 by a cosine, dropout is 0.05 and z-loss stays. Here the rate is a hundred
times that, as the model is a thousandth of the size.

Run:  mmjax train --config=experiments/chameleon_sft.py --workdir=out/chameleon_sft
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The small Chameleon, begun as it was trained."""
    c = load(str(Path(__file__).parent / "chameleon_scenes.py"))
    c.steps = 600
    c.start = dict(all="out/chameleon_scenes")
    c.data.sources.scenes.template = "sep"
    c.data.sources.scenes.balance = True
    c.model.decoder.dropout = 0.05
    c.optim.kind = "adamw"
    c.optim.peak = 1e-3
    c.optim.weight_decay = 0.1
    return c
