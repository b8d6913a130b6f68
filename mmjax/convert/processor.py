"""How a directory of theirs prepares pictures: its preprocessor_config.json, read in full.

What is there is done as `transformers` does it (5.24, Pillow's processors), or refused by its name.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmjax.config import Experiment
from mmjax.convert import hub
from mmjax.data.resize import MEAN_COLOUR
from mmjax.data.steps import KERNELS, Steps, parse
from mmjax.error import UserError

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
PLAIN = {
    "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": HALF, "image_std": HALF, "do_center_crop": False,
    "do_pad": False, "default_to_square": False,
}  # fmt: skip
CROPPED = PLAIN | {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "do_center_crop": True}
# Class of theirs -> what it does where its file is silent; by itself in the size of the model.
CLASSES: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": CROPPED,
    "LlavaImageProcessor": CROPPED,
    "SiglipImageProcessor": PLAIN,
    "ViTImageProcessor": PLAIN | {"resample": 2, "default_to_square": True},
    "IdeficsImageProcessor": CROPPED | {"do_center_crop": False, "default_to_square": True},
    "ChameleonImageProcessor": CROPPED | {
        "resample": 1, "rescale_factor": 0.0078, "image_mean": (1.0,) * 3, "image_std": (1.0,) * 3,
    },
}  # fmt: skip
CLASS_OF = {
    "clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "llava": "LlavaImageProcessor",
    "idefics": "IdeficsImageProcessor", "chameleon": "ChameleonImageProcessor",
}  # fmt: skip
# Of no consequence for pixels: names, forms of arrays, and what counts tokens.
IGNORED = (
    "image_processor_type", "feature_extractor_type", "processor_class", "auto_map",
    "_valid_processor_keys", "model_input_names", "return_tensors", "device", "disable_grouping",
    "image_seq_length", "do_convert_rgb", "data_format", "input_data_format",
    "transformers_version", "patch_size", "num_additional_image_tokens", "image_token",
    "vision_feature_select_strategy",
)  # fmt: skip
SIZES = ("size", "crop_size", "image_size")
RESAMPLE = tuple(sorted(KERNELS, key=lambda name: int(KERNELS[name])))  # their number -> ours


@dataclass(frozen=True)
class Pixels:
    """How bytes of pictures become what a model reads.

    Attributes:
        resize: as `data.resize`. mean, std: of bytes over 255, a channel.
    """

    resize: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read(path: Path, model_type: str, side: int) -> Pixels | None:
    """What a directory of theirs says of pictures; None if nothing.

    side: of the pictures its model reads, which stands where its file names no size.

    Raises:
        UserError: if its file is damaged, or asks for what is not done here.
    """
    # The newer file counts, as theirs loads them.
    for name in (hub.PROCESSOR, hub.PREPROCESSOR):
        if (path / name).is_file():
            said: Any = hub.read_json(path / name)
            said = said.get("image_processor") if name == hub.PROCESSOR else said
            if isinstance(said, dict):
                return pixels(said, model_type, side, str(path / name))
            if said is not None:
                raise UserError(f"{path / name}: image_processor={said!r} is no group of fields")
    return None


def pixels(said: Mapping, model_type: str, side: int, where: str) -> Pixels:
    """A processor's fields -> what is done; where: their file, for messages. See `read`."""

    def refuse(name: str, why: str):
        raise UserError(f"{where} has {name}={reprlib.repr(said.get(name))}, {why}")

    kind = class_of(said, model_type, where)
    known = {k: v for k, v in said.items() if v is not None and k not in IGNORED}
    if channels := known.pop("image_num_channels", 3) != 3:
        refuse("image_num_channels", f"but pictures have 3 channels here, not {channels}")
    if unknown := [k for k, v in known.items() if k not in (*PLAIN, *SIZES) and v is not False]:
        refuse(unknown[0], f"which is not done here; have: {', '.join((*PLAIN, *SIZES))}")
    if "image_size" in known and kind != "IdeficsImageProcessor":
        refuse("image_size", f"which a {kind} does not read; give size")
    for name in ("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_pad",
                 "default_to_square"):  # fmt: skip
        if not isinstance(known.get(name, False), bool):
            refuse(name, "which must be true or false")
    c = CLASSES[kind] | known
    mean, std = (triple(c[n], lambda why, n=n: refuse(n, why)) for n in ("image_mean", "image_std"))
    if min(std) <= 0:
        refuse("image_std", "by which is divided; it must be above 0")
    number = c["rescale_factor"]
    if not is_number(number) or not number > 0:
        refuse("rescale_factor", "which must be a number above 0")
    resize = resized(kind, c, mean, side, refuse)
    factor = 255 * number if c["do_rescale"] else 255.0
    if not c["do_normalize"]:
        mean, std = (0.0,) * 3, (1.0,) * 3
    if abs(factor - 1) > 1e-9:  # what they multiply by before, here divides mean and deviation
        mean, std = (tuple(x / factor for x in each) for each in (mean, std))
    if not 1e-30 < min(std) <= max(map(abs, (*mean, *std))) < 1e30:
        refuse("rescale_factor", "beyond which no number is left of mean and deviation")
    return Pixels(resize, mean, std)


