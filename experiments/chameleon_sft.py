"""Instruction tuning of the small Chameleon on questions about scenes, and on requests to draw.

Chameleon, section 3: the loss is on answers alone (template "sep"), modalities that are written are
balanced (as many documents ask for a picture as for words; without them it would forget to draw),
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
    scenes = c.data.sources.scenes.to_dict()
    c.data.sources = dict(
        scenes=scenes | dict(template="sep"), scenes_drawn=scenes | dict(template="sep_draw")
    )
    c.model.decoder.dropout = 0.05
    c.optim.kind = "adamw"
    c.optim.peak = 1e-3
    c.optim.weight_decay = 0.1
    return c
