"""SigLIP on OpenMoji at 32 x 32 pixels: the same pairs, each told apart by itself.

Run:  as experiments/clip_openmoji.py, with this file
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """CLIP's sizes, SigLIP's towers and loss."""
    c = load(str(Path(__file__).parent / "clip_openmoji.py"))
    m = c.model
    m.vision.update(pool="attention", patch_bias=True, pre_norm=False)
    m.text.update(causal=False, pool="last")
    for tower in (m.vision, m.text):
        tower.encoder.update(activation="gelu_tanh", eps=1e-6)
    m.update(project="text", objective="sigmoid", scale=10.0, bias=-10.0)
    m.update(mean=(0.5,) * 3, std=(0.5,) * 3)
    return c
