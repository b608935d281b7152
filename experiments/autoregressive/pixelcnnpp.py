"""PixelCNN++: masses of discretised logistics, and causality of the shifted streams."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.causal import method, random_weights, reach, total
from experiments.shared.check import Check, above, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.autoregressive.heads import LogisticMixture
from jaxgen.method import Spec
from jaxgen.nn.pixelcnnpp import PixelCNNpp

PAPER = (
    "PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other "
    "Modifications"
)
ENTRY = "jaxgen.families.autoregressive.heads.LogisticMixture"
NET = dict(width=4, blocks=1, resolutions=2, dropout=0.0)


def checks() -> list[Check]:
    """Sums, Jacobians and enumeration, each also with a part taken away."""
    return [*masses(), *causality(), *images()]


def masses() -> list[Check]:
    """256 levels of colour, means far outside and scales from very sharp to flat."""
    head = LogisticMixture(256, group=3, components=10)
    out = jnp.asarray(4 * np.random.default_rng(0).normal(size=(64, head.outputs)), jnp.float32)
    chosen: list[jax.Array] = []
    results, before = [], jnp.zeros(64)
    for name in "RGB":
        log = quick_jit(head.logits)(out, chosen)
        # A channel's masses, over the mass of the channels before it.
        off = jnp.abs(jnp.exp(jax.nn.logsumexp(log, axis=-1) - before) - 1).max()
        results.append(below(f"sum of 256 masses of {name}, from 1", off, 1e-4))
        chosen.append(jnp.arange(64) * 4)
        before = log[jnp.arange(64), chosen[-1]]
    # Without the open ends, what lies outside [-1, 1] is lost.
    k = head.components
    mean, scale = out[:, k : 2 * k], jnp.maximum(out[:, 4 * k : 5 * k], -7)
    edge = 1 + 1 / 255
    inside = jax.nn.sigmoid((edge - mean) / jnp.exp(scale))
    inside = (inside - jax.nn.sigmoid((-edge - mean) / jnp.exp(scale))).mean()
    results.append(below("mass of a component with its ends cut off", inside, 0.9))
    # Green's law moves with red, by way of the coefficients.
    a, b = (jax.nn.softmax(quick_jit(head.logits)(out, [jnp.full(64, r)])) for r in (0, 255))
    results.append(above("change of green by red", jnp.abs(a - b).sum(-1).mean(), 0.1))
    # One component has one weight: without its coefficients nothing of red is left in green.
    single = LogisticMixture(256, group=3, components=1)
    for name, size in (("one component, with", 1.0), ("one component, without", 0.0)):
        moved = out[:, : single.outputs].at[:, 7:].set(size)
        a, b = (
            jax.nn.softmax(quick_jit(single.logits)(moved, [jnp.full(64, r)])) for r in (0, 255)
        )
        change = jnp.abs(a - b).sum(-1)
        check = above(f"change of green by red, {name} coefficients", change.mean(), 0.1)
        results.append(check if size else control(check))
    return results


def causality() -> list[Check]:
    """Jacobians at even and at odd sizes; the control leaves the shifts out."""
    results = []
    for shape in ((5, 6, 1), (4, 4, 3)):
        net = PixelCNNpp(1, 9, shape, outputs=7, **NET)
        size = int(np.prod(shape))

        def init(net: PixelCNNpp = net, size: int = size) -> object:
            tokens, labels = jnp.zeros((1, size), jnp.int32), jnp.zeros(1, jnp.int32)
            return net.init(jax.random.key(0), tokens, labels)["params"]

        weights = random_weights(init, 0.6)
        earlier, later = reach(net, weights)
        results.append(above(f"least derivative by an earlier pixel {shape}", earlier.min(), 1e-12))
        results.append(below(f"largest by itself or a later one {shape}", later.max(), 0.0))
    with mock.patch("jaxgen.nn.pixelcnnpp.right", lambda x: x):
        leak = reach(net, weights)[1].max()
    results.append(control(below("largest by itself without the shift to the right", leak, 0.0)))
    return results


def images() -> list[Check]:
    """All binary images of nine elements."""
    spec = Spec((1, 3, 3), 1, levels=2)
    net = PixelCNNpp(1, 2, spec.shape, **NET)
    built = method(spec, net, head=dict(name="logistic_mixture"))
    weights = random_weights(lambda: built.init(jax.random.key(0)).params, 0.9)
    results = [near("sum over 512 images of 3 coloured pixels", total(built, weights), 1.0, 1e-4)]
    with mock.patch("jaxgen.nn.pixelcnnpp.right", lambda x: x):
        every = total(built, weights)
    results.append(control(near("the same without the shift to the right", every, 1.0, 1e-4)))
    return results
