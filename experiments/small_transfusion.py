"""A Transfusion of a million parameters on scenes of one object, 16 x 16 pixels.

The base of the comparisons in experiments/evidence: some minutes on two CPU cores.

Run:  mmjax data build --src=scenes --dst=out/data/scenes16 --size=16 --level=3 --most=2
        --count=40000
      mmjax train --config=experiments/small_transfusion.py --workdir=out/small_transfusion
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The base on other data, with a narrower decoder and more steps."""
    c = load(str(Path(__file__).parent / "base.py"))
    c.steps = 1500
    c.data.sources = dict(
        scenes=dict(path="out/data/scenes16", weight=1.0, template="", balance=False)
    )
    c.data.length = 256
    c.data.images = 10
    c.data.text_first = 0.5
    d = c.model.decoder
    d.width, d.mlp = 128, 344
    c.optim.peak = 1.2e-2
    c.sample.steps = 25
    c.sample.text = 40
    c.evals.documents = 512
    c.evals.drawings = 200
    return c
