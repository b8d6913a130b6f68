"""LLaVA 1.5, 7B, stage 1: the projector alone learns on captions; for a pod of accelerators.

arXiv 2310.03744, and the scripts published with it: CLIP ViT-L/14 at 336 pixels, 576 positions a
picture, a Vicuna; 558k captioned pictures once, batch 256, rate 1e-3 by a cosine with 3 % warmup.
One row holds one document or several: batch and steps are of rows, lengths as theirs. CLIP and
VICUNA are directories as `save_pretrained` of `transformers` writes them, of the model and of its
fast tokenizer: the published ones may have neither safetensors nor a tokenizer.json.

Run:  mmjax convert --src=CLIP   --dst=out/clip_l14_336  # openai/clip-vit-large-patch14-336
      mmjax convert --src=VICUNA --dst=out/vicuna_7b     # lmsys/vicuna-7b-v1.5
      mmjax data build --src=PAIRS --format=jsonl --dst=out/data/llava_pairs
      mmjax train   --config=experiments/llava_7b_align.py --workdir=out/llava_7b_align
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load
from mmjax.layers.encoder import VARIANTS

PAIRS, ROWS = 558_000, 3  # documents, and how many of them fit a row


def get_config() -> ConfigDict:
    """The small LLaVA's fields at full size."""
    c = load(str(Path(__file__).parent / "small_llava.py"))
    c.batch = 256 // ROWS + 1
    c.batch -= c.batch % 2
    c.steps = round(PAIRS / (c.batch * ROWS))
    c.log_every, c.save_every = 10, 500
    c.data.sources = dict(
        pairs=dict(path="out/data/llava_pairs", weight=1.0, template="caption", balance=False)
    )
    c.data.tokenizer = "out/vicuna_7b/tokenizer.json"
    c.data.length, c.data.images = 2048, 3
    c.data.image, c.data.patch = 336, 14
    c.data.resize, c.data.workers = "pil_bicubic_aa", 8

    d = c.model.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp = 4096, 32, 32, 32, 11008
    d.qk_norm, d.remat, d.unroll, d.dtype = False, True, 1, "bfloat16"
    v = c.model.vision
    v.encoder.update(VARIANTS["L"])
    v.encoder.update(activation="quick_gelu", eps=1e-5, remat=False, unroll=1, dtype="bfloat16")
    v.image, v.patch = 336, 14
    c.model.z_weight = 0.0
    c.model.train = ("projector",)
    c.start = dict(language="out/vicuna_7b", vision="out/clip_l14_336")

    o = c.optim
    o.kind, o.peak, o.decay, o.floor = "adamw", 1e-3, "cosine", 0.0
    o.warmup = round(0.03 * c.steps)
    o.b1, o.b2, o.eps, o.weight_decay, o.clip, o.ema = 0.9, 0.999, 1e-8, 0.0, 1.0, 0.0
    c.sample.text = 512
    return c
