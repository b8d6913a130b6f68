"""Every field, with the values of a small Transfusion of OpenMoji at 16 x 16 pixels.

Other experiments edit this one; `quickstart.py` is the first to read.

Run:  mmjax data build --src=openmoji --dst=out/data/openmoji
      mmjax train --config=experiments/base.py --workdir=out/base
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    """The experiment; every other one edits this."""
    image, patch = FieldReference(16), FieldReference(4)
    c = ConfigDict()
    c.seed = 0
    c.steps = 1000
    c.batch = 8
    c.accumulate = 1
    c.log_every = 20
    c.save_every = 200

    c.mesh = dict(data=1, fsdp=-1, tensor=1)

    c.data = dict(
        sources=dict(
            openmoji=dict(path="out/data/openmoji", weight=1.0, template="", balance=False)
        ),
        stages=dict(),
        tokenizer="",
        length=128,
        images=6,
        image=image,
        patch=patch,
        text_first=0.8,
        caption_dropout=0.1,
        shared_position=True,
        resize="pil_box",
        spans=0.0,
        bottleneck="none",
        ends=1,
        shrink=2,
        coded=False,
        window=512,
        workers=0,
    )

    c.family = "transfusion"
    c.model = dict(
        decoder=dict(
            width=160,
            depth=4,
            heads=4,
            kv_heads=4,
            mlp=432,
            qk_norm=True,
            norm="pre",
            dropout=0.0,
            theta=10000.0,
            remat=False,
            unroll=4,
            dtype="float32",
            towers=1,
            untie=(),
            untied_layers=(),
            grouped=False,
        ),
        image=image,
        patch=patch,
        codec=None,
        unet=0,
        picture_mask="both",
        path="flow",
        prediction="data",
        target="velocity",
        image_weight=5.0,
        z_weight=1e-5,
        time_mean=-0.6,
        time_std=0.9,
        time_shift=1.0,
        context="noisy",
        context_time=0.5,
        signal_mean=0.63,
        signal_std=0.55,
        text_rate=1.0,
    )

    c.start = dict()
    c.optim = dict(
        kind="muon",
        peak=2e-3,
        warmup=50,
        decay="cosine",
        floor=0.01,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.05,
        clip=1.0,
        ema=0.98,
    )
    choice = dict(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition=1.0)
    c.sample = dict(
        solver="euler",
        steps=50,
        shift=1.0,
        guidance=2.5,
        guidance_start=0.0,
        guidance_stop=1.0,
        guidance_least=1.0,
        text_guidance=1.0,
        image_guidance=0.0,
        contrast=0.0,
        text=24,
        words=choice,
        codes=choice | dict(temperature=1.0),
    )
    c.evals = dict(documents=256, drawings=256, every=100)
    return c
