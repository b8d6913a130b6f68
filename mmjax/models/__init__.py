"""The families. A family is a module with a `Config` and `build(config, vocabulary, rules)`."""

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
from mmjax.models.family import Model, Params

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

__all__ = ["MODELS", "Model", "Params"]
