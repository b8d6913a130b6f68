"""Writes what the image processors of `transformers`, those on Pillow, make of seeded pictures.

    python tests/convert/make_pixels.py            writes tests/golden/hf_pixels.json
    python tests/convert/make_pixels.py --compare  says how far those on torchvision are from them

For every case and size: a digest of the bytes (before they are rescaled), and some of the numbers
that a model is given.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import PIL.Image

PLACE = Path(__file__).parent.parent / "golden" / "hf_pixels.json"
SIZES = ((427, 640), (500, 333), (7, 1), (37, 91), (336, 336), (1, 9))  # height, width
NUMBERS = 24
OFF = {"do_rescale": False, "do_normalize": False}
# name -> (model_type, side of its pictures, preprocessor_config.json).
CASES: dict[str, tuple[str, int, dict]] = {
    "clip": ("clip", 224, {"image_processor_type": "CLIPImageProcessor"}),
    "clip_old": ("clip", 56, {
        "feature_extractor_type": "CLIPFeatureExtractor", "size": 56, "crop_size": 56,
        "do_resize": True, "do_center_crop": True, "do_normalize": True, "resample": 3,
        "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27],
    }),
    "clip_256": ("clip", 224, {"size": {"shortest_edge": 256}, "crop_size": 224}),
    "clip_narrow": ("clip", 57, {"size": {"shortest_edge": 40}, "crop_size": [57, 57]}),
    "clip_sides": ("clip", 44, {
        "size": {"height": 51, "width": 44}, "crop_size": {"height": 44, "width": 44},
    }),
    "clip_crop_alone": ("clip", 33, {"do_resize": False, "crop_size": 33}),
    "clip_plain": ("clip", 30, {"size": 30, "crop_size": 30, "do_normalize": False}),
    "clip_raw": ("clip", 30, {"size": 30, "crop_size": 30, "do_rescale": False}),
    "clip_factor": ("clip", 30, {"size": 30, "crop_size": 30, "rescale_factor": 0.0078}),
    **{
        f"clip_resample_{n}": ("clip", 32, {"size": 32, "crop_size": 32, "resample": n})
        for n in range(6)
    },
    "siglip": ("siglip", 224, {"image_processor_type": "SiglipImageProcessor"}),
    "siglip_bilinear": ("siglip", 48, {"size": {"height": 48, "width": 48}, "resample": 2}),
    "siglip_crop": ("siglip", 48, {"size": 50, "crop_size": 48, "do_center_crop": True}),
    "vit": ("clip", 224, {"image_processor_type": "ViTImageProcessor"}),
    "llava": ("llava", 336, {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336}, "do_convert_rgb": True,
    }),
    "llava_pad": ("llava", 336, {
        "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}, "do_pad": True,
    }),
    "llava_pad_colour": ("llava", 40, {
        "image_processor_type": "LlavaImageProcessorFast", "do_pad": True, "do_center_crop": False,
        "size": {"height": 40, "width": 40}, "image_mean": [0.1, 0.999, 0.5],
        "image_std": [0.3, 0.2, 0.1],
    }),
    "idefics": ("idefics", 224, {"image_size": 224, "image_num_channels": 3}),
    "idefics_sides": ("idefics", 30, {
        "image_processor_type": "IdeficsImageProcessor", "image_size": 30,
    }),
    "chameleon": ("chameleon", 512, {"image_processor_type": "ChameleonImageProcessor"}),
    "chameleon_small": ("chameleon", 32, {"size": {"shortest_edge": 32}, "crop_size": 32}),
}  # fmt: skip
KIND = {
    "clip": "CLIP", "siglip": "Siglip", "llava": "Llava", "idefics": "Idefics",
    "chameleon": "Chameleon",
}  # fmt: skip


def picture(high: int, wide: int) -> np.ndarray:
    """uint8 [h, w, 3]: noise over a slope, the same each time."""
    rng = np.random.default_rng([high, wide])
    slope = np.linspace(0, 180, wide)[None, :, None] + np.zeros((high, 1, 3))
    return (slope + rng.integers(0, 76, (high, wide, 3))).astype(np.uint8)


def processor(case: str, end: str = "Pil"):
    """Theirs; end: "Pil", or "" for torchvision's."""
    import transformers  # of the `hf` extra: the rest is for tests without it too

    kind, _, said = CASES[case]
    old = said.get("feature_extractor_type", "").replace("FeatureExtractor", "ImageProcessor")
    name = said.get("image_processor_type", old or f"{KIND[kind]}ImageProcessor")
    return getattr(transformers, name.removesuffix("Fast") + end)(**said)


def numbers(theirs, pixels: np.ndarray, **more) -> np.ndarray:
    """[h, w, 3], what one of theirs makes of a picture."""
    found = theirs(images=PIL.Image.fromarray(pixels), return_tensors="np", **more)
    found = found["pixel_values"] if hasattr(found, "keys") else found
    return np.moveaxis(np.asarray(found[0]), 0, -1)


def places(shape: tuple[int, ...]) -> np.ndarray:
    """Where the numbers are taken that are kept."""
    return np.random.default_rng(0).integers(0, int(np.prod(shape)), NUMBERS)


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels, np.uint8).tobytes()).hexdigest()[:32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compare", action="store_true")
    compare, made = parser.parse_args().compare, {}
    for case in CASES:
        theirs = processor(case)
        for size in SIZES:
            pixels = picture(*size)
            plain = numbers(theirs, pixels, **OFF)
            assert np.array_equal(plain, plain.astype(np.uint8))
            whole = numbers(theirs, pixels)
            told = [float(x) for x in whole.ravel()[places(whole.shape)]]
            made[f"{case} {size[0]}x{size[1]}"] = [
                digest(plain),
                *(float(f"{x:.7g}") for x in told),
            ]
            if compare:
                other = numbers(processor(case, ""), pixels, **OFF)
                off = np.abs(other.astype(int) - plain)
                print(f"{case} {size}: mean {off.mean():.4f}, most {off.max()} of 255")
    if not compare:
        lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in made.items()]
        PLACE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(PLACE, len(made), PLACE.stat().st_size)


if __name__ == "__main__":
    main()
