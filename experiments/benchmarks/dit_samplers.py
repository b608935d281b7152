"""The samplers of the DiT paper and after, in jaxgen and with diffusers' schedulers, to be timed.

DDPM's ancestral sampling and DPM-Solver++ 2M, classifier-free guidance, conditional and
unconditional images in one batch. Ours is the sampler that `jaxgen sample` uses. Theirs walks the
same 1000 discrete times in equal strides ("trailing"), by betas that give our path there, and is
told our times, so that DPM-Solver++ makes the same images from the same noise, and DDPM images of
the same law.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.dit_peers import Size
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.sampler import prior
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Spec
from jaxgen.training.ema import Averages

SOLVERS = {"ddpm": 250, "dpmpp_2m": 50}
"""Solvers and the steps that the target is stated for."""
DISCRETE = 1000


def keys_of(size: Size) -> jax.Array:
    """A key for each image of the batch."""
    return jax.random.split(jax.random.key(0), size.batch)


def noise(size: Size) -> jax.Array:
    """What our sampler starts from."""
    return prior(paths.vp_linear(), keys_of(size), (size.image, size.image, size.channels))


def jaxgen_sampling(
    net: Any, size: Size, params: Any, labels: np.ndarray, *, solver: str, steps: int, scale: float
) -> Callable[[], np.ndarray]:
    """A function that draws one batch [B, H, W, C]."""
    spec = Spec(shape=(size.image, size.image, size.channels), num_classes=size.classes)
    method = denoising(
        spec, net, optax.identity(), Averages(half_life=(1000,)), path="vp_linear", prediction="eps"
    )
    assert method.sampler is not None
    draw = method.sampler(solver=solver, steps=steps, grid="uniform", guidance=scale)
    keys, classes = keys_of(size), jnp.asarray(labels)
    return lambda: np.asarray(draw({"net": params}, keys, classes))


def scheduler(solver: str, steps: int) -> Any:
    """diffusers' scheduler for the same times and the same path."""
    import diffusers

    path = paths.vp_linear()
    times = jnp.arange(1, DISCRETE + 1) / DISCRETE
    kept = np.asarray(path.alpha(times), np.float64) ** 2
    betas = 1 - kept / np.concatenate([[1.0], kept[:-1]])
    shared = {"trained_betas": betas, "timestep_spacing": "trailing"}
    if solver == "ddpm":
        chosen = diffusers.DDPMScheduler(**shared, clip_sample=False, variance_type="fixed_small")
    else:
        chosen = diffusers.DPMSolverMultistepScheduler(
            **shared, solver_order=2, final_sigmas_type="zero"
        )
    chosen.set_timesteps(steps)
    return chosen


def torch_sampling(
    model: Any,
    size: Size,
    labels: np.ndarray,
    *,
    solver: str,
    steps: int,
    scale: float,
    device: str = "cpu",
    bfloat16: bool = False,
) -> Callable[[], np.ndarray]:
    """The same with PyTorch: no gradients, state in float32, as our sampler's."""
    import torch

    both = torch.from_numpy(np.concatenate([labels, np.full_like(labels, size.classes)])).to(device)
    start = torch.from_numpy(np.array(noise(size))).permute(0, 3, 1, 2).contiguous().to(device)
    generator = torch.Generator(device).manual_seed(0)

    def run() -> np.ndarray:
        walk = scheduler(solver, steps)
        extra = {"generator": generator}
        x = start
        with torch.inference_mode():
            for t in walk.timesteps:
                now = torch.full((both.shape[0],), float(t) + 1, device=device)
                with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                    out = model(torch.cat([x, x]), now, class_labels=both).sample
                cond, uncond = out.float().chunk(2)
                x = walk.step(uncond + scale * (cond - uncond), t, x, **extra).prev_sample
        return x.permute(0, 2, 3, 1).cpu().numpy()

    return run
