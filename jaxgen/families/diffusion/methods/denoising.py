"""`denoising`: diffusion and flow matching as a Method, from a path, a prediction and a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.config import ROOMS, part
from jaxgen.errors import UsageError, invalid, unknown
from jaxgen.families.diffusion.core.coupling import KINDS as COUPLINGS
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.label_error import label_error
from jaxgen.families.diffusion.core.likelihood import log_prob
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import KINDS, noise_condition
from jaxgen.families.diffusion.core.sampler import Branch, build_sampler, unavailable
from jaxgen.families.diffusion.descriptions.base import Description, described
from jaxgen.families.diffusion.terms.loss import denoising_loss
from jaxgen.method import (
    Averages,
    Likelihood,
    Method,
    Sampler,
    Spec,
    method_of,
    no_label,
    single,
)
from jaxgen.nn.coherence import Coherent
from jaxgen.nn.flops import multiply_adds
from jaxgen.nn.labels import Described

PyTree = Any


class Uncertainty(nn.Module):
    """u, the log variance of the loss at each noise level (Karras et al. 2024, appendix B.2).

    Random Fourier features of the noise number, then one linear layer that starts at 0.
    """

    features: int = 128

    @nn.compact
    def __call__(self, noise: jax.Array) -> jax.Array:
        """noise [B] -> u [B]."""
        # Fixed, not trained: frequencies N(0, 1) cycles per unit and uniform phases, as EDM2's.
        random = jax.random.split(jax.random.key(0))
        frequency = jax.random.normal(random[0], (self.features,))
        phase = jax.random.uniform(random[1], (self.features,))
        h = jnp.cos(2 * jnp.pi * (noise[:, None] * frequency + phase)) * 2**0.5
        zeros = nn.initializers.zeros
        return nn.Dense(1, use_bias=False, kernel_init=zeros, name="out")(h)[:, 0]


def denoising(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    path: Path | str = "linear",
    prediction: str = "velocity",
    weighting: Any = "simple",
    times: Any = "uniform",
    label_dropout: float = 0.1,
    learned_variance: bool = False,
    learned_uncertainty: bool = False,
    sigma_data: float = 0.5,
    coupling: str = "independent",
    contrast: float = 0.0,
    extra_dims: float | None = None,
    coherence: int = 1,
    describe: Any = None,
    accumulate: int = 1,
) -> Method:
    """Train a network to denoise; sample, score and classify with it.

    spec: the data. model: a Flax module(x, noise, labels, *, train); where it has a
    `project(params)` that is applied after each update (EDM2's forced weight normalisation).
    path, weighting, times: sections or names in `families.diffusion` (or already built).
    prediction: one of `prediction.KINDS`. label_dropout: share of labels dropped in training, which
    guidance needs. learned_variance: the network also predicts the reverse variance (ADM, DiT); it
    gets twice the channels. learned_uncertainty: EDM2's u(noise), in params["uncertainty"].
    sigma_data: the data's standard deviation, for prediction="edm". coupling: one of
    `coupling.KINDS`, which noise goes with which example of a batch. contrast: the weight of
    Contrastive Flow Matching's repulsion from another example's target (0.05 in the paper).
    extra_dims: PFGM++'s D, noise of heavier tails (None: Gaussian, D = inf); sample with a
    deterministic solver. There is then no likelihood and no `label_error`.
    coherence: levels of how far a label is to be believed (Dufour et al. 2024); more than 1: labels
    are y * levels + c, c = 0 the least, and the network embeds c too. Samples are at the highest c
    whatever the label's; `guidance.coherence` guides them against the lowest.

    describe: a section of `families.diffusion.descriptions` (or a `Description`): what the network
    is told of an example in the place of its label, drawn anew for each sample (RCG, retrieved
    neighbours). There is then no likelihood given a label, and no `label_error`.

    Parameters are {"net": ..., "uncertainty": ...?, "describe": ...?}. Sampling with autoguidance
    takes {"net": ..., "weak": ...}: the same network's worse parameters (an earlier or longer
    average).

    Raises UsageError for values out of range. Its parts' sources are in their own files.
    """
    way: Path = part(path, ROOMS["path"], "method.path")
    if prediction not in KINDS:
        raise unknown("method.prediction", prediction, KINDS)
    if not 0 <= label_dropout < 1:
        raise invalid("method.label_dropout", label_dropout, "0 <= label_dropout < 1")
    if sigma_data <= 0:
        raise invalid("method.sigma_data", sigma_data, "sigma_data > 0")
    if coupling not in COUPLINGS:
        raise unknown("method.coupling", coupling, COUPLINGS)
    if not 0 <= contrast < 1:
        raise invalid("method.contrast", contrast, "0 <= contrast < 1")
    if contrast and learned_uncertainty:
        raise invalid("method.contrast", contrast, "0 with learned_uncertainty")
    if extra_dims is not None and (extra_dims <= 0 or learned_variance):
        allowed = "extra_dims > 0, without learned_variance"
        raise invalid("method.extra_dims", extra_dims, allowed)
    if coherence < 1 or spec.num_classes % coherence:
        raise invalid("method.coherence", coherence, f"a divisor of the {spec.num_classes} classes")
    times = part(times, ROOMS["times"], "method.times")
    weighting = part(weighting, ROOMS["weighting"], "method.weighting")
    model = _sized(model, spec.shape[-1] * (2 if learned_variance else 1))
    if coherence > 1:
        model = Coherent(model.clone(num_classes=spec.num_classes // coherence), coherence)
    description: Description | None = None
    if describe is not None:
        if coherence > 1:
            raise invalid("method.coherence", coherence, "1 with describe")
        description = part(describe, ROOMS["describe"], "method.describe", spec=spec)
        model = Described(model)
    network = Network(model, way, prediction, sigma_data, learned_variance)
    spread = Uncertainty()

    def uncertainty(params: PyTree, t: jax.Array) -> Any:
        return spread.apply({"params": params}, noise_condition(prediction, t, way))

    loss = denoising_loss(
        network,
        times,
        weighting,
        num_classes=spec.num_classes,
        label_dropout=label_dropout,
        uncertainty=uncertainty if learned_uncertainty else None,
        coupling=coupling,
        contrast=contrast,
        extra_dims=extra_dims,
        describe=description,
    )
    projection: Callable[[PyTree], PyTree] = getattr(model, "project", lambda params: params)

    def project(params: PyTree) -> PyTree:
        return {**params, "net": projection(params["net"])}

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        x, one = jnp.zeros((1, *spec.shape)), jnp.zeros(1)
        told = jnp.zeros(1, jnp.int32) if description is None else description.of(x)
        params = {"net": model.init(key, x, one, told)["params"]}
        if description is not None and description.init is not None:
            params["describe"] = description.init(jax.random.fold_in(key, 2))
        if learned_uncertainty:
            params["uncertainty"] = spread.init(jax.random.fold_in(key, 1), one)["params"]
        params = project(params)
        return params, {"times": times.init()}

    def sampler(
        *,
        solver: Any = "heun",
        steps: int = 18,
        grid: Any = "uniform",
        guidance: float | Sequence[Any] = 1.0,
        clip: str = "none",
        preview: int = 0,
        describe: Any = None,
        branches: Mapping[str, Branch] | None = None,
    ) -> Sampler:
        """Samples by integrating from noise to data.

        solver, grid: names or sections. steps: solver steps. guidance: the weight of
        classifier-free guidance, or sections applied in order, e.g. [dict(name="cfg.cfg",
        weight=3.0), dict(name="interval.limit", low=.2, high=.8)]. clip: thresholding of x0,
        "none", "static" or "dynamic". preview = k > 0: fn returns (samples, states after every k-th
        step). describe: a section in the place of the method's, e.g. another database. branches:
        further denoisers or functions for guidance, name -> (params, labels[B]) -> object.

        Raises UsageError: steps < 1, guidance that this model was not trained for.
        """
        sampler = build_sampler(
            way,
            tuple(spec.shape),
            {**standard, **(branches or {})},
            solver=solver,
            steps=steps,
            grid=grid,
            guidance=guidance,
            clip=clip,
            preview=preview,
            extra_dims=extra_dims,
        )
        if describe is not None and description is None:
            raise invalid("sample.describe", describe, "None: this model is told labels")
        if description is None:
            return sampler
        other = part(describe, ROOMS["describe"], "sample.describe", spec=spec)
        return described(sampler, other or description)

    def believed(labels: jax.Array | None, level: int) -> Any:
        """Labels at one level of coherence; "no label" stays what it is."""
        if labels is None or coherence == 1:
            return labels
        return jnp.where(labels == spec.null_label, labels, labels // coherence * coherence + level)

    def cond(params: PyTree, labels: jax.Array) -> Any:
        return network.denoiser(params and params["net"], believed(labels, coherence - 1))

    def incoherent(params: PyTree, labels: jax.Array) -> Any:
        if coherence == 1:
            return unavailable(
                invalid("guidance", "coherence", "others: this model knows no coherence",
                        "Train with method.coherence=2 or more.")
            )  # fmt: skip
        return network.denoiser(params and params["net"], believed(labels, 0))

    def uncond(params: PyTree, labels: jax.Array) -> Any:
        if label_dropout == 0:
            return unavailable(
                invalid(
                    "guidance",
                    "a scale other than 1",
                    "1: this model was trained without label dropout",
                    "Train with method.label_dropout=0.1 to guide it.",
                )
            )
        null = None if labels is None else no_label(labels, spec.null_label)
        return network.denoiser(params and params["net"], null)

    def weak(params: PyTree, labels: jax.Array) -> Any:
        if params is not None and "weak" not in params:
            return unavailable(
                UsageError('guidance: autoguidance needs params = {"net": ..., "weak": ...}.')
            )
        return network.denoiser(params and params["weak"], believed(labels, coherence - 1))

    def by_label(params: PyTree, labels: jax.Array) -> Any:
        return lambda others: network.denoiser(params["net"], believed(others, coherence - 1))

    standard: dict[str, Branch] = {
        "cond": cond,
        "uncond": uncond,
        "incoherent": incoherent,
        "weak": weak,
        "labels": lambda params, labels: labels,
        "by_label": by_label,
    }

    given_labels = extra_dims is None and description is None
    return method_of(
        spec,
        single(loss, fresh, optimizer, averages, accumulate=accumulate, project=project),
        sampler=sampler,
        log_prob=(lambda **options: log_prob(network, tuple(spec.shape), **options))
        if given_labels
        else None,
        likelihood=Likelihood(exact=True, mass=False) if given_labels else None,
        label_error=label_error(network) if given_labels else None,
        train_flops=(lambda: 6 * multiply_adds(model, tuple(spec.shape)))
        if description is None
        else None,
        separable=not (
            jax.tree.leaves(jax.eval_shape(times.init)) or contrast or coupling != "independent"
        ),
    )


def _sized(model: Any, channels: int) -> Any:
    """The model with the number of output channels that the prediction needs."""
    if getattr(model, "out_channels", channels) == channels:
        return model
    return model.clone(out_channels=channels)
