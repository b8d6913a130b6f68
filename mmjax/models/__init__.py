"""The families. A family is a module with a `Config` and `build(config, vocabulary, rules)`.

`abilities(config)` says what else can be done with a trained one; see `models.family.Abilities`.
"""

import importlib
from types import ModuleType

from mmjax.error import UserError, near
from mmjax.models import (
    chameleon,
    clip,
    codec,
    dial,
    flamingo,
    language,
    llava,
    oneflow,
    transfusion,
)
from mmjax.models.family import Abilities, Model, Params

MODELS = {
    "transfusion": transfusion,
    "chameleon": chameleon,
    "oneflow": oneflow,
    "dial": dial,
    "codec": codec,
    "clip": clip,
    "language": language,
    "llava": llava,
    "flamingo": flamingo,
}

__all__ = ["MODELS", "Abilities", "Model", "Params", "abilities_of", "family_of"]


def family_of(name: str) -> ModuleType:
    """The module of a family: one of MODELS, or any other by its dotted path, which is imported.

    Raises:
        UserError: if there is none, or it lacks `Config` or `build`.
    """
    if name in MODELS:
        return MODELS[name]
    hint = near(str(name), MODELS)
    have = f"is unknown{hint}; have: {', '.join(MODELS)}, or the path of a module of yours, such "
    have += "as 'pkg.module'"
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"config.family={name!r} {have}")
    if "." not in name:
        raise UserError(f"config.family={name!r} {have}")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise  # the module is there; something that it imports is not
        raise UserError(
            f"config.family={name!r} is no module that Python finds ({error}); run from the "
            f"directory it lies in, or install it"
        ) from error
    if lacks := [part for part in ("Config", "build") if not hasattr(module, part)]:
        raise UserError(
            f"config.family={name!r} has no {lacks[0]}; a family is a module with a Config and "
            f"build(config, vocabulary, rules)"
        )
    return module


def abilities_of(name: str, config) -> Abilities:
    """What a family's trained model can do, given its configuration."""
    told = getattr(family_of(name), "abilities", None)
    return Abilities() if told is None else told(config)
