"""What is installed, which devices there are, and whether they compute: a self-test of seconds."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jaxgen import __version__
from jaxgen.ops.attention import attention
from jaxgen.run.model import load

REQUIRED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "chex", "numpy")
OPTIONAL = {
    "hub": "huggingface_hub",
    "parity": "torch",
    "plan": "libtpu",
    "test": "pytest",
    "wandb": "wandb",
}
"""Extras of jaxgen, and a package of each."""


def examine() -> dict[str, Any]:
    """Versions, devices and checks: {"versions", "extras", "devices", "checks", "ok", ...}.

    A check is {"name", "ok", "detail", "seconds"}; none of them raises.
    """
    checks = [_checked(name, check) for name, check in CHECKS.items()]
    return {
        "versions": {
            "jaxgen": __version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in REQUIRED},
        },
        "extras": {extra: _version(name) for extra, name in OPTIONAL.items()},
        "platform": platform.platform(),
        "devices": [f"{d.platform} {d.device_kind}" for d in jax.devices()],
        "checks": checks,
        "ok": all(check["ok"] for check in checks),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checked(name: str, check: Callable[[], str]) -> dict[str, Any]:
    begin = time.monotonic()
    try:
        ok, detail = True, check()
    except Exception as error:  # whatever is wrong with this machine is the answer
        ok, detail = False, f"{type(error).__name__}: {error}".splitlines()[0]
    seconds = round(time.monotonic() - begin, 1)
    return {"name": name, "ok": ok, "detail": detail, "seconds": seconds}


def _devices() -> str:
    """An accelerator that is there and not used is an error."""
    used = jax.default_backend()
    if used == "cpu" and shutil.which("nvidia-smi") and not importlib.util.find_spec("jax_plugins"):
        raise RuntimeError(
            'there is an NVIDIA GPU, but JAX has no CUDA: pip install "jaxgen[cuda]"'
        )
    return f"{jax.device_count()} x {jax.devices()[0].device_kind} ({used})"


def _products() -> str:
    """Matrix products are float32 products."""
    a, b = (np.random.default_rng(i).standard_normal((256, 256)) for i in (0, 1))
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest"))
    error = np.abs(np.asarray(product(jnp.float32(a), jnp.float32(b))) - a @ b).max()
    if not error < 1e-3:
        raise RuntimeError(f"a product of 256 x 256 is {error:.2g} off")
    return f"largest error {error:.1e}"


def _attention() -> str:
    """The kernel that is chosen here agrees with the formula, forward and backward."""
    q, k, v = (jax.random.normal(jax.random.key(i), (2, 2, 64, 32)) for i in range(3))

    def total(q: jax.Array, how: str) -> jax.Array:
        return (attention(q, k, v, scale=32**-0.5, implementation=how) ** 2).sum()

    found, expected = (
        jax.jit(jax.value_and_grad(total), static_argnums=1)(q, how)
        for how in ("auto", "reference")
    )
    error = max(
        float(jnp.abs(a - b).max() / jnp.abs(b).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )
    # Accelerators multiply in lower precision unless they are told otherwise.
    if not error < 2e-2:
        raise RuntimeError(f"attention is {error:.2g} off the formula")
    return f"largest relative error {error:.1e}"


def _training() -> str:
    """A tiny run trains, saves, is loaded and makes finite images."""
    from jaxgen.api import train

    config = ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="bars_and_stripes.bars_and_stripes", size=3), batch_size=64),
            model=dict(name="mlp.MLP", width=64, depth=1),
            method=dict(name="diffusion.denoising"),
            optimizer=dict(name="adam", learning_rate=3e-3, warmup_images=0),
            ema=dict(half_life=(2000,)),
            train=dict(images=64 * 100, log_every=64 * 50),
            log=dict(tensorboard=False),
            sample=dict(solver="euler", steps=4),
            evaluate=dict(at_end=False),
            classify=dict(at_end=False),
        )
    )
    batch = -(-64 // jax.device_count()) * jax.device_count()
    config.data.batch_size = batch
    with tempfile.TemporaryDirectory() as home, contextlib.redirect_stderr(io.StringIO()):
        workdir = Path(home) / "run"
        trained = train(config, workdir).model.sample([0] * 8, seed=1).images
        again = load(workdir).sample([0] * 8, seed=1).images
    if not np.isfinite(trained).all():
        raise RuntimeError("samples of a tiny model are not finite")
    if not np.array_equal(trained, again):
        raise RuntimeError("a model that was saved and loaded makes other images")
    return "trained, saved and loaded; the same images bit for bit"


CHECKS: dict[str, Callable[[], str]] = {
    "devices": _devices,
    "products": _products,
    "attention": _attention,
    "training": _training,
}
"""What is checked, in this order."""
