"""PixelFlow: one network flows from noise to an image through stages of rising resolution.

Chen et al., "PixelFlow: Pixel-Space Generative Models with Flow" (2025), sections 3.1 and 3.2. With
D the mean of 2x2 pixels and U its repetition, a stage goes from (1 - a) U D x + a eps to
(1 - b) x + b eps, x the image at its resolution. Our times: 1 is noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.noise import Noise
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.core.sampler import build_solver
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.methods.branches import standard_branches
from jaxgen.families.diffusion.methods.denoising import sized
from jaxgen.families.diffusion.methods.drawing import Drawing
from jaxgen.families.diffusion.terms.base import example_mean
from jaxgen.method import (
    Averages,
    Batch,
    Method,
    Metrics,
    Sampler,
    Spec,
    check_dropout,
    drop_labels,
    dropout_key,
    example_keys,
    fold,
    method_of,
    normal,
    single,
)
from jaxgen.method.streams import LABEL, NOISE, OTHER, STEP_TIME, TIME
from jaxgen.nn.flops import abstract_variables
from jaxgen.nn.resample import double, halve

PyTree = Any
STAGE = 2
"""Of a sample's key: what comes after the first stage, which draws as `denoising` does."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stage(Network):
    """A network in stage `number` of `count`, 0 the coarsest; its x0 and eps are the stage's ends.

    It is told one number, from 1 at the start of the first stage to 0 at the end of the last, which
    says the resolution too. Stages end at equal distances of noise. Where the next one starts
    follows: the least noise that can hide the blocks (`renoised`).
    """

    number: int = 0
    count: int = 1

    @property
    def noise(self) -> tuple[float, float]:
        """(a, b): the share of noise at the start and at the end."""
        before = (self.count - self.number) / self.count
        return 2 * before / (1 + before), before - 1 / self.count

    def ends(self, x0: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of images x0 at full resolution: eps at this one -> (end, start), [B, h, w, C]."""
        for _ in range(self.count - 1 - self.number):
            x0 = halve(x0)
        a, b = self.noise
        coarse = double(halve(x0)) if self.number else jnp.zeros_like(x0)
        return (1 - b) * x0 + b * eps, (1 - a) * coarse + a * eps

    def renoised(self, x: jax.Array, eps: jax.Array) -> jax.Array:
        """The start from the end x [B, h / 2, w / 2, C] of the stage before, and noise eps.

        A share of U x has the right mean; its noise is the same in all four pixels of a block.
        Noise that sums to 0 in each block makes it white, where a = 2 b / (1 + b), b of the stage
        before.
        """
        a, before = self.noise[0], (self.count - self.number) / self.count
        return (1 - a) / (1 - before) * double(x) + a * (eps - double(halve(eps)))

    def _inputs(self, x: jax.Array, t: jax.Array, labels: Any) -> tuple[jax.Array, jax.Array, Any]:
        x, t, condition = super()._inputs(x, t, labels)
        return x, (self.count - 1 - self.number + t) / self.count, condition


def pixel_flow(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    stages: int = 4,
    times: Any = "uniform",
    label_dropout: float = 0.1,
    accumulate: int = 1,
) -> Method:
    """Train a network to flow through stages; one stage is flow matching (`denoising`) exactly.

    model: a network of images of any size, as DiT and U-Nets are. stages: each has twice the height
    and width of the one before. times: within a stage, 1 its start. An image trains all stages, the
    finest with the draws of `denoising`; a coarser one costs a quarter of the next. The paper
    draws a stage for each image, in packed sequences. The loss is the mean over stages of the
    squared error of start - end.

    Sampling: `steps` of a deterministic `solver` in each stage. There is no likelihood. Raises
    UsageError for what does not halve, and for a network whose parameters are of one size.
    """
    check_dropout(label_dropout)
    sampled: Times = part(times, ROOMS["times"], "method.times")
    model = sized(model, spec.shape[-1])
    shapes = _shapes(model, spec, stages)
    path = linear()
    network = [Stage(model, path, "velocity", number=k, count=stages) for k in range(stages)]

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        inputs = jnp.zeros((1, *shapes[0])), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        return {"net": model.init(key, *inputs)["params"]}, {"times": sampled.init()}

    def loss(
        params: PyTree, batch: Batch, key: jax.Array, extra: PyTree
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        x0, keys = batch["image"].astype(jnp.float32), example_keys(key, batch)
        step, dropout = jax.random.fold_in(key, STEP_TIME), dropout_key(key, batch)
        state, total = extra["times"], jnp.zeros(len(x0))
        labels = drop_labels(fold(keys, LABEL), batch["label"], label_dropout, spec.num_classes)
        for stage, shape in zip(network, shapes, strict=True):
            finest = stage.number == stages - 1
            own = keys if finest else fold(fold(keys, OTHER), stage.number)
            t, weight = sampled.draw(fold(own, TIME), step, batch["index"], stage.path, state)
            end, start = stage.ends(x0, normal(fold(own, NOISE), shape))
            x = stage.path.mix(end, start, t)
            out, _ = stage.output(params["net"], x, t, labels, dropout)
            error = example_mean((out - (start - end)) ** 2)
            state = sampled.update(state, t, jax.lax.stop_gradient(error))
            total = total + weight * error / stages
        return total.mean(), ({"mse": total.mean()}, {**extra, "times": state})

    def sampler(
        *,
        solver: Any = "heun",
        steps: int = 8,
        grid: Any = "uniform",
        guidance: float | Sequence[Any] = 1.0,
    ) -> Sampler:
        """Samples by `steps` of a deterministic solver in each stage; the rest as `denoising`'s."""
        if build_solver(solver, path, steps).stochastic:
            raise invalid("sample.solver", solver, "one that draws no noise: its x0 has some")

        def drawn(number: int, start: Any) -> Sampler:
            """A stage's sampler, from its start."""
            own = dataclasses.replace(spec, shape=shapes[number])
            branches = standard_branches(network[number], own, 1, guidable=label_dropout > 0)
            drawing = Drawing(path, own, branches, Noise(lambda keys, shape: start), None)
            return drawing.sampler(solver=solver, steps=steps, grid=grid, guidance=guidance)

        @jax.jit
        def draw(params: PyTree, keys: jax.Array, labels: Any) -> jax.Array:
            x = normal(fold(keys, NOISE), shapes[0])
            for number, stage in enumerate(network):
                own = fold(fold(keys, STAGE), number) if number else keys
                if number:
                    x = stage.renoised(x, normal(fold(own, NOISE), shapes[number]))
                x = drawn(number, x).fn(params, own, labels)
            return x

        calls = sum(drawn(number, None).calls for number in range(stages))
        return Sampler(draw, calls, stages * steps)

    training = single(loss, fresh, optimizer, averages, accumulate=accumulate)
    separable = not jax.tree.leaves(jax.eval_shape(sampled.init))
    return method_of(spec, training, sampler=sampler, separable=separable)


def _shapes(model: Any, spec: Spec, stages: int) -> list[tuple[int, ...]]:
    """An image's shape in each stage. Raises UsageError where one network cannot do all."""
    shape = spec.shape
    if spec.tokens or len(shape) != 3:
        raise invalid("data", shape, "images (height, width, channels)")
    if stages < 1 or shape[0] % 2 ** (stages - 1) or shape[1] % 2 ** (stages - 1):
        raise invalid("method.stages", stages, f"1 or more, of halves of {shape[0]} x {shape[1]}")
    shapes = [tuple(shape)]
    while len(shapes) < stages:
        shapes.insert(0, (shapes[0][0] // 2, shapes[0][1] // 2, shape[2]))
    if any(abstract_variables(model, s) != abstract_variables(model, shape) for s in shapes[:-1]):
        name = type(model).__name__
        raise invalid("config.model", name, "a network whose parameters fit images of any size")
    return shapes
