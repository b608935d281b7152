"""Set before JAX starts: CPU, eight virtual devices, one compilation cache for the whole suite."""

import gc
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
_cache = Path(tempfile.gettempdir()) / "jaxgen_test_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
_flag = "--xla_force_host_platform_device_count"
if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}=8".strip()


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_go_with_their_file():
    """A program is some twenty memory maps, and Linux gives a process 65,530 of them."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
