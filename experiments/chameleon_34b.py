"""Chameleon 34B: grouped heads, norms behind the branches, no dropout, a larger batch (Table 1).

Width, depth and heads are not in the paper's table; they are those of Code Llama 34B.

Run:  as experiments/chameleon_7b.py
"""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load

HERE = Path(__file__).parent


def get_config() -> ConfigDict:
    """The 7B with what differs."""
    c = load(str(HERE / "chameleon_7b.py"))
    c.batch = 3072
    c.steps = round(9.2e12 / (c.batch * c.data.length))
    d = c.model.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp = 8192, 48, 64, 8, 22016
    d.norm, d.dropout = "post", 0.0
    return c
