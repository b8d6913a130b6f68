"""What keeps Chameleon stable: short runs at a high learning rate with parts of the kit left out.

`--config=experiments/chameleon_stability.py:7b,-qk_norm` leaves QK-norm out of the 7B's kit (norms
before the branches, dropout 0.1, QK-norm, z-loss), `34b,+dropout` adds dropout to the 34B's (norms
behind the branches, QK-norm, z-loss). `python benchmarks/stability.py` runs them all.

Run:  as experiments/chameleon_scenes.py, then
      mmjax train --config=experiments/chameleon_stability.py:7b,-qk_norm --workdir=out/stability/x
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load
from mmjax.error import UserError

KITS = {"7b": ("pre", 0.1), "34b": ("post", 0.0)}


def get_config(kit: str = "7b") -> ConfigDict:
    """The small Chameleon, smaller, under AdamW at a hundred times the paper's rate."""
    name, *changes = kit.split(",")
    if name not in KITS:
        raise UserError(f"{name!r} is no kit: {', '.join(KITS)}")
    c = load(str(Path(__file__).parent / "chameleon_scenes.py"))
    c.steps = 300
    c.save_every = 300
    c.log_every = 5
    c.data.length = 256
    c.data.images = 4
    d = c.model.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp, d.unroll = 128, 4, 4, 4, 344, 4
    d.norm, d.dropout = KITS[name]
    for change in changes:
        present = change[0] == "+"
        if change[1:] == "qk_norm":
            d.qk_norm = present
        elif change[1:] == "z_loss":
            c.model.z_weight = 1e-5 if present else 0.0
        elif change[1:] == "dropout":
            d.dropout = 0.1 if present else 0.0
        else:
            raise UserError(f"{change!r} is no change: -qk_norm, -z_loss, -dropout, +dropout")
    o = c.optim
    o.kind, o.peak, o.warmup, o.decay, o.ema = "adamw", 1e-2, 20, "constant", 0.0
    o.eps, o.weight_decay, o.clip = 1e-5, 0.1, 1.0
    return c
