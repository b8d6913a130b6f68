"""The experiment that stands around imported weights: what sampling and evaluation read of one."""

from collections.abc import Mapping
from typing import Any

from mmjax import values
from mmjax.config import Experiment, resolve

SOURCE = {"path": "out/data/own", "weight": 1.0, "template": "", "balance": False}
DATA = {
    "sources": {"own": SOURCE},
    "stages": {},
    "tokenizer": "",
    "images": 1,
    "text_first": 0.5,
    "caption_dropout": 0.0,
    "shared_position": False,
    "spans": 0.0,
    "bottleneck": "none",
    "shrink": 2,
    "coded": False,
    "window": 512,
    "workers": 0,
}
CHOICE = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0}


def experiment(
    family: str,
    model: Any,
    families: Mapping[str, type],
    image: int,
    patch: int,
    length: int,
    extra: int = 0,
    resize: str = "pil_bicubic_aa",
    crop: bool = False,
) -> Experiment:
    """An experiment of one step that was never taken; its only source is a place to put data.

    Args:
        family, model: what the weights are of. families: name -> its configuration.
        image, patch: sides in pixels of a picture and of what one position of it shows.
        length: positions a row. extra: positions a picture takes beside its patches.
        resize: how the model was shown pictures, as `config.DataConfig` has it.
        crop: see `config.DataConfig`.
    """
    return resolve(
        {
            "seed": 0,
            "steps": 1,
            "batch": 8,
            "accumulate": 1,
            "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
            "data": DATA | {
                "length": length, "image": image, "patch": patch, "extra": extra, "resize": resize,
                "crop": crop,
            },
            "family": family,
            "model": values.to_dict(model),
            "start": {},
            "optim": {
                "kind": "adamw", "peak": 1e-5, "warmup": 1, "decay": "cosine", "floor": 0.1,
                "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0, "ema": 0.0,
            },
            "sample": {
                "solver": "euler", "steps": 50, "shift": 1.0, "guidance": 1.0,
                "guidance_start": 0.0, "guidance_stop": 1.0, "guidance_least": 1.0,
                "text_guidance": 1.0, "image_guidance": 0.0, "contrast": 0.0, "text": 64,
                "words": CHOICE, "codes": CHOICE | {"temperature": 1.0},
            },
            "evals": {"documents": 256, "drawings": 256},
            "log_every": 1,
            "save_every": 1,
        },
        families,
    )  # fmt: skip
