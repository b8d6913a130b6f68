"""Transfusion on latents of a KL codec, scenes at 32 x 32 pixels.

Run:  as codec_kl_scenes.py, and
      mmjax tokenize --config=experiments/transfusion_latents.py --workdir=out/codec_kl_scenes
      mmjax train    --config=experiments/transfusion_latents.py --workdir=out/transfusion_latents
`mmjax tokenize` prints the model.signal_mean and model.signal_std of the latents.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """transfusion_scenes.py with a codec between pixels and patches."""
    c = load(str(HERE / "transfusion_scenes.py"))
    codec = load(str(HERE / "codec_kl_scenes.py"))
    c.model.codec = codec.model.codec
    c.model.signal_mean = 0.0
    c.model.signal_std = 1.0
    c.data.coded = True
    c.start = dict(codec="out/codec_kl_scenes")
    return c
