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
for _flag, _value in {
    "--xla_force_host_platform_device_count": 8,
    # Eight devices take turns on a few cores: XLA would end the process where one is 40 s late.
    "--xla_cpu_collective_call_terminate_timeout_seconds": 600,
}.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()


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


# Many programs, each run for a moment: compiling them takes most of the time of these files, and
# unoptimised code computes the same numbers but for rounding. Not for long training or many samples
# (a loop over elements runs five times slower), nor for what is compiled for a TPU.
UNOPTIMISED = {
    "test_ar_llama.py",
    "test_ar_method.py",
    "test_ar_pixelcnn.py",
    "test_backbones_train.py",
    "test_ascan.py",
    "test_can.py",
    "test_dico.py",
    "test_dimr.py",
    "test_dis.py",
    "test_gsdm.py",
    "test_iwin.py",
    "test_cli.py",
    "test_configs.py",
    "test_diffit.py",
    "test_diffmoe.py",
    "test_diffusion_conditions.py",
    "test_diffusion_couplings.py",
    "test_diffusion_descriptions.py",
    "test_diffusion_jumps.py",
    "test_diffusion_nested.py",
    "test_diffusion_loss.py",
    "test_diffusion_solvers.py",
    "test_diffusion_umd.py",
    "test_discrete_core.py",
    "test_dit_moe.py",
    "test_every_run_option.py",
    "test_families.py",
    "test_flows.py",
    "test_gan_cli.py",
    "test_gan_method.py",
    "test_gan_parts.py",
    "test_grouped.py",
    "test_guidance_forms.py",
    "test_guidance_laws.py",
    "test_hosts.py",
    "test_lit.py",
    "test_lora.py",
    "test_meshes.py",
    "test_nn_autoencoder.py",
    "test_nn_conditions.py",
    "test_nn_laws.py",
    "test_nn_taps.py",
    "test_nn_unet.py",
    "test_nn_uvit.py",
    "test_other_runs.py",
    "test_own.py",
    "test_own_folder.py",
    "test_own_page.py",
    "test_page.py",
    "test_recipes_resume.py",
    "test_record.py",
    "test_redact.py",
    "test_site.py",
    "test_steer.py",
    "test_steer_config.py",
    "test_stylegan2.py",
    "test_tokenize.py",
    "test_train_mesh.py",
    "test_train_resume.py",
    "test_tread.py",
    "test_variants.py",
    "test_variational.py",
}


# A small program was 17 memory maps when counted, and Linux gives a process 65,530 of them.
MOST_MAPS = 20_000
_kind = {"quick": False}


@pytest.fixture(autouse=True, scope="module")
def _unoptimised(request):
    """For the processes that these files start too; no program of one kind is met in the other."""
    import jax

    quick = request.node.path.name in UNOPTIMISED
    if quick != _kind["quick"] or _maps() > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
    _kind["quick"] = quick
    jax.config.update("jax_disable_most_optimizations", quick)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(quick)))
        yield


def _maps() -> int:
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else MOST_MAPS + 1
