"""Gated PixelCNN: exact probabilities, every earlier pixel in sight and no later one."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.causal import method, random_weights, reach, total
from experiments.shared.check import Check, above, below, control, near
from jaxgen.method import Spec
from jaxgen.nn.pixelcnn import GatedPixelCNN

PAPER = "Conditional Image Generation with PixelCNN Decoders"
ENTRY = "jaxgen.nn.pixelcnn.GatedPixelCNN"


def checks() -> list[Check]:
    """Enumeration and Jacobians; the controls open the mask, and cut the vertical stack off."""
    results = []
    for shape in ((3, 3, 1), (1, 3, 3)):
        spec = Spec(shape, 1, levels=2)
        built = method(spec, GatedPixelCNN(1, 2, shape, depth=2, width=6, kernel=3, first=3))
        weights = random_weights(lambda built=built: built.init(jax.random.key(0)).params, 0.8)
        results.append(near(f"sum over 512 images {shape}", total(built, weights), 1.0, 1e-5))
        with mock.patch("jaxgen.nn.pixelcnn.channel_mask", everything):
            every = total(built, weights)
        results.append(control(near(f"the same without the mask {shape}", every, 1.0, 1e-5)))

    for shape in ((4, 5, 1), (3, 3, 3)):
        net = GatedPixelCNN(1, 5, shape, depth=3, width=24, kernel=3, first=5, hidden=48)
        size = int(np.prod(shape))

        def init(net: GatedPixelCNN = net, size: int = size) -> object:
            tokens, labels = jnp.zeros((1, size), jnp.int32), jnp.zeros(1, jnp.int32)
            return net.init(jax.random.key(0), tokens, labels)["params"]

        weights = random_weights(init, 0.3)
        earlier, later = reach(net, weights)
        results.append(
            above(f"least derivative by an earlier element {shape}", earlier.min(), 1e-12)
        )
        results.append(below(f"largest by itself or a later one {shape}", later.max(), 0.0))
        # Without the way from the vertical to the horizontal stack the rows above are unseen.
        blind = jax.tree_util.tree_map_with_path(
            lambda path, a: a * (not any(getattr(p, "key", "") == "across" for p in path)), weights
        )
        results.append(_blind(shape, reach(net, blind)[0].min()))
        with mock.patch("jaxgen.nn.pixelcnn.channel_mask", everything):
            leak = reach(net, weights)[1].max()
        results.append(control(below(f"largest by itself without the mask {shape}", leak, 0.0)))
    return results


def _blind(shape: tuple[int, ...], least: float) -> Check:
    return control(above(f"least derivative, stacks apart {shape}", least, 1e-12))


def everything(inputs: int, outputs: int, *_: object, **__: object) -> np.ndarray:
    """A mask that hides nothing."""
    return np.ones((inputs, outputs), np.float32)
