"""Two tiny runs that read pictures and draw them: one was trained to reconstruct, one was not."""

from dataclasses import replace

import jax
from tiny import tiny, tiny_chameleon_config

import mmjax
from mmjax import config, run
from mmjax.data import build
from mmjax.evals import alignment, heldout
from mmjax.train import train

CASES = {"transfusion": "registers", "chameleon": "lowres"}  # how they read pictures
ONE = jax.devices()[:1]


def trained(home):
    """Family -> model: a Transfusion that learnt with registers; a Chameleon."""
    data = home / "scenes"
    build.build("scenes", data, options={"count": 400, "size": 8, "level": 1})
    more = {"steps": 2, "data__length": 160, "data__images": 4, "evals__documents": 24}
    source = {"path": str(data), "weight": 1.0, "template": "reconstruct", "balance": False}
    both = {"scenes": source, "captions": source | {"template": "caption"}}
    reads = {"data__sources": both, "data__bottleneck": "registers"}
    train(tiny(data, **more, **reads), home / "transfusion", ONE)
    c = config.resolve(tiny_chameleon_config(data, **more), run.families())
    train(c, home / "chameleon", ONE)
    return {name: mmjax.load(home / name, devices=ONE) for name in CASES}


def pairs(model, seed=0):
    """Held-out pairs whose pictures differ."""
    split = next(iter(heldout.splits(model)))
    return alignment.distinct(heldout.draw(model, split, 24, seed))


def blinded(model):
    """The model with attention's output at zero: no position sees another."""
    decoder = model.params["decoder"]
    blocks = decoder["blocks"]
    dead = jax.tree.map(lambda x: 0 * x, blocks["attention"]["o"])
    attention = blocks["attention"] | {"o": dead}
    params = model.params | {"decoder": decoder | {"blocks": blocks | {"attention": attention}}}
    return replace(model, params=params, drawn={})
