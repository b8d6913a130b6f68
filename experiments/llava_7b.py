"""LLaVA 1.5, 7B, stage 2: projector and language model learn to answer; for a pod.

arXiv 2310.03744: 665k conversations once, batch 128, rate 2e-5, pictures padded to squares in the
mean colour. Needs what llava_7b_align.py made.

Run:  mmjax data build --src=talks.json --format=llava --images=IMAGES
        --dst=out/data/llava_talks
      mmjax train --config=experiments/llava_7b.py --workdir=out/llava_7b
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

TALKS, ROWS = 665_000, 2  # documents, and how many of them fit a row


def get_config() -> ConfigDict:
    """The first stage's fields with other data and more that trains."""
    c = load(str(Path(__file__).parent / "llava_7b_align.py"))
    c.batch = 128 // ROWS
    c.steps = round(TALKS / (c.batch * ROWS))
    c.data.sources = dict(
        talks=dict(path="out/data/llava_talks", weight=1.0, template="vicuna", balance=False)
    )
    c.data.resize = "pil_bicubic_pad"
    c.model.train = ("projector", "embed", "decoder", "head")
    c.start = dict(all="out/llava_7b_align")
    c.optim.peak = 2e-5
    c.optim.warmup = round(0.03 * c.steps)
    return c
