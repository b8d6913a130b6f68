"""Transfusion 0.16B, of the paper's Table 2. Run as experiments/transfusion_7b.py."""

from pathlib import Path

from ml_collections import ConfigDict

from mmjax.config import load


def get_config() -> ConfigDict:
    """The 7B with another decoder."""
    c = load(str(Path(__file__).parent / "transfusion_7b.py"))
    d = c.model.decoder
    d.width, d.depth, d.heads, d.kv_heads, d.mlp = 768, 16, 12, 12, 2048
    return c
