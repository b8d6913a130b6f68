"""Compiled programs that are kept between processes, so that only a first run pays for them."""

import hashlib
import importlib.util
import os
import platform
from pathlib import Path

import jax

SIZE = 4 * 2**30  # bytes kept, at most; what was not used for longest goes first
LEAST = 0.2  # seconds that a program took to compile, or it is not kept


def directory() -> Path:
    """Where they are kept by default: below the user's cache directory, by kind of processor.

    Programs for a CPU hold its instructions; homes are shared by machines that differ in them.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    known = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # no Linux
        pass
    return Path(home) / "mmjax" / "xla" / hashlib.sha256(known.encode()).hexdigest()[:12]


def keep_programs() -> None:
    """Turns JAX's persistent compilation cache on, unless its own settings say otherwise.

    JAX_COMPILATION_CACHE_DIR names another place ("" none), and JAX_ENABLE_COMPILATION_CACHE=false
    turns it off. Where nothing can be written, nothing is kept.
    """
    place, on = (
        getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    )
    if place or not on or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        place = directory()
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home at all, or one that is read only
        return
    if not os.access(place, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)
    if importlib.util.find_spec("filelock"):  # which JAX needs to count what it keeps
        jax.config.update("jax_compilation_cache_max_size", SIZE)