def class_of(said: Mapping, model_type: str, where: str) -> str:
    """The class of theirs that a processor's fields are of.

    Raises:
        UserError: for one that is not known here.
    """
    name = "image_processor_type"
    name = name if said.get(name) is not None else "feature_extractor_type"
    told = CLASS_OF[model_type] if said.get(name) is None else said[name]
    kind = str(told).replace("FeatureExtractor", "ImageProcessor")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if kind not in CLASSES:
        raise UserError(
            f"{where} has {name}={reprlib.repr(told)}, which is not known here; have: "
            f"{', '.join(CLASSES)}"
        )
    return kind


def is_number(x) -> bool:
    """Whether something from JSON is a number that f32 holds."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e30


def triple(x, refuse) -> tuple[float, ...]:
    """A number a channel; one number stands for all."""
    found = x if isinstance(x, list | tuple) else [x] * 3
    if len(found) != 3 or not all(map(is_number, found)):
        refuse("which must be three finite numbers, or one for all channels")
    return tuple(float(value) for value in found)


def resized(kind: str, c: Mapping, mean: tuple[float, ...], side: int, refuse) -> str:
    """How pictures come to size, as `data.resize` has it."""
    square, steps = (side, side), Steps()
    if c["do_pad"]:
        if kind != "LlavaImageProcessor":
            refuse("do_pad", f"which no {kind} does to a picture; a LlavaImageProcessor does")
        colour = tuple(int(x * 255) for x in mean)
        if not all(0 <= x <= 255 for x in colour):
            refuse("image_mean", "of which do_pad=true makes a colour; it must be within 0 and 1")
        steps = replace(steps, pad=colour)
    if c["do_resize"]:
        if type(c["resample"]) is not int or not 0 <= c["resample"] < len(RESAMPLE):
            refuse("resample", f"which must be a number from 0 to {len(RESAMPLE) - 1}")
        name = "image_size" if "image_size" in c else "size"
        silent = {"shortest_edge": side} if c["do_center_crop"] else list(square)
        where = dimensions(c.get(name, silent), c["default_to_square"], name, refuse)
        steps = replace(steps, kernel=RESAMPLE[c["resample"]], **where)
    if c["do_center_crop"]:
        crop = dimensions(c.get("crop_size", side), True, "crop_size", refuse)
        if "size" not in crop:
            refuse("crop_size", "which must be a side, or height and width")
        steps = replace(steps, crop=crop["size"])
    if steps.made != square:
        name = next((n for n in ("crop_size", "image_size", "size") if n in c), "do_resize")
        size = " x ".join(map(str, steps.made)) or "its own"
        refuse(name, f"by which a picture's size is {size}; the model reads {side} x {side}")
    if steps == Steps(size=square, kernel=steps.kernel):  # whatever the size
        whole = {"bicubic": "pil_bicubic_stretch", "bilinear": "pil_bilinear_stretch"}
        return whole.get(steps.kernel, str(steps))
    return str(steps)


def dimensions(x, square: bool, name: str, refuse) -> dict[str, Any]:
    """A size of theirs as the fields of `Steps`. square: whether one number is of both sides."""
    if isinstance(x, dict):
        x = {k: v for k, v in x.items() if v is not None}
    numbers = list(x.values()) if isinstance(x, dict) else x if isinstance(x, list) else [x]
    if not all(type(n) is int and 1 <= n <= 1 << 15 for n in numbers):
        refuse(name, f"which must be whole numbers between 1 and {1 << 15}")
    if isinstance(x, dict) and set(x) == {"height", "width"}:
        return {"size": (x["height"], x["width"])}
    if isinstance(x, dict) and set(x) == {"shortest_edge"}:
        return {"shortest": x["shortest_edge"]}
    if isinstance(x, list) and len(x) == 2:
        return {"size": tuple(x)}
    if isinstance(x, int):
        return {"size": (x, x)} if square else {"shortest": x}
    return refuse(name, "which is not done here; give shortest_edge, or height and width")


def standardised(c: Any, seen: Pixels | None) -> Any:
    """A configuration with the mean and deviation that a processor says."""
    if seen is None:
        return c
    if hasattr(c, "mean"):
        return replace(c, mean=seen.mean, std=seen.std)
    return replace(c, codec=replace(c.codec, mean=seen.mean, std=seen.std))


def steps_of(how: str) -> tuple[Steps, bool] | None:
    """Steps that a mode of `data.resize` stands for, and whether they do just the same; or None.

    Where a mode keeps a box that is no whole number of pixels, theirs has the nearest.
    """
    name, _, end = how.removeprefix("pil_").partition("_")
    if "=" in how:
        steps = parse(how)
        return replace(steps, rounded=False), not steps.rounded
    if name not in KERNELS or end not in ("", "aa", "pad", "stretch"):
        return None
    steps = Steps(kernel=name, pad=MEAN_COLOUR if end == "pad" else ())
    return None if how == "pil_lanczos_pad" else (steps, end in ("pad", "stretch"))


def told(e: Experiment) -> tuple[dict, str]:
    """A preprocessor_config.json of an experiment's pictures, and what to say about it.

    Empty for a model without pictures, and where theirs has no such way to bring them to size.
    """
    c, how = e.model, e.data.resize
    codec = getattr(c, "codec", c)
    if not hasattr(codec, "mean"):
        return {}, ""
    side = {"height": c.image, "width": c.image}
    found = steps_of(how)
    if found is None:
        return {}, f"data.resize={how!r} is not theirs: there is no {hub.PREPROCESSOR}"
    steps, same = found
    if steps.pad and steps.pad != tuple(int(255 * x) for x in codec.mean):
        return {}, f"data.resize={how!r} pads in a colour they do not: no {hub.PREPROCESSOR}"
    cut = not how.endswith("_stretch") and (bool(steps.crop) or "=" not in how)
    size: dict = {"shortest_edge": steps.shortest or c.image}
    if steps.size or not cut:
        size = dict(zip(("height", "width"), steps.size or (c.image, c.image), strict=True))
    kinds = {"flamingo": "IdeficsImageProcessor", "chameleon": "ChameleonImageProcessor"}
    kind = "CLIPImageProcessor" if cut else "SiglipImageProcessor"
    kind = "LlavaImageProcessor" if steps.pad else kinds.get(e.family, kind)
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True, "do_resize": bool(steps.shortest or steps.size or "=" not in how),
        "resample": int(KERNELS[steps.kernel]), "size": size,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(codec.mean), "image_std": list(codec.std),
        "do_center_crop": cut,
    } | ({"crop_size": side} if cut else {}) | ({"do_pad": True} if steps.pad else {}), (
        "" if same else
        f"data.resize={how!r} keeps a box that is no whole number of pixels, theirs one that is: "
        f"pictures that are no squares come out a little otherwise there"
    )  # fmt: skip
