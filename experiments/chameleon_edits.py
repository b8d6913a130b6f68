"""The small Chameleon trained on to change pictures as it is told: picture to picture.

Run:  as experiments/chameleon_scenes.py, then
      mmjax data build --src=scenes --edits --dst=out/data/edits32 --size=32 --count=20000 \\
          --tokenizer=out/data/scenes32/tokenizer.json
      mmjax tokenize --config=experiments/chameleon_edits.py --workdir=out/codec_scenes
      mmjax train --config=experiments/chameleon_edits.py --workdir=out/chameleon_edits
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The small Chameleon, begun as it was trained, on edits and captions."""
    c = load(str(Path(__file__).parent / "chameleon_scenes.py"))
    c.steps = 1500
    c.start = dict(all="out/chameleon_scenes")
    c.data.sources = dict(
        edits=dict(path="out/data/edits32", weight=3.0, template="", balance=False),
        scenes=dict(path="out/data/scenes32", weight=1.0, template="", balance=False),
    )
    c.optim.peak = 4e-3
    c.sample.guidance = 2.0  # this and the temperature: best of nine pairs on validation edits
    c.sample.codes.temperature = 0.5
    return c
