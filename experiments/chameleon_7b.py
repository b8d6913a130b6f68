"""Chameleon 7B: every number of the paper's Tables 1 and 2; for a pod of accelerators.

arXiv 2405.09818. Two stages: four fifths of the run on text, captioned pictures and interleaved
documents; then half of that beside as much of high quality and instructions. A weight is a share of
documents: that of tokens, over the mean length of a document. With a tokenizer of 57,344 ids the
vocabulary has 65,536. A tenth of the pictures come without their captions, of which the paper says
nothing: guidance needs it.

Run:  mmjax train    --config=experiments/codec_chameleon.py --workdir=out/codec_chameleon
      mmjax tokenize --config=experiments/chameleon_7b.py --workdir=out/codec_chameleon
      mmjax train    --config=experiments/chameleon_7b.py --workdir=out/chameleon_7b
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent
TOKENS = 9.2e12  # 4.4T, seen 2.1 times
# Trillions of tokens, and mean tokens of a document.
FIRST = {"text": (2.9, 1000), "pairs": (1.5, 1080), "interleaved": (0.4, 2500)}
SECOND = {"quality": (1.0, 1080), "instructions": (0.2, 1500)}


def get_config() -> ConfigDict:
    """The small Chameleon's fields at full size."""
    c = load(str(HERE / "chameleon_scenes.py"))
    codec = load(str(HERE / "codec_chameleon.py"))
    c.batch = 2048
    c.data.length = 4096
    c.data.images = 4
    c.data.image = 512
    c.data.patch = 16
    c.data.resize = "pil_lanczos"
    c.data.tokenizer = "out/data/tokenizer.json"
    c.data.workers = 8
    c.steps = round(TOKENS / (c.batch * c.data.length))
    c.log_every = 50
    c.save_every = 1000

    documents = {name: tokens / length for name, (tokens, length) in (FIRST | SECOND).items()}
    c.data.sources = {
        name: dict(path=f"out/data/{name}", weight=weight, template="", balance=False)
        for name, weight in documents.items()
    }
    c.data.sources.instructions.template = "sep"
    c.data.sources.instructions.balance = True
    first = {name: documents[name] if name in FIRST else 0.0 for name in documents}
    half = sum(documents[name] for name in SECOND) / sum(documents[name] for name in FIRST)
    second = {n: w * (half if n in FIRST else 1.0) for n, w in documents.items()}
    c.data.stages = dict(
        first=dict(until=0.8, weights=first), second=dict(until=1.0, weights=second)
    )

    c.model.codec = codec.model.codec
    c.start = dict(codec="out/codec_chameleon")
    d = c.model.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp = 4096, 32, 32, 32, 11008
    d.norm, d.dropout = "pre", 0.1
    d.remat, d.unroll, d.dtype = True, 1, "bfloat16"

    o = c.optim
    o.kind, o.peak, o.warmup, o.decay, o.floor = "adamw", 1e-4, 4000, "exponential", 1e-3
    o.b1, o.b2, o.eps, o.weight_decay, o.clip, o.ema = 0.9, 0.95, 1e-5, 0.1, 1.0, 0.0
    c.sample.guidance, c.sample.image_guidance = 3.0, 1.2
    words = dict(temperature=0.7, top_k=0, top_p=0.9, min_p=0.0, repetition=1.2)
    c.sample.words = words
    c.sample.codes = words | dict(repetition=1.0)
    return c
