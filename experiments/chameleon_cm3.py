"""The small Chameleon on CM3's objective: spans move to the end, and holes can be filled.

Aghajanyan et al. 2022 (arXiv 2201.07520). On average one span a document, of text or a whole
picture.

Run:  as experiments/chameleon_scenes.py, then
      mmjax train --config=experiments/chameleon_cm3.py --workdir=out/chameleon_cm3
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The small Chameleon with moved spans."""
    c = load(str(Path(__file__).parent / "chameleon_scenes.py"))
    c.data.spans = 1.0
    return c
