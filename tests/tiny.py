"""The smallest experiment that is still the real thing, for tests."""

from pathlib import Path

from mmjax import config, run

ROOT = Path(__file__).parent.parent


def tiny_config(data: Path | str = "unused", **changes):
    """quickstart.py shrunk; `changes` are dotted names with `__` for the dot."""
    c = config.load(str(ROOT / "experiments" / "quickstart.py"))
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


def tiny(data: Path | str = "unused", **changes):
    """The same, resolved."""
    return config.resolve(tiny_config(data, **changes), run.families())
