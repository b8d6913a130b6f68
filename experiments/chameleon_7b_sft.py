"""Instruction tuning of Chameleon 7B (section 3 of the paper, its Tables 3 and 4).

A rate of 1e-5 that decays by a cosine, 128 rows of 4,096 positions, dropout 0.05, z-loss kept, and
loss on answers alone. Sets are drawn as often as keeps words and pictures in balance: half of the
documents ask for a picture, where by size it would be every third. Pictures to draw are cut to a
square, those of prompts padded (in white; the paper does not tell the colour).

Run:  mmjax tokenize --config=experiments/chameleon_7b_sft.py --workdir=out/codec_chameleon
      mmjax train    --config=experiments/chameleon_7b_sft.py --workdir=out/chameleon_7b_sft
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

# Examples of each set, in thousands (Table 3), and whether the answer is a picture.
SETS = {
    "text": (1600.0, False), "code": (14.1, False), "visual_chat": (15.6, False),
    "image_generation": (64.3, True), "interleaved": (16.9, True), "safety": (95.3, False),
}  # fmt: skip
EPOCHS = 2


def get_config() -> ConfigDict:
    """The 7B, begun as it was trained."""
    c = load(str(Path(__file__).parent / "chameleon_7b.py"))
    c.start = dict(all="out/chameleon_7b")
    c.batch = 128
    c.steps = round(EPOCHS * 1e3 * sum(size for size, _ in SETS.values()) / c.batch)
    totals = {draws: sum(s for s, d in SETS.values() if d == draws) for draws in (False, True)}
    c.data.sources = {
        name: dict(
            path=f"out/data/sft_{name}", weight=0.5 * size / totals[draws], template="sep",
            balance=False,
        )
        for name, (size, draws) in SETS.items()
    }  # fmt: skip
    c.data.stages = {}
    c.data.caption_dropout = 0.0
    c.data.resize_prompt = "pil_lanczos_pad"
    c.model.decoder.dropout = 0.05
    o = c.optim
    o.peak, o.warmup, o.decay, o.floor = 1e-5, 100, "cosine", 0.0
    return c
