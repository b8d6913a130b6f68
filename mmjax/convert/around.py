"""The experiment that stands around imported weights: what sampling and evaluation read of one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmjax import values
from mmjax.config import Experiment, resolve
from mmjax.convert import hub

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
# How pictures come to size -> Pillow's number of it, and whether the middle alone is kept.
RESAMPLE = {
    "nearest": (0, True), "pil_lanczos": (1, True), "pil_bilinear_aa": (2, True),
    "pil_bicubic_aa": (3, True), "pil_bicubic_stretch": (3, False), "pil_box": (4, True),
    "pil_bilinear_stretch": (2, False),
}  # fmt: skip
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
        resize: how the model was shown pictures, by a name of `data.resize`.
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


def standardised(c: Any, path: Path) -> Any:
    """A configuration with the mean and deviation of pixels that a directory of theirs says.

    Raises:
        UserError: if its file is damaged.
    """
    said = processor(path)
    if not hasattr(c, "mean"):
        return c
    if said.get("do_normalize") is False:  # bytes over 255, as they are
        return replace(c, mean=(0.0,) * 3, std=(1.0,) * 3)
    if said.get("image_mean") and said.get("image_std"):
        return replace(c, mean=tuple(said["image_mean"]), std=tuple(said["image_std"]))
    return c


def processor(path: Path) -> dict:
    """What a directory of theirs says of pictures; empty if nothing.

    Raises:
        UserError: if its file is damaged.
    """
    for name in (hub.PREPROCESSOR, hub.PROCESSOR):
        if (path / name).is_file():
            said = hub.read_json(path / name)
            return said.get("image_processor") or said
    return {}


def resized(path: Path) -> dict[str, str]:
    """`resize` as a directory of theirs says it; empty where it says nothing that is known."""
    said = processor(path)
    names: dict[tuple, str] = {how: name for name, how in RESAMPLE.items()}
    how = said.get("resample"), bool(said.get("do_center_crop"))
    known = "pil_bicubic_pad" if said.get("do_pad") and how[0] == 3 else names.get(how)
    return {} if known is None or said.get("do_resize") is False else {"resize": known}


def preprocessor(e: Experiment) -> dict:
    """Their preprocessor_config.json of a CLIP or LLaVA; empty where they have no such resizing."""
    c, how = e.model, RESAMPLE.get(e.data.resize)
    if e.family not in ("clip", "llava") or how is None:
        return {}
    resample, cut = how
    whole = {"height": c.image, "width": c.image}
    return {
        "image_processor_type": "CLIPImageProcessor" if cut else "SiglipImageProcessor",
        "do_convert_rgb": True, "do_resize": True, "resample": resample,
        "size": {"shortest_edge": c.image} if cut else whole,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(c.mean), "image_std": list(c.std),
    } | ({"do_center_crop": True, "crop_size": whole} if cut else {})  # fmt: skip
