"""CPU, eight virtual devices, one compilation cache for the whole suite; which tests are slow."""

import fnmatch
import gc
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
_cache = Path(tempfile.gettempdir()) / "jaxgen_test_cache"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache))
# Small programs too: each file, worker and child process asks for much the same ones.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
_flag = "--xla_force_host_platform_device_count"
if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}=8".strip()


SLOW = [
    # Brackets are a node's own.
    line.replace("[", "[[]")
    for line in (Path(__file__).parent / "slow.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def pytest_collection_modifyitems(items):
    """Mark what slow.txt names. A line that names nothing in a file that was collected is stale."""
    found = set()
    for item in items:
        node = item.nodeid.removeprefix("tests/")
        names = [line for line in SLOW if fnmatch.fnmatchcase(node, line)]
        found.update(names)
        if names:
            item.add_marker(pytest.mark.slow)
    whole = {i.nodeid.removeprefix("tests/").split("::")[0] for i in items}
    stale = [n for n in SLOW if n.split("::")[0] in whole and n not in found]
    if stale and len(whole) > 60:
        raise pytest.UsageError(f"tests/slow.txt names no test: {stale}")


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_go_with_their_file():
    """A small program was 17 memory maps when counted, and Linux gives a process 65,530 of them."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()
