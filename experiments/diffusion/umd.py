"""UMD: its losses are DiT's and a masked autoencoder's, and its network fills in what is masked.

The images of the last part are of rank one: a number times one fixed template, so that one visible
patch tells all the others.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.shared.check import Check, below, control, mean_below, near
from experiments.shared.quick import quick_jit
from jaxgen.families.diffusion.core import times, weighting
from jaxgen.families.diffusion.core.denoiser import Network
from jaxgen.families.diffusion.core.path import linear
from jaxgen.families.diffusion.methods.masked import masked_loss, visible_patches
from jaxgen.families.diffusion.terms.loss import denoising_loss
from jaxgen.method import LossFn, Spec, example_keys, fold, minimise, placed
from jaxgen.nn.dit import DiT
from jaxgen.nn.flops import abstract_variables, count
from jaxgen.nn.masked_dit import MaskedDiT

PAPER = "Unified Auto-Encoding with Masked Diffusion"
ENTRY = "jaxgen.families.diffusion.methods.masked.masked_denoising"
SPEC, SEEDS, STEPS, BATCH = Spec((4, 4, 1), 2), 5, 400, 32
SIZES: dict[str, Any] = dict(
    num_classes=2, out_channels=1, patch=2, width=32, heads=2, remat="none", scan=False
)
DEPTHS: dict[str, Any] = dict(depth=1, decoder_depth=1, decoder_width=32, decoder_heads=2)
NET = MaskedDiT(**SIZES, **DEPTHS)
TEMPLATE = jnp.asarray(np.random.default_rng(7).normal(size=SPEC.shape), jnp.float32)
KEY = jax.random.key(3)


def loss(
    net: Any = NET, representation: float = 0.5, kept: int = 2, reconstruction: Any = 1.0
) -> LossFn:
    """The method's loss: `kept` of four patches visible, one in the representation step."""
    return masked_loss(
        Network(net, linear(), "velocity"),
        times.uniform(),
        weighting.simple(),
        num_classes=2,
        label_dropout=0.0,
        representation=representation,
        kept=(1, kept),
        reconstruction=reconstruction,
    )


def live(net: Any) -> Any:
    """Random parameters, so that nothing is hidden by the zeros that a DiT starts from."""
    rng, shapes = np.random.default_rng(0), abstract_variables(net, SPEC.shape)["params"]
    return jax.tree.map(lambda a: jnp.asarray(0.2 * rng.normal(size=a.shape), a.dtype), shapes)


def value(loss: LossFn, params: Any, batch: Any) -> float:
    """The loss of these parameters."""
    return float(quick_jit(lambda p: loss({"net": p}, batch, KEY, {"times": ()})[0])(params))


def as_dit(params: Any) -> tuple[Any, Any]:
    """Parameters of NET whose decoder changes nothing on the way in, and DiT's for them."""
    eye = {"kernel": jnp.eye(32), "bias": jnp.zeros(32)}
    decoder = params["decoder"] | {"embed": eye, "condition": eye}
    encoder = {k: a for k, a in params.items() if k != "decoder"}
    encoder["blocks"] = jax.tree.map(
        lambda *a: jnp.concatenate(a), params["blocks"], decoder["blocks"]
    )
    return params | {"decoder": decoder}, encoder


class Shifted(MaskedDiT):
    """The network with 1 added to its output in the visible patches, or in the masked ones."""

    masked: bool = False

    def __call__(self, x: Any, noise: Any, labels: Any, *, visible: Any = None, **rest: Any) -> Any:
        """As `MaskedDiT`, for two by two patches."""
        out = super().__call__(x, noise, labels, visible=visible, **rest)
        if visible is None:
            return out
        seen = (visible[:, :, None] == jnp.arange(4)).any(1).reshape(-1, 2, 2, 1)
        return out + (jnp.repeat(jnp.repeat(seen, 2, 1), 2, 2) ^ self.masked)


def by_hand(params: Any, batch: Any) -> tuple[float, float]:
    """Squared errors of the network at clean images without labels: (masked patches', all's)."""
    x, keys = batch["image"], example_keys(KEY, batch)
    visible = visible_patches(fold(keys, 3), 4, 1)
    labels = jnp.full(len(x), SPEC.null_label)
    apply = quick_jit(NET.apply)
    out = apply({"params": params}, x, jnp.zeros(len(x)), labels, visible=visible)
    square = (np.asarray(out, np.float64) - np.asarray(x, np.float64)) ** 2
    # [B, row of patches, row in a patch, column of patches, column in a patch].
    patches = square.reshape(-1, 2, 2, 2, 2).mean((2, 4)).reshape(-1, 4)
    hidden = [np.delete(patch, at) for patch, at in zip(patches, np.asarray(visible), strict=True)]
    return float(np.mean(hidden)), float(patches.mean())


