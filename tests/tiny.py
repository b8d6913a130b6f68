"""The smallest experiment that is still the real thing, for tests."""

from pathlib import Path

from mmjax import config, run

ROOT = Path(__file__).parent.parent


def tiny_config(data: Path | str = "unused", **changes):
    """base.py shrunk; `changes` are dotted names with `__` for the dot."""
    c = config.load(str(ROOT / "experiments" / "base.py"))
    c.data.sources.openmoji.path = str(data)
    small = {
        "batch": 8,
        "steps": 6,
        "log_every": 1,
        "save_every": 2,
        "data.length": 48,
        "data.images": 2,
        "data.window": 32,
        "model.image": 8,
        "data.image": 8,
        "model.decoder.width": 32,
        "model.decoder.depth": 2,
        "model.decoder.unroll": 1,
        "model.decoder.mlp": 64,
        "optim.warmup": 2,
        "evals.documents": 16,
        "evals.drawings": 16,
        "sample.steps": 3,
        "sample.text": 6,
    }
    for name, value in (small | {k.replace("__", "."): v for k, v in changes.items()}).items():
        group, _, field = name.rpartition(".")
        target = c
        for part in group.split(".") if group else []:
            target = target[part]
        target[field] = value
    return c


def tiny_codec(image: int = 8, **quantiser) -> dict:
    """A codec of two levels: pictures of 8 pixels become 16 codes of 12."""
    base = config.load(str(ROOT / "experiments" / "codec_openmoji.py")).model.codec.to_dict()
    small = {"image": image, "channels": 8, "multipliers": (1, 2), "blocks": 1, "latent": 8}
    how = base["quantiser"] | {"codes": 12, "width": 4} | quantiser
    return base | small | {"quantiser": how}


def tiny_codec_config(data: Path | str = "unused", **changes):
    """codec_openmoji.py shrunk: three steps on rows of four pictures of 8 pixels."""
    c = tiny_config(data)
    big = config.load(str(ROOT / "experiments" / "codec_openmoji.py"))
    c.family, c.model, c.optim = "codec", big.model.to_dict() | {"codec": tiny_codec()}, big.optim
    c.steps, c.data.patch, c.data.images, c.data.caption_dropout = 3, 8, 4, 1.0
    return changed(c, changes)


def changed(c, changes: dict):
    """A configuration with dotted names, `__` for the dot, put to other values."""
    for name, value in changes.items():
        group, _, field = name.replace("__", ".").rpartition(".")
        target = c
        for part in group.split(".") if group else []:
            target = target[part]
        target[field] = value
    return c


def tiny_chameleon_config(data: Path | str = "unused", **changes):
    """chameleon_scenes.py shrunk, encoding its pictures on the way."""
    c = tiny_config(data)
    big = config.load(str(ROOT / "experiments" / "chameleon_scenes.py"))
    c.family, c.data.patch, c.data.shared_position = "chameleon", 2, False
    small = c.model.decoder.to_dict()
    c.model = big.model.to_dict() | {"decoder": small, "codec": tiny_codec()}
    return changed(c, changes)


def tiny(data: Path | str = "unused", **changes):
    """The same, resolved."""
    return config.resolve(tiny_config(data, **changes), run.families())


def tiny_oneflow_config(data: Path | str = "unused", **changes):
    """oneflow_scenes.py shrunk."""
    c = tiny_config(data)
    big = config.load(str(ROOT / "experiments" / "oneflow_scenes.py"))
    small = {name: c.model[name] for name in ("image", "patch")}
    decoder = c.model.decoder.to_dict()
    c.family, c.model = "oneflow", big.model.to_dict() | small | {"decoder": decoder}
    return changed(c, changes)


def tiny_dial_config(data: Path | str = "unused", base: str = "transfusion", **changes):
    """dial_scenes.py shrunk, over one base or the other."""
    big = config.load(str(ROOT / "experiments" / "dial_scenes.py"))
    c = (tiny_config if base == "transfusion" else tiny_chameleon_config)(data)
    own = c.model.to_dict() | ({"context": "clean"} if base == "transfusion" else {})
    c.family, c.model = "dial", big.model.to_dict() | {"transfusion": None, base: own}
    return changed(c, changes)


def tiny_clip_config(data: Path | str = "unused", name: str = "clip", **changes):
    """clip_openmoji.py, or siglip_openmoji.py, shrunk: rows of two pairs of 8 pixels."""
    c = tiny_config(data)
    big = config.load(str(ROOT / "experiments" / f"{name}_openmoji.py"))
    c.family, c.model, c.data.patch, c.data.caption_dropout = "clip", big.model, 8, 0.0
    for tower in (c.model.vision, c.model.text):
        tower.encoder.update(width=32, depth=2, heads=4, mlp=48, unroll=1)
    c.model.vision.update(image=8, patch=4)
    c.model.text.length = 16
    c.model.embed = 32
    c.optim.update(kind="adamw", peak=3e-3)
    return changed(c, changes)


def tiny_llava_config(data: Path | str = "unused", **changes):
    """small_llava.py shrunk: pictures of 8 pixels in four patches, answers to questions."""
    c = tiny_config(data)
    big = config.load(str(ROOT / "experiments" / "small_llava.py"))
    decoder = c.model.decoder.to_dict()
    eyes = tiny_clip_config().model.vision.to_dict()
    c.family, c.model = "llava", big.model.to_dict() | {"decoder": decoder, "vision": eyes}
    c.data.sources.openmoji.template = "sep"
    c.data.patch, c.data.length, c.data.shared_position = 4, 96, False
    return changed(c, changes)


def tiny_flamingo_config(data: Path | str = "unused", **changes):
    """small_flamingo.py shrunk: pictures of 8 pixels at one position, answers to questions."""
    c = tiny_config(data)
    big = config.load(str(ROOT / "experiments" / "small_flamingo.py"))
    decoder = c.model.decoder.to_dict()
    eyes = tiny_clip_config().model.vision.to_dict()
    c.family, c.model = "flamingo", big.model.to_dict() | {"decoder": decoder, "vision": eyes}
    c.model.train = (*c.model.train, "vision")
    c.model.resampler.update(latents=3, depth=1, heads=2, head_dim=8, mlp=48)
    c.model.cross.update(heads=2, head_dim=8, mlp=40)
    c.data.sources.openmoji.template = "sep"
    c.data.patch, c.data.length, c.data.shared_position = 8, 96, False
    return changed(c, changes)
