"""Control of a trained model by an image: its branch alone is trained (`jaxgen.nn.control`).

Zhang et al. 2023, of any denoiser, by the method's own loss. Of a consistency model, whose loss is
`distill.consistency`'s: Xiao et al., "CCM: Adding Conditional Controls to Text-to-Image Consistency
Models" (2023), their second strategy.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jaxgen.errors import invalid
from jaxgen.method import Batch, Method, on_params, only_learner, retrained, training_of

PyTree = Any


def control(method: Method) -> Method:
    """Train the groups "branch", which begins as a copy of "net", and "control", its new layers.

    The model is `control.controlled`; give what it controls by `config.start`, whose parameters
    stay as they are. Averages are of the branch. Raises UsageError for a model without a branch.
    """
    base, training = only_learner(method, "tune.control"), training_of(method, "tune.control")

    def merged(params: PyTree) -> PyTree:
        rest = {k: v for k, v in params.items() if k not in ("branch", "control")}
        layers, model = dict(params["control"]), params["branch"]
        known = model.get("conditions", {})
        model = {**model, "conditions": {**known, **layers.pop("conditions")}}
        return {**rest, "net": {**params["net"], "control": {**layers, "model": model}}}

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        params, extra = training.fresh(key)
        net = dict(params["net"])
        layers = dict(net.pop("control"))
        # What the copy has besides: it is told the column.
        told, known = layers.pop("model")["conditions"], net.get("conditions", {})
        layers["conditions"] = {k: a for k, a in told.items() if k not in known}
        return {**params, "net": net, "branch": net, "control": layers}, extra

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        return base.loss(merged(params), batch, key, extra)

    first = jax.eval_shape(training.fresh, jax.random.key(0))[0]
    if "control" not in first.get("net", {}):
        allowed = "control.controlled, with the network to be controlled as its `model`"
        raise invalid("config.model", "a network without a branch", allowed)
    groups = ("branch", "control")
    made = retrained(
        method,
        learners={"net": dataclasses.replace(base, loss=loss, trains=groups, after=None)},
        fresh=fresh,
        copies={**training.copies, "branch": "net"},
        averaged=groups,
    )
    return on_params(made, merged)
