"""The families. A family is a module with a `Config` and `build(config, vocabulary, rules)`."""

from mmjax.models import transfusion
from mmjax.models.family import Model, Params

MODELS = {"transfusion": transfusion}

__all__ = ["MODELS", "Model", "Params"]
