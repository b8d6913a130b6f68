"""Transfusion 0.76B, of the paper's Table 2. Run as experiments/transfusion_7b.py."""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The 7B with another decoder."""
    c = load(str(Path(__file__).parent / "transfusion_7b.py"))
    d = c.model.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp = 1536, 24, 24, 24, 4096
    return c
