"""`denoising`: diffusion and flow matching as a Method, from a path, a prediction and a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.config import ROOMS, part
from jaxgen.errors import invalid, unknown
from jaxgen.families.diffusion.core.coupling import Coupling
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.label_error import label_error
from jaxgen.families.diffusion.core.likelihood import log_prob
from jaxgen.families.diffusion.core.noise import Noise
from jaxgen.families.diffusion.core.path import Path
from jaxgen.families.diffusion.core.prediction import KINDS
from jaxgen.families.diffusion.core.sampler import Branch, build_sampler
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.descriptions.base import Description, described
from jaxgen.families.diffusion.methods.branches import coherent, standard_branches
from jaxgen.families.diffusion.terms.base import Term
from jaxgen.families.diffusion.terms.loss import denoising_loss, taps_of
from jaxgen.method import (
    Averages,
    Likelihood,
    Method,
    Sampler,
    Spec,
    check_dropout,
    method_of,
    single,
)
from jaxgen.nn.flops import multiply_adds

CORE, TERMS = "jaxgen.families.diffusion.core", "jaxgen.families.diffusion.terms"
PyTree = Any


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
    noise: Any = "gaussian",
    coupling: Any = "independent",
    terms: Sequence[Any] = (),
    label_dropout: float = 0.1,
    learned_variance: bool = False,
    sigma_data: float = 0.5,
    coherence: int = 1,
    describe: Any = None,
    accumulate: int = 1,
) -> Method:
    """Train a network to denoise; sample, score and classify with it.

    spec: the data. model: a Flax module(x, noise, condition, *, train); what it declares in
    `conditions` (`jaxgen.nn.conditions`) it is told from the data's columns of these names, and
    samplers take {"label": ..., name: ...} in the place of labels. Where it has a `project(params)`
    that is applied after each update (EDM2's forced weight normalisation).
    path, weighting, times, noise, coupling, terms: sections or names in `families.diffusion.core`
    and `.terms` (or already built). noise: the law of eps; coupling: which noise goes with which
    example of a batch. terms: what is minimised besides the weighted error, e.g. "uncertainty",
    dict(name="contrast", weight=.05). prediction: one of `prediction.KINDS`. label_dropout: share
    of labels dropped in training, which guidance needs. learned_variance: the network also predicts
    the reverse variance (ADM, DiT); it gets twice the channels. sigma_data: the data's standard
    deviation, for prediction="edm". coherence: levels of how far a label is to be believed (Dufour
    et al. 2024); more than 1: labels are y * levels + c, c = 0 the least, and the network embeds c
    too. Samples are at the highest c whatever the label's; `guidance.coherence` guides them against
    the lowest. describe: a section of `families.diffusion.descriptions` (or a `Description`): what
    the network is told of an example in the place of its label, drawn anew for each sample (RCG,
    retrieved neighbours). There is no likelihood and no `label_error` given a label with it, nor
    with noise that is no Gaussian.

    Parameters are {"net": ...}, one group for each term that has any, and "describe" where that
    has. Sampling with autoguidance takes {"net": ..., "weak": ...}: the same network's worse
    parameters (an earlier or longer average).

    Raises UsageError for values out of range. Its parts' sources are in their own files.
    """
    route: Path = part(path, ROOMS["path"], "method.path")
    _check(spec, prediction, label_dropout, sigma_data, coherence, describe)
    law: Noise = part(noise, f"{CORE}.noise", "method.noise")
    if learned_variance and not law.gaussian:
        raise invalid("method.noise", noise, "'gaussian' with learned_variance")
    pairing: Coupling = part(coupling, f"{CORE}.coupling", "method.coupling")
    chosen: list[Term] = [
        part(t, TERMS, f"method.terms[{n}]", spec=spec) for n, t in enumerate(terms)
    ]
    sampled: Times = part(times, ROOMS["times"], "method.times")
    model = _sized(model, spec.shape[-1] * (2 if learned_variance else 1))
    columns = tuple(name for name, *_ in getattr(model, "conditions", ()))
    reading: dict[str, Any] = {}
    if coherence > 1:
        classes = spec.num_classes // coherence
        model = _told(model.clone(num_classes=classes), ("coherence", "label", coherence))
        reading["told"] = coherent(coherence, classes)
    description: Description | None = None
    if describe is not None:
        description = part(describe, ROOMS["describe"], "method.describe", spec=spec)
        model = _told(model, description.kind(spec.shape))
    network = Network(model, route, prediction, sigma_data, learned_variance, **reading)
    loss = denoising_loss(
        network,
        sampled,
        part(weighting, ROOMS["weighting"], "method.weighting"),
        terms=chosen,
        num_classes=spec.num_classes,
        label_dropout=label_dropout,
        noise=law,
        coupling=pairing,
        describe=description,
        columns=columns,
    )
    own = standard_branches(network, spec, coherence, guidable=label_dropout > 0)
    projection: Callable[[PyTree], PyTree] = getattr(model, "project", lambda params: params)

    def project(params: PyTree) -> PyTree:
        return {**params, "net": projection(params["net"])}

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        return project(first_params(network, spec, chosen, description, key)), {
            "times": sampled.init()
        }

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
        found = build_sampler(
            route,
            tuple(spec.shape),
            {**own, **(branches or {})},
            solver=solver,
            steps=steps,
            grid=grid,
            guidance=guidance,
            clip=clip,
            preview=preview,
            noise=law,
        )
        if describe is not None and description is None:
            raise invalid("sample.describe", describe, "None: this model is told labels")
        if description is None:
            return found
        other = part(describe, ROOMS["describe"], "sample.describe", spec=spec)
        return described(found, other or description, own=other is None)

    whole = pairing.whole_batch or any(term.whole_batch for term in chosen)
    likely = law.gaussian and description is None
    frozen = {term.name: term.frozen for term in chosen if term.frozen is not None}
    if description is not None and description.frozen is not None:
        frozen["describe"] = description.frozen
    return method_of(
        spec,
        single(
            loss, fresh, optimizer, averages, accumulate=accumulate, project=project, frozen=frozen
        ),
        sampler=sampler,
        log_prob=(lambda **options: log_prob(network, tuple(spec.shape), **options))
        if likely
        else None,
        likelihood=Likelihood(exact=True, mass=False) if likely else None,
        label_error=label_error(network) if likely else None,
        train_flops=(lambda: 6 * multiply_adds(model, tuple(spec.shape)))
        if description is None and not chosen
        else None,
        separable=not (jax.tree.leaves(jax.eval_shape(sampled.init)) or whole),
        reads=("describe",) if "describe" in frozen else (),
    )


# What these options are now; a config that has them is told.
denoising.moved = {  # type: ignore[attr-defined]
    "contrast": "method.terms=[dict(name='contrast', weight=...)]",
    "learned_uncertainty": "method.terms=['uncertainty']",
    "extra_dims": "method.noise=dict(name='pfgmpp', extra_dims=...)",
}


def first_params(
    network: Network,
    spec: Spec,
    terms: Sequence[Term],
    description: Description | None,
    key: jax.Array,
) -> dict[str, PyTree]:
    """Fresh parameters of the network, of each term that has any, and of the description."""
    x, one = jnp.zeros((1, *spec.shape)), jnp.zeros(1)
    told = jnp.zeros(1, jnp.int32)
    params = {"net": network.model.init(key, x, one, told)["params"]}
    if description is not None and description.init is not None:
        params["describe"] = description.init(jax.random.fold_in(key, 2))
    asked = taps_of(terms)
    shapes = jax.eval_shape(
        lambda p: network.tapped(p, x, one, told, None, asked)[2], params["net"]
    )
    for number, term in enumerate(terms):
        if term.init is not None:
            params[term.name] = term.init(jax.random.fold_in(key, 2**16 + number), shapes)
    return params


def _check(
    spec: Spec,
    prediction: str,
    label_dropout: float,
    sigma_data: float,
    coherence: int,
    describe: Any,
) -> None:
    """Refuse values out of range."""
    if prediction not in KINDS:
        raise unknown("method.prediction", prediction, KINDS)
    check_dropout(label_dropout)
    if sigma_data <= 0:
        raise invalid("method.sigma_data", sigma_data, "sigma_data > 0")
    if coherence < 1 or spec.num_classes % coherence:
        raise invalid("method.coherence", coherence, f"a divisor of the {spec.num_classes} classes")
    if coherence > 1 and describe is not None:
        raise invalid("method.coherence", coherence, "1 with describe")


def _told(model: Any, condition: tuple[Any, ...]) -> Any:
    """The model that is told a further condition."""
    if not hasattr(model, "conditions"):
        name = type(model).__name__
        raise invalid("config.model", name, "a network with `conditions` (jaxgen.nn.conditions)")
    return model.clone(conditions=(*model.conditions, condition))


def _sized(model: Any, channels: int) -> Any:
    """The model with the number of output channels that the prediction needs."""
    if getattr(model, "out_channels", channels) == channels:
        return model
    return model.clone(out_channels=channels)
