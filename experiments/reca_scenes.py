"""Reconstruction alignment of the small Transfusion on scenes, a short training after training.

Xie et al. 2025 (arXiv 2509.07295). Half of the documents show a picture and ask for it, half show
one and have its caption; none goes from caption to picture. The loss on pictures is the mean over
those that were asked for, that on text over words of captions and the little that ends a document:
lambda_RecA = model.image_weight, lambda_i2t = 1. One signal is read and drawn here, so 16 registers
stand between them: the picture is drawn from what they hold of it. Their ids are new to the model.

Run:  as transfusion_scenes.py, and
      mmjax train --config=experiments/reca_scenes.py --workdir=out/reca_scenes
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The small Transfusion, begun as it was trained."""
    c = load(str(Path(__file__).parent / "transfusion_scenes.py"))
    c.steps = 600
    c.start = dict(all="out/transfusion_scenes")
    scenes = c.data.sources.scenes.to_dict()
    c.data.sources = dict(
        scenes=scenes | dict(template="reconstruct"),
        captions=scenes | dict(template="caption"),
    )
    c.data.bottleneck = "registers"
    c.optim.kind = "adamw"
    c.optim.peak = 5e-4
    c.optim.decay = "constant"
    return c
