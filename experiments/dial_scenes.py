"""Between flow and autoregression on scenes at 32 x 32: transfusion_scenes.py, pictures in blocks.

Run:  mmjax data build --src=scenes --dst=out/data/scenes32 --size=32 --level=3 --count=40000
      mmjax train    --config=experiments/dial_scenes.py --workdir=out/dial_scenes
`--config.model.image_alpha=0` is Transfusion, 1 writes patch after patch.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """Transfusion's experiment; text left to right, the 64 patches of a picture in 8 blocks."""
    c = load(str(HERE / "transfusion_scenes.py"))
    base = c.model.copy_and_resolve_references()
    base.context = "clean"  # all blocks are trained at once
    c.family = "dial"
    c.model = dict(
        transfusion=base,
        chameleon=None,
        text_alpha=1.0,
        image_alpha=0.5,
        form="block",
        weight="elbo",
        schedule="linear",
        two_streams=False,
        clean_mask="causal",
    )
    c.sample.steps = 10  # of each block
    return c
