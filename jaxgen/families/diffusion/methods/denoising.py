"""`denoising`: diffusion and flow matching as a Method, from a path, a prediction and a network."""

from __future__ import annotations

import dataclasses
import functools
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
from jaxgen.families.diffusion.core.times import Times
from jaxgen.families.diffusion.descriptions.base import Description
from jaxgen.families.diffusion.methods.branches import coherent, standard_branches
from jaxgen.families.diffusion.methods.drawing import Drawing
from jaxgen.families.diffusion.terms.base import Term
from jaxgen.families.diffusion.terms.loss import denoising_loss, taps_of
from jaxgen.method import (
    Averages,
    Likelihood,
    Method,
    Spec,
    check_dropout,
    method_of,
    single,
)
from jaxgen.nn.flops import multiply_adds

DESCRIBE, TERMS_FIRST = 2, 2**16
"""Streams of first parameters: the description's, and the first term's, one each."""

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
    networks: Mapping[str, Any] | None = None,
) -> Method:
    """Train a network to denoise; sample, score and classify with it.

    spec: the data. model: a Flax module(x, noise, condition, *, train); what it declares in
    `conditions` (`jaxgen.nn.conditions`) it is told from the data's columns of these names, and
    samplers take {"label": ..., name: ...} in the place of labels. Where it has a `project(params)`
    that is applied after each update (EDM2's forced weight normalisation).
    path, weighting, times, noise, coupling, terms: sections or names in `families.diffusion.core`
    and `.terms` (or already built). noise: the distribution of eps; coupling: which noise goes with
    which example of a batch. terms: what is minimised besides the weighted error, e.g.
    "uncertainty", dict(name="contrast", weight=.05); they may ask for networks, other runs' models.
    prediction: one of `prediction.KINDS`.
    label_dropout: share of labels dropped in training, which guidance needs. learned_variance: the
    network also predicts the reverse variance (ADM, DiT); it gets twice the channels. sigma_data:
    the data's standard deviation, for prediction="edm". coherence: levels of how far a label is to
    be believed (Dufour et al. 2024); more than 1: labels are y * levels + c, c = 0 the least, and
    the network embeds c too. Samples are at the highest c whatever the label's;
    `guidance.coherence` guides them against the lowest. describe: a section of
    `families.diffusion.descriptions` (or a `Description`): what the network is told of an example
    in the place of its label, drawn anew for each sample (RCG, retrieved neighbours). There is no
    likelihood and no `label_error` given a label with it, nor with noise that is no Gaussian.

    Parameters are {"net": ...}, one group for each term that has any, and "describe" where that
    has. Sampling with autoguidance takes {"net": ..., "weak": ...}: the same network's worse
    parameters (an earlier or longer average).

    Raises UsageError for values out of range. Its parts' sources are in their own files.
    """
    route: Path = part(path, ROOMS["path"], "method.path")
    _check(spec, prediction, label_dropout, sigma_data, coherence, describe)
    distribution: Noise = part(noise, f"{CORE}.noise", "method.noise")
    if learned_variance and not distribution.gaussian:
        raise invalid("method.noise", noise, "'gaussian' with learned_variance")
    pairing: Coupling = part(coupling, f"{CORE}.coupling", "method.coupling")
    chosen: list[Term] = [
        part(t, TERMS, f"method.terms[{n}]", spec=spec, networks=networks or {})
        for n, t in enumerate(terms)
    ]
    _check_names(chosen)
    sampled: Times = part(times, ROOMS["times"], "method.times")
    model = sized(model, spec.shape[-1] * (2 if learned_variance else 1))
    columns = tuple(name for name, *_ in getattr(model, "conditions", ()))
    description: Description | None = part(
        describe, ROOMS["describe"], "method.describe", spec=spec
    )
    model, reading = _told_more(model, spec, coherence, description)
    network = Network(model, route, prediction, sigma_data, learned_variance, **reading)
    loss = denoising_loss(
        network,
        sampled,
        part(weighting, ROOMS["weighting"], "method.weighting"),
        terms=chosen,
        num_classes=spec.num_classes,
        label_dropout=label_dropout,
        noise=distribution,
        coupling=pairing,
        describe=description,
        columns=columns,
    )
    branches = standard_branches(network, spec, coherence, guidable=label_dropout > 0)
    project = functools.partial(_projected, getattr(model, "project", lambda net: net))

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params = project(first_params(network, spec, chosen, description, key))
        return params, {"times": sampled.init()}

    frozen = _frozen(chosen, description)
    training = single(loss, fresh, optimizer, averages, accumulate=accumulate, project=project)
    more = _likelihoods(network, spec) if distribution.gaussian and description is None else {}
    if description is None and not chosen:
        more["train_flops"] = lambda: 6 * multiply_adds(model, tuple(spec.shape), train=True)
    whole = pairing.whole_batch or any(term.whole_batch for term in chosen)
    return method_of(
        spec,
        dataclasses.replace(training, frozen=frozen),
        sampler=Drawing(route, spec, branches, distribution, description).sampler,
        separable=not (jax.tree.leaves(jax.eval_shape(sampled.init)) or whole),
        reads=("describe",) if "describe" in frozen else (),
        **more,
    )


