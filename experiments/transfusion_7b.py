"""Transfusion 7B: the paper's recipe (section 4.1), for a pod of accelerators.

arXiv 2408.11039. DDPM on latents of 256 x 256 pixels, 256 patches of 2 x 2 latents a picture, made
by a U-Net of 0.32B; as many tokens of text as of pictures, the caption first four times in five.
The smaller sizes of Table 2 edit this one: transfusion_016b, _037b, _076b, _14b.

Run:  mmjax train    --config=experiments/codec_transfusion.py --workdir=out/codec_transfusion
      mmjax tokenize --config=experiments/transfusion_7b.py --workdir=out/codec_transfusion
      mmjax train    --config=experiments/transfusion_7b.py --workdir=out/transfusion_7b

`mmjax tokenize` prints the mean and deviation of the latents, to be given to the training as
--config.model.signal_mean and --config.model.signal_std; so does `mmjax data describe --signal`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent
LENGTHS = {"text": 1000, "pairs": 300}  # mean positions of a document


def get_config() -> ConfigDict:
    """The base's fields at full size."""
    c = load(str(HERE / "base.py"))
    codec = load(str(HERE / "codec_transfusion.py"))
    c.steps, c.batch, c.log_every, c.save_every = 250_000, 512, 50, 1000
    c.data.length, c.data.images, c.data.workers = 4096, 16, 8
    c.data.image, c.data.patch = 256, 16
    c.data.tokenizer = "out/data/tokenizer.json"
    c.data.coded = True
    # A source's weight is a share of documents; that of tokens is one half each.
    c.data.sources = {
        name: dict(path=f"out/data/{name}", weight=1.0 / length, template="", balance=False)
        for name, length in LENGTHS.items()
    }
    c.start = dict(codec="out/codec_transfusion")
    m = c.model
    m.codec, m.unet = codec.model.codec, 1856
    m.image, m.patch = 256, 16
    m.path, m.prediction, m.target, m.time_std = "cosine", "noise", "noise", 0.0
    m.z_weight = 0.0
    m.signal_mean, m.signal_std = 0.0, 1.0  # of one's own codec: see above
    d = m.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp = 4096, 32, 32, 32, 11008
    d.qk_norm, d.remat, d.unroll, d.dtype = False, True, 1, "bfloat16"
    o = c.optim
    o.kind, o.peak, o.warmup, o.floor = "adamw", 3e-4, 4000, 0.05
    o.b1, o.b2, o.eps, o.weight_decay, o.clip, o.ema = 0.9, 0.95, 1e-8, 0.1, 1.0, 0.0
    c.sample.solver, c.sample.steps, c.sample.guidance = "ddim", 250, 5.0
    return c
