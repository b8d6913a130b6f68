"""The small Chameleon trained on with CM3's objective: spans move to the end, holes can be filled.

Aghajanyan et al. 2022 (arXiv 2201.07520), who move one span a document on average. Three here: of
documents that are picture for three quarters, one span is mostly the picture, and in a short run
too few words would be missing to learn where they go.

Run:  as experiments/chameleon_scenes.py, then
      mmjax train --config=experiments/chameleon_cm3.py --workdir=out/chameleon_cm3
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The small Chameleon, begun as it was trained, with moved spans."""
    c = load(str(Path(__file__).parent / "chameleon_scenes.py"))
    c.steps = 3000
    c.start = dict(all="out/chameleon_scenes")
    c.optim.peak = 8e-3
    c.data.spans = 3.0
    return c
