"""Hygiene for every test: 8 virtual devices, no silent promotion, one compilation cache."""

import os
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
CACHE = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


@pytest.fixture
def update_golden(request) -> bool:
    return request.config.getoption("--update-golden")


@pytest.fixture(scope="session")
def openmoji(tmp_path_factory) -> Path:
    """The real data set with its tokenizer, built once for all tests (kept between runs)."""
    from mmjax.data.build import build

    path = ROOT / ".cache" / "tests" / "openmoji"
    build("openmoji", path)
    return path
