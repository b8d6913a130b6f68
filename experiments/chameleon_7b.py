"""Chameleon 7B: every number of the paper's Tables 1 and 2; for a pod of accelerators.

arXiv 2405.09818. Two stages: four fifths of the run on text, captioned pictures and interleaved
documents; then half of that beside as much of high quality and instructions, of the same share of
image tokens. A weight is a share of documents: that of tokens, over the mean length of a document.
With a tokenizer of 57,344 ids the vocabulary has 65,536. Ours, where the paper gives no number: the
lengths of documents but for pairs, one picture in each of the others that has some, the share of
instructions, and a tenth of the pictures without their captions, which guidance needs.

Run:  mmjax train    --config=experiments/codec_chameleon.py --workdir=out/codec_chameleon
      mmjax tokenize --config=experiments/chameleon_7b.py --workdir=out/codec_chameleon
      mmjax train    --config=experiments/chameleon_7b.py --workdir=out/chameleon_7b
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent
TOKENS = 9.2e12  # 4.4T, seen 2.1 times
FIRST = {"text": 2.9, "pairs": 1.5, "interleaved": 0.4}  # trillions of tokens
INSTRUCTIONS = 0.1  # of the tokens of what the second stage adds
PICTURE = 1024  # tokens of a picture
# Mean tokens of a document, and whether it holds a picture.
DOCUMENTS = {
    "text": (1000, False), "pairs": (1080, True), "interleaved": (2500, True),
    "quality_text": (1000, False), "quality_pairs": (1080, True), "instructions": (1500, True),
}  # fmt: skip


def drawn(shares: dict[str, float]) -> float:
    """Of the tokens of a mixture with such shares of tokens, the share that are of pictures."""
    held = {name: PICTURE * has / length for name, (length, has) in DOCUMENTS.items()}
    return sum(share * held[name] for name, share in shares.items()) / sum(shares.values())


def added() -> dict[str, float]:
    """Shares of tokens of what the second stage adds: pictures are to have theirs of the first."""
    wanted = drawn(FIRST) - INSTRUCTIONS * drawn({"instructions": 1.0})
    pairs = wanted / drawn({"quality_pairs": 1.0})
    return {
        "quality_text": 1.0 - INSTRUCTIONS - pairs, "quality_pairs": pairs,
        "instructions": INSTRUCTIONS,
    }  # fmt: skip


def documents(shares: dict[str, float]) -> dict[str, float]:
    """Shares of tokens -> weights of documents, of all sources."""
    return {name: shares.get(name, 0.0) / length for name, (length, _) in DOCUMENTS.items()}


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

    first = {name: tokens / sum(FIRST.values()) for name, tokens in FIRST.items()}
    second = {name: 0.5 * share for name, share in (first | added()).items()}
    c.data.sources = {
        name: dict(path=f"out/data/{name}", weight=weight, template="", balance=False)
        for name, weight in documents(second).items()
    }
    c.data.sources.instructions.template = "sep"
    c.data.sources.instructions.balance = True
    c.data.stages = dict(
        first=dict(until=0.8, weights=documents(first)),
        second=dict(until=1.0, weights=documents(second)),
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
