"""DiT: adaLN-Zero is the identity at first, patches are lossless, sizes are the paper's."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.shared.check import Check, below, control, near
from experiments.shared.quick import quick_jit
from jaxgen.families.diffusion.core import path, times, weighting
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.terms.loss import denoising_loss
from jaxgen.method import placed
from jaxgen.nn.dit import DiT, patchify, unpatchify
from jaxgen.nn.flops import multiply_adds, parameters

PAPER = "Scalable Diffusion Models with Transformers"
ENTRY = "jaxgen.nn.dit.DiT"

# Table 1 and section 3: parameters in millions, forward multiply-adds in billions, 32x32x4 latents.
TABLE = {"S/2": (33, 6.06), "B/2": (130, 23.01), "L/2": (458, 80.71), "XL/2": (675, 118.64)}


def checks() -> list[Check]:
    """What the paper says of the architecture, on a small one, and its table on the full sizes."""
    results = []
    model = DiT(num_classes=10, out_channels=3, depth=3, width=64, heads=4, patch=2)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    noise, labels = jnp.linspace(0, 1, 4), jnp.array([0, 3, 9, 10])
    params = quick_jit(model.init)(jax.random.key(1), x, noise, labels)["params"]
    apply = quick_jit(model.apply)
    out = apply({"params": params}, x, noise, labels)
    results.append(below("largest output at initialisation", jnp.abs(out).max(), 0.0))

    patches = patchify(x, 2)
    back = unpatchify(patches, 4, 4, 4, 2)
    results.append(below("patches and back, largest change", jnp.abs(back - x).max(), 0.0))

    # Identity blocks: with the last layer opened, depth makes no difference.
    key = jax.random.key(2)
    opened = {
        **params,
        "out": jax.tree.map(lambda p: jax.random.normal(key, p.shape), params["out"]),
    }
    deep = apply({"params": opened}, x, noise, labels)
    flat = model.clone(depth=1)
    first = {**opened, "blocks": jax.tree.map(lambda p: p[:1], opened["blocks"])}
    shallow = quick_jit(flat.apply)({"params": first}, x, noise, labels)
    results.append(
        below("three blocks against one at the start", jnp.abs(deep - shallow).max(), 1e-5)
    )
    results.append(control(below("largest output, last layer opened", jnp.abs(deep).max(), 0.0)))
    blocks = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(key, p.shape), params["blocks"])
    live = {**opened, "blocks": blocks}
    moved = apply({"params": live}, x, noise, labels)
    check = "three blocks, not at the start, against one that is"
    results.append(control(below(check, jnp.abs(moved - shallow).max(), 1e-5)))

    # A dropped label is the null label: the same loss and gradient, to the last bit. (At the start
    # no label has any gradient: modulation begins at 0.)
    network = Network(model, path.linear(), "velocity")
    batch = placed({"image": x, "label": labels % 10}, jnp.zeros(()))

    def gradient(share: float, batch: dict[str, jax.Array]) -> jax.Array:
        loss = denoising_loss(
            network, times.uniform(), weighting.simple(), num_classes=10, label_dropout=share
        )
        key, extra = jax.random.key(3), {"times": ()}
        value = quick_jit(jax.grad(lambda p: loss({"net": p}, batch, key, extra)[0]))(live)
        return value["labels"]["embedding"]

    dropped, null = gradient(1.0, batch), gradient(0.0, {**batch, "label": jnp.full(4, 10)})
    results.append(below("dropped against null labels", jnp.abs(dropped - null).max(), 0.0))
    kept = gradient(0.0, batch)
    results.append(control(below("kept against null labels", jnp.abs(kept - null).max(), 0.0)))
    results.append(below("gradient of other labels", jnp.abs(dropped[:10]).max(), 0.0))

    for size, (millions, billions) in TABLE.items():
        net = DiT(1000, 8, size)
        count = parameters(net, (32, 32, 4)) / 1e6
        results.append(near(f"DiT-{size} parameters, millions", count, millions, 0.51))
        work = multiply_adds(net, (32, 32, 4)) / 1e9
        results.append(near(f"DiT-{size} multiply-adds, G", work, billions, 0.005 * billions))
    return results
