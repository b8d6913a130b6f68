"""Hygiene for every test: 8 virtual devices, no silent promotion, one compilation cache."""

import fcntl
import gc
import os
from pathlib import Path

# Most of the tests' time is XLA's: unoptimised programs compile in 0.6 of it, and without its
# newer way to write fused loops in 0.6 of that.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)

import jax
import pytest

ROOT = Path(__file__).parent.parent
MAPS = 15_000  # so many a process may have when a module ends
CACHE = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs before their memory maps reach Linux's limit of 65,530 a process.

    XLA does not raise an error there but aborts, and hundreds of modules would bring it about.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def update_golden(request) -> bool:
    return request.config.getoption("--update-golden")


@pytest.fixture(scope="session")
def openmoji(tmp_path_factory) -> Path:
    """The real data set with its tokenizer, built once for all tests (kept between runs)."""
    from mmjax.data.build import build

    path = ROOT / ".cache" / "tests" / "openmoji"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:  # two processes of tests may want it
        fcntl.flock(lock, fcntl.LOCK_EX)
        build("openmoji", path)
    return path


@pytest.fixture(scope="session")
def reconstructing(tmp_path_factory):
    """Family -> a tiny model that reads pictures and draws; see `reconstructing.trained`."""
    from reconstructing import trained

    return trained(tmp_path_factory.mktemp("reconstructing"))
