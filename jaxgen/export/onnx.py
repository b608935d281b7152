"""A diffusion model's denoiser as an ONNX graph, by jax2onnx, for runtimes without JAX.

Samplers draw their noise from JAX's keys, which ONNX has no operations for, so the graph is one
call: x float32 [B, H, W, C], t float32 [B] from 0 (data) to 1 (noise) and labels int32 [B] to the
estimates x0 and eps, and the velocity dx/dt of the probability flow, all float32 like x, guided as
the model's sampler is. Euler's method: x += (t_next - t) * velocity.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxgen import files
from jaxgen.data import to_host
from jaxgen.errors import UsageError, invalid
from jaxgen.export.program import plain
from jaxgen.mesh import within
from jaxgen.method import denoiser_factory
from jaxgen.run.model import Model
from jaxgen.run.setup import BESIDES, sample_options

SUFFIX = ".onnx"
INPUTS, OUTPUTS = ("x", "t", "labels"), ("x0", "eps", "velocity")


def export(
    model: Model,
    out: str | Path,
    *,
    ema: str | None = None,
    batch: int = 1,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the graph. batch: how many images a call takes.

    changes: options of the sampler, whose guidance is in the graph. Raises UsageError for a model
    that is no diffusion model of labels, and for what jax2onnx does not carry.
    """
    path = files.local("--out", out)
    files.check_out("--out", path, (SUFFIX,))
    if batch < 1:
        raise invalid("--batch_size", batch, "images >= 1")
    try:
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UsageError('--out: ONNX needs pip install "jaxgen[onnx]".') from error
    setup = model.setup
    make = None if setup.method.sampler is None else denoiser_factory(setup.method)
    if make is None:
        raise invalid("--out", str(out), "a diffusion model that is told labels, for ONNX",
                      "Any sampler can be a program: --out NAME.jaxexport.")  # fmt: skip
    options = sample_options(setup, changes or {})
    # On the host: constants of the graph.
    params = jax.tree.map(jnp.asarray, to_host(model.weights(ema, options.get("adapters"))))
    of = make(**{k: v for k, v in options.items() if k not in ("steer", *BESIDES)})

    def call(x: jax.Array, t: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        denoiser = of(params, labels)
        keys = jnp.zeros(x.shape[0])  # whoever draws noise of its own fails, and is refused
        prediction, _ = denoiser(keys, x, t, denoiser.init(x))
        return prediction.x0, prediction.eps, prediction.velocity(denoiser.path, t)

    shapes = [
        jax.ShapeDtypeStruct((batch, *setup.spec.shape), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.float32),
        jax.ShapeDtypeStruct((batch,), jnp.int32),
    ]
    try:
        with plain() as layout:
            graph = to_onnx(
                within(layout, call),
                shapes,
                model_name="denoiser",
                input_names=INPUTS,
                output_names=OUTPUTS,
            )
    except UsageError:
        raise
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise invalid("--out", str(out), f"what jax2onnx carries; of this model it says: {why}",
                      "Any sampler can be a program: --out NAME.jaxexport.") from error  # fmt: skip
    files.write(path, graph.SerializeToString())
    return path
