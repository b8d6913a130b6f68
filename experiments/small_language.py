"""The decoder of small_transfusion.py on questions about scenes it does not see: a control.

Run:  mmjax data build --src=scenes --dst=out/data/scenes16 --size=16 --level=3 --most=2
        --count=40000
      mmjax train --config=experiments/small_language.py --workdir=out/small_language
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The Transfusion's decoder and data, as prompts and answers; pictures are blank."""
    c = load(str(Path(__file__).parent / "small_transfusion.py"))
    c.data.sources.scenes.template = "sep"
    c.data.shared_position = False
    c.data.caption_dropout = 0.0
    c.family = "language"
    c.model = dict(decoder=c.model.decoder.to_dict(), z_weight=1e-5)
    c.sample.text = 12
    return c