def _projected(projection: Callable[[PyTree], PyTree], params: PyTree) -> PyTree:
    """The groups with the network's own projected."""
    return {**params, "net": projection(params["net"])}


# What these options are now; a config that has them is told.
denoising.moved = {  # type: ignore[attr-defined]
    "contrast": "method.terms=[dict(name='contrast', weight=...)]",
    "learned_uncertainty": "method.terms=['uncertainty']",
    "extra_dims": "method.noise=dict(name='pfgmpp', extra_dims=...)",
}


def _likelihoods(network: Network, spec: Spec) -> dict[str, Any]:
    """What a `Method` has of a network that is told labels, with Gaussian noise."""
    return {
        "log_prob": lambda **options: log_prob(network, tuple(spec.shape), **options),
        "likelihood": Likelihood(exact=True, mass=False),
        "label_error": label_error(network),
    }


def first_params(
    network: Network,
    spec: Spec,
    terms: Sequence[Term],
    description: Description | None,
    key: jax.Array,
) -> dict[str, PyTree]:
    """Fresh parameters of the network, of each term that has any, and of the description."""
    x, time = jnp.zeros((1, *spec.shape)), jnp.zeros(1)
    told = jnp.zeros(1, jnp.int32)
    params = {"net": network.model.init(key, x, time, told)["params"]}
    if description is not None and description.init is not None:
        params["describe"] = description.init(jax.random.fold_in(key, DESCRIBE))
    asked = taps_of(terms)

    def outputs(net: PyTree) -> list[jax.Array]:
        tapped = network.tapped(net, x, time, told, None, asked)[2]
        return [tapped[tap] for tap in asked]

    shapes = dict(zip(asked, jax.eval_shape(outputs, params["net"]), strict=True))
    for number, term in enumerate(terms):
        if term.init is not None:
            params[term.name] = term.init(jax.random.fold_in(key, TERMS_FIRST + number), shapes)
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


def _check_names(terms: Sequence[Term]) -> None:
    """Refuse two terms of one name."""
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise invalid("method.terms", names, "each name once: it is that of the term's parameters")


def _frozen(terms: Sequence[Term], description: Description | None) -> dict[str, Any]:
    """What terms and description need and nobody trains, by name."""
    frozen = {term.name: term.frozen for term in terms if term.frozen is not None}
    if description is not None and description.frozen is not None:
        frozen["describe"] = description.frozen
    return frozen


def _told_more(
    model: Any, spec: Spec, coherence: int, description: Description | None
) -> tuple[Any, dict[str, Any]]:
    """The model told coherence or descriptions besides, and how its `Network` reads labels."""
    if coherence > 1:
        classes = spec.num_classes // coherence
        model = _told(model.clone(num_classes=classes), ("coherence", "label", coherence))
        return model, {"told": coherent(coherence, classes)}
    return model if description is None else _told(model, description.kind(spec.shape)), {}


def _told(model: Any, condition: tuple[Any, ...]) -> Any:
    """The model that is told a further condition."""
    if not hasattr(model, "conditions"):
        name = type(model).__name__
        raise invalid("config.model", name, "a network with `conditions` (jaxgen.nn.conditions)")
    return model.clone(conditions=(*model.conditions, condition))


def sized(model: Any, channels: int) -> Any:
    """The model with the number of output channels that the prediction needs."""
    if getattr(model, "out_channels", channels) == channels:
        return model
    return model.clone(out_channels=channels)
