"""The families. A family is a module with a `Config` and `build(config, vocabulary, rules)`."""

from mmjax.models import chameleon, codec, transfusion
from mmjax.models.family import Model, Params

MODELS = {"transfusion": transfusion, "chameleon": chameleon, "codec": codec}

__all__ = ["MODELS", "Model", "Params"]
