"""mmjax: train, sample, evaluate and compare mixed-modal (text + image) foundation models in JAX.

The flow, in the order of the modules:
    config      an experiment file becomes frozen dataclasses
    mesh        devices become a mesh, and rules lay arrays out on it
    data        documents become packed rows, rows become batches
    batch       the one structure every family reads, and its masks
    models      a family is `init` and `loss`
    step        one train step for all of them
    checkpoint  state, data position and config, checked bit for bit
    sample      prompts become pictures and text
    evals       numbers with intervals, and sheets to look at
"""

import importlib

__version__ = "0.1.0"  # read by setup.cfg too

# Imported on first use: the command line looks at its arguments before it pays for jax.
_PUBLIC = {
    "EOS": "mmjax.batch",
    "IMAGE": "mmjax.sample.request",
    "SEP": "mmjax.batch",
    "TEXT": "mmjax.sample.request",
    "Image": "mmjax.batch",
    "Text": "mmjax.batch",
    "load": "mmjax.trained",
}
__all__ = ["EOS", "IMAGE", "SEP", "TEXT", "Image", "Text", "load"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