def batch_of(x: jax.Array) -> Any:
    """A batch of images and labels, as a loss is given it."""
    return placed({"image": x, "label": jnp.arange(len(x)) % 2}, jnp.zeros(()))


def images(key: jax.Array, size: int) -> jax.Array:
    """a times the template, a uniform in (-1, 2): [size, 4, 4, 1]."""
    return jax.random.uniform(key, (size, 1, 1, 1), minval=-1.0, maxval=2.0) * TEMPLATE


def unexplained(key: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """The share of masked patches' energy that a network does not fill in, ().

    Trained on fresh images by the representation step with that weight; then 512 others.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    own_loss = loss(representation=1.0, reconstruction=reconstruction)

    def on_fresh(params: Any, number: jax.Array) -> jax.Array:
        step_key = jax.random.fold_in(key, number)
        batch = batch_of(images(jax.random.fold_in(step_key, 1), BATCH))
        return own_loss({"net": params}, batch, step_key, {"times": ()})[0]

    x, count = images(jax.random.fold_in(key, STEPS), 512), 512
    labels, noise = jnp.full(count, SPEC.null_label), jnp.zeros(count)
    start = NET.init(key, x[:1], noise[:1], labels[:1])["params"]
    params, _ = minimise(on_fresh, optimizer, start, jnp.arange(STEPS))
    visible = jnp.arange(count)[:, None] % 4
    out: Any = NET.apply({"params": params}, x, noise, labels, visible=visible)
    hidden = (visible != jnp.arange(4)).reshape(count, 2, 1, 2, 1)
    energy = [(hidden * a.reshape(count, 2, 2, 2, 2) ** 2).sum() for a in (out - x, x)]
    return energy[0] / energy[1]


def work(net: MaskedDiT, shape: tuple[int, ...], kept: int) -> tuple[float, float]:
    """Multiply-adds of the encoder for one image: (counted in the program, by its formula).

    Those of the vectors that condition it, the same for any number of patches, are left out.
    """
    patches = jax.ShapeDtypeStruct((1, kept), jnp.int32)
    inputs = (jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    variables = abstract_variables(net, shape)

    def encode(variables: Any, visible: Any) -> Any:
        return net.apply(variables, *inputs, visible, method="features")

    results = count(jax.make_jaxpr(encode)(variables, patches).jaxpr)
    w = net.width
    condition = 256 * w + w * w + net.depth * 6 * w * w
    token = net.patch**2 * shape[2] * w + net.depth * (4 + 2 * net.mlp_ratio) * w * w
    return results - condition, kept * token + net.depth * 2 * kept**2 * w


def checks() -> list[Check]:
    """Both losses by other means, images of rank one filled in, and what the encoder costs."""
    rng, results = np.random.default_rng(1), []
    batch = batch_of(jnp.asarray(rng.normal(size=(8, *SPEC.shape)), jnp.float32))
    params = live(NET)

    joined, plain = as_dit(params)
    net = Network(DiT(**SIZES, depth=2), linear(), "velocity")
    dit = value(
        denoising_loss(net, times.uniform(), weighting.simple(), num_classes=2), plain, batch
    )
    check = "DiT's denoising loss"
    none = value(loss(representation=0.0, kept=4), joined, batch)
    results.append(near(check, none, dit, 1e-6 * dit))
    some = value(loss(representation=0.0, kept=3), joined, batch)
    results.append(control(near(f"{check}, a patch masked", some, dit, 1e-6 * dit)))

    hidden, every = by_hand(params, batch)
    step = value(loss(representation=1.0), params, batch)
    check = "a masked autoencoder's loss, by hand"
    results.append(near(check, step, hidden, 1e-6 * hidden))
    results.append(control(near(f"{check}, visible patches too", step, every, 1e-6 * hidden)))
    check = "change of it with the output in visible patches"
    seen, other = (
        value(loss(Shifted(**SIZES, **DEPTHS, masked=masked), 1.0), params, batch)
        for masked in (False, True)
    )
    results.append(below(check, abs(seen - step), 0.0))
    results.append(control(below(f"{check}: in masked ones", abs(other - step), 0.0)))

    keys = jnp.tile(jax.vmap(jax.random.key)(jnp.arange(SEEDS)), 2)
    weights = jnp.repeat(jnp.array([1.0, 0.0]), SEEDS)
    taught, untaught = quick_jit(jax.vmap(unexplained))(keys, weights).reshape(2, SEEDS)
    check = "energy of masked patches not filled in"
    results.append(mean_below(check, taught, 0.05))
    results.append(control(mean_below(f"{check}, untaught", untaught, 0.05)))

    larger = NET.clone(width=64, depth=3)
    for kept in (64, 40, 16):
        counted, formula = work(larger, (16, 16, 1), kept)
        results.append(
            near(f"encoder's multiply-adds, {kept} of 64 patches", counted, formula, 0.5)
        )
    return results
