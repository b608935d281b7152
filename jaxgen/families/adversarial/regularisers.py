"""What is added to the players' losses, layers and latents: penalties, projections, selections.

A `Regulariser` says under a name which of the hooks it has; `Players` calls them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.errors import invalid
from jaxgen.method import normal
from jaxgen.nn.gan_layers import MinibatchDeviation, MinibatchDiscrimination

PyTree = Any
Network = Literal["generator", "discriminator"]


class Case(NamedTuple):
    """What a penalty sees.

    judge(x[B, *shape], labels[B]) -> logits [B], a function of x and of the discriminator's
    parameters. real, fake [B, *shape], not augmented; labels [B]; keys [B]; augment(x, keys) -> x,
    or None. logits: those of the real and of the fake images as they were shown, [B] each.
    features(x, labels) -> [B, F]; generate(z[B, D]) -> x; z: what `fake` was made of. state: the
    regulariser's own. styled(z) -> (styles [B, layers, D], paint(styles) -> x) of a generator with
    styles, or None.
    """

    judge: Callable[[jax.Array, jax.Array], jax.Array]
    real: jax.Array
    fake: jax.Array
    labels: jax.Array
    keys: jax.Array
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None
    logits: tuple[jax.Array, jax.Array] | None = None
    features: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    generate: Callable[[jax.Array], jax.Array] | None = None
    z: jax.Array | None = None
    state: PyTree = None
    styled: Callable[[jax.Array], tuple[jax.Array, Callable[[jax.Array], jax.Array]]] | None = None


@dataclasses.dataclass(frozen=True)
class Regulariser:
    """Under the name that its metric gets, any of:

    penalty(case), generator(case) -> scalar, added to the discriminator's or the generator's loss;
    the latter's may come with metrics, (scalar, {name: scalar}).
    weights(params, state) -> scalar, added to the loss of each of `networks`. project(params) ->
    params of the discriminator, after each of its steps. latent(z, judge) -> z, where judge(z) are
    the logits [B] of what is made of z. select(logits[B], seen) -> weights [B] that sum to 1, of
    the generator's loss of each fake image. layer: between the discriminator's backbone and head.

    start(params) -> the state that it carries, follow(state, metrics, params) -> the next one,
    after each step of `player`. lipschitz: bounds the discriminator's slope. augmented: needs an
    augmentation. single: means nothing where the discriminator looks at several images at once.
    """

    name: str
    penalty: Callable[[Case], jax.Array] | None = None
    generator: Callable[[Case], Any] | None = None
    weights: Callable[[PyTree, PyTree], jax.Array] | None = None
    project: Callable[[PyTree], PyTree] | None = None
    latent: Callable[[jax.Array, Callable[[jax.Array], jax.Array]], jax.Array] | None = None
    select: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    layer: nn.Module | None = None
    start: Callable[[PyTree], PyTree] | None = None
    follow: Callable[[PyTree, Mapping[str, jax.Array], PyTree], PyTree] | None = None
    player: Network = "discriminator"
    networks: tuple[str, ...] = ()
    lipschitz: bool = False
    augmented: bool = False
    single: bool = False


def _slopes(case: Case, x: jax.Array) -> jax.Array:
    """Squared norm of the gradient of each logit with respect to its own example: [B]."""
    # Examples are judged together, so a batch norm in the discriminator would mix them.
    gradient = jax.grad(lambda x: case.judge(x, case.labels).sum())(x)
    gradient = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    return jnp.square(gradient).reshape(x.shape[0], -1).sum(-1)


def _norms(case: Case, x: jax.Array) -> jax.Array:
    # The derivative of a square root is infinite at 0.
    return jnp.sqrt(_slopes(case, x) + 1e-12)


def _each(share: jax.Array, x: jax.Array) -> jax.Array:
    """share [B] as [B, 1, ...] for x [B, ...]."""
    return share.reshape(-1, *(1,) * (x.ndim - 1))


def _between(case: Case) -> jax.Array:
    """A point of each segment from a fake image to a real one, uniformly."""
    share = _each(jax.vmap(jax.random.uniform)(case.keys), case.real)
    return share * case.real + (1 - share) * case.fake


def _lazy(name: str, penalty: Callable[[Case], jax.Array], every: int) -> Regulariser:
    """A penalty on slopes, every so many steps of the discriminator and as many times as large.

    Which is the penalty on average (Karras et al. 2020, StyleGAN2, section 3.1).
    """
    if every < 1:
        raise invalid(f"method.regularisers.{name}.every", every, "steps >= 1")
    if every == 1:
        return Regulariser(name, penalty=penalty, single=True)

    def due(case: Case) -> jax.Array:
        none = lambda: jnp.zeros(())
        return jax.lax.cond(case.state % every == 0, lambda: every * penalty(case), none)

    return Regulariser(
        name,
        penalty=due,
        start=lambda params: jnp.zeros((), jnp.int32),
        follow=lambda count, metrics, params: count + 1,
        single=True,
    )


def r1(weight: float = 10.0, every: int = 1) -> Regulariser:
    """weight / 2 E |grad_x D(real)|^2 (Mescheder et al. 2018, eq. 9).

    every: only at every so many steps of the discriminator, and as many times as large.
    """
    _positive("r1.weight", weight)
    return _lazy("r1", lambda case: weight / 2 * _slopes(case, case.real).mean(), every)


def r2(weight: float = 10.0, every: int = 1) -> Regulariser:
    """weight / 2 E |grad_x D(fake)|^2 (Mescheder et al. 2018); every: as in `r1`."""
    _positive("r2.weight", weight)
    return _lazy("r2", lambda case: weight / 2 * _slopes(case, case.fake).mean(), every)


def zero_centred(weight: float = 10.0, every: int = 1) -> Regulariser:
    """R1 and R2 together: weight / 2 (E |grad_x D(real)|^2 + E |grad_x D(fake)|^2)."""
    _positive("zero_centred.weight", weight)
    both = lambda case: _slopes(case, case.real).mean() + _slopes(case, case.fake).mean()
    return _lazy("zero_centred", lambda case: weight / 2 * both(case), every)


def gradient_penalty(weight: float = 10.0, target: float = 1.0) -> Regulariser:
    """weight E (|grad_x D| - target)^2 between real and fake (Gulrajani et al. 2017, eq. 3)."""
    _positive("gradient_penalty.weight", weight)

    def penalty(case: Case) -> jax.Array:
        norm = _norms(case, _between(case))
        return weight * jnp.square(norm - target).mean()

    return Regulariser("gradient_penalty", penalty=penalty, lipschitz=True, single=True)


def max_gradient_penalty(weight: float = 1.0) -> Regulariser:
    """weight max |grad_x D|^2 over points between real and fake (Zhou et al. 2019, MaxGP).

    Of a batch the steepest point stands for the Lipschitz constant.
    """
    _positive("max_gradient_penalty.weight", weight)
    return Regulariser(
        "max_gradient_penalty",
        penalty=lambda case: weight * _slopes(case, _between(case)).max(),
        lipschitz=True,
        single=True,
    )


def dragan(weight: float = 10.0, scale: float = 0.5) -> Regulariser:
    """weight E (|grad_x D| - 1)^2 around real images (Kodali et al. 2017).

    Around: a share, uniform for each image, of noise that is uniform on [0, 1] times `scale` times
    the batch's standard deviation, as in the authors' code.
    """
    _positive("dragan.weight", weight)
    _positive("dragan.scale", scale)

    def penalty(case: Case) -> jax.Array:
        def noise(key: jax.Array) -> jax.Array:
            a, b = jax.random.split(key)
            return jax.random.uniform(a) * jax.random.uniform(b, case.real.shape[1:])

        near = case.real + scale * case.real.std() * jax.vmap(noise)(case.keys)
        return weight * jnp.square(_norms(case, near) - 1).mean()

    return Regulariser("dragan", penalty=penalty, single=True)


def _moved(case: Case, x: jax.Array) -> jax.Array:
    """E (D(augmented x) - D(x))^2."""
    assert case.augment is not None  # `adversarial` has refused
    moved = case.judge(case.augment(x, case.keys), case.labels)
    return jnp.square(moved - case.judge(x, case.labels)).mean()


def consistency(weight: float = 10.0) -> Regulariser:
    """weight E (D(augmented real) - D(real))^2 (Zhang et al. 2020, consistency regularisation)."""
    _positive("consistency.weight", weight)
    penalty = lambda case: weight * _moved(case, case.real)
    return Regulariser("consistency", penalty=penalty, augmented=True)


def balanced_consistency(real: float = 10.0, fake: float = 10.0) -> Regulariser:
    """`consistency` with weight `real` of real images, `fake` of fake ones (Zhao et al. 2021)."""
    _positive("balanced_consistency.real", real)
    _positive("balanced_consistency.fake", fake)
    penalty = lambda case: real * _moved(case, case.real) + fake * _moved(case, case.fake)
    return Regulariser("balanced_consistency", penalty=penalty, augmented=True)


def latent_consistency(
    discriminator: float = 5.0, generator: float = 0.5, deviation: float = 0.07
) -> Regulariser:
    """zCR (Zhao et al. 2021): latents moved a little are judged alike, and make other images.

    Discriminator: discriminator E (D(G(z)) - D(G(z + e)))^2; generator: -generator E |G(z) -
    G(z + e)|^2, a mean over an image's numbers; e normal with this deviation.
    """
    _positive("latent_consistency.discriminator", discriminator)
    _positive("latent_consistency.generator", generator)
    _positive("latent_consistency.deviation", deviation)

    def pair(case: Case) -> tuple[jax.Array, jax.Array]:
        assert case.generate is not None and case.z is not None
        draw = lambda key: jax.random.normal(key, case.z.shape[1:])
        return case.fake, case.generate(case.z + deviation * jax.vmap(draw)(case.keys))

    def penalty(case: Case) -> jax.Array:
        a, b = (case.judge(x, case.labels) for x in pair(case))
        return discriminator * jnp.square(a - b).mean()

    def apart(case: Case) -> jax.Array:
        a, b = pair(case)
        return -generator * jnp.square(a - b).mean()

    return Regulariser("latent_consistency", penalty=penalty, generator=apart)


def lecam(weight: float = 0.3, decay: float = 0.99) -> Regulariser:
    """weight (E (D(real) - a_fake)^2 + E (D(fake) - a_real)^2) (Tseng et al. 2021).

    a_real, a_fake: running averages of the logits of real and fake images, 0 at first; they follow
    after each step.
    """
    _positive("lecam.weight", weight)
    if not 0 <= decay < 1:
        raise invalid("method.regularisers.lecam.decay", decay, "0 <= decay < 1")

    def penalty(case: Case) -> jax.Array:
        assert case.logits is not None
        real, fake = case.logits
        anchored = jnp.square(real - case.state["fake"]).mean()
        return weight * (anchored + jnp.square(fake - case.state["real"]).mean())

    def follow(state: PyTree, metrics: Mapping[str, jax.Array], params: PyTree) -> PyTree:
        return {k: decay * a + (1 - decay) * metrics[f"{k}_logit"] for k, a in state.items()}

    start = lambda params: {"real": jnp.zeros(()), "fake": jnp.zeros(())}
    return Regulariser("lecam", penalty=penalty, start=start, follow=follow)


def feature_matching(weight: float = 1.0) -> Regulariser:
    """weight |E f(real) - E f(fake)|^2 of the discriminator's features, added to the generator's.

    Salimans et al. 2016, section 3.1, where it stands alone.
    """
    _positive("feature_matching.weight", weight)

    def penalty(case: Case) -> jax.Array:
        assert case.features is not None
        real, fake = (case.features(x, case.labels).mean(0) for x in (case.real, case.fake))
        return weight * jnp.square(real - fake).sum()

    return Regulariser("feature_matching", generator=penalty)


def minibatch_discrimination(kernels: int = 50, width: int = 5) -> Regulariser:
    """The layer `nn.gan_layers.MinibatchDiscrimination` before the head; its fields."""
    _positive("minibatch_discrimination.kernels", kernels)
    _positive("minibatch_discrimination.width", width)
    return Regulariser("minibatch_discrimination", layer=MinibatchDiscrimination(kernels, width))


def minibatch_deviation() -> Regulariser:
    """The layer `nn.gan_layers.MinibatchDeviation` before the head."""
    return Regulariser("minibatch_deviation", layer=MinibatchDeviation())


def top_k(share: float = 0.5, images: int = 50_000, decay: float = 0.99) -> Regulariser:
    """The generator learns of the k fake images of the highest logits alone (Sinha et al. 2020).

    k: the batch's size at first, times `decay` every `images` images, at least `share` of it.
    """
    if not (0 < share <= 1 and images > 0 and 0 < decay < 1):
        given = dict(share=share, images=images, decay=decay)
        allowed = "0 < share <= 1, images > 0, 0 < decay < 1"
        raise invalid("method.regularisers.top_k", given, allowed)

    def select(logits: jax.Array, seen: jax.Array) -> jax.Array:
        kept = jnp.maximum(share, decay ** jnp.floor(seen / images))
        k = jnp.maximum(jnp.round(kept * len(logits)), 1)
        rank = jnp.argsort(jnp.argsort(-jax.lax.stop_gradient(logits)))
        return (rank < k) / k

    return Regulariser("top_k", select=select)


def latent_optimisation(rate: float = 0.9, damping: float = 5.0) -> Regulariser:
    """z + rate g / (damping + |g|^2), g the gradient of D(G(z)) in z (Wu et al. 2019, LOGAN).

    The natural gradient's step, each change clipped to [-1, 1], while
    training; both players' gradients pass through it. Samples are of plain latents.
    """
    _positive("latent_optimisation.rate", rate)
    _positive("latent_optimisation.damping", damping)

    def latent(z: jax.Array, judge: Callable[[jax.Array], jax.Array]) -> jax.Array:
        g = jax.grad(lambda z: judge(z).sum())(z)
        step = rate * g / (damping + jnp.square(g).sum(-1, keepdims=True))
        return z + jnp.clip(step, -1, 1)

    return Regulariser("latent_optimisation", latent=latent, single=True)


def path_length(weight: float = 2.0, every: int = 4, decay: float = 0.99) -> Regulariser:
    """weight E (|J^T y| - a)^2, J of images by styles, y noise (Karras et al. 2020, eq. 4).

    |J^T y|: the root of the mean over layers of squared lengths, y normal over the root of the
    number of pixels. a: their running average, 0 at first. Every so many steps, and as many times
    as large. For generators with styles (`stylegan2.Generator`).
    """
    _positive("path_length.weight", weight)
    if every < 1 or not 0 <= decay < 1:
        allowed = "every >= 1, 0 <= decay < 1"
        raise invalid("method.regularisers.path_length", (every, decay), allowed)

    def penalty(case: Case) -> Any:
        if case.styled is None or case.z is None:
            given = "path_length with a generator without styles"
            raise invalid("method.regularisers", given, "stylegan2.Generator")
        styles, paint = case.styled(case.z)

        def due() -> tuple[jax.Array, jax.Array]:
            x = jax.eval_shape(paint, styles)
            y = normal(case.keys, x.shape[1:]) / math.sqrt(x.shape[1] * x.shape[2])
            slopes = jax.grad(lambda styles: (paint(styles) * y).sum())(styles)
            lengths = jnp.sqrt(jnp.square(slopes).sum(2).mean(1) + 1e-12)
            mean = jax.lax.stop_gradient(lengths.mean())
            a = decay * case.state["mean"] + (1 - decay) * mean
            return every * weight * jnp.square(lengths - a).mean(), mean

        rest = lambda: (jnp.zeros(()), case.state["mean"])
        value, mean = jax.lax.cond(case.state["count"] % every == 0, due, rest)
        return value, {"path": mean}

    def follow(state: PyTree, metrics: Mapping[str, jax.Array], params: PyTree) -> PyTree:
        mean = decay * state["mean"] + (1 - decay) * metrics["path"]
        return {"mean": mean, "count": state["count"] + 1}

    start = lambda params: {"mean": jnp.zeros(()), "count": jnp.zeros((), jnp.int32)}
    return Regulariser(
        "path_length", generator=penalty, start=start, follow=follow, player="generator"
    )


def historical_averaging(
    weight: float = 1.0, networks: tuple[Network, ...] = ("generator", "discriminator")
) -> Regulariser:
    """weight |params - mean of those after each update so far|^2 (Salimans et al. 2016, 3.3)."""
    _positive("historical_averaging.weight", weight)

    def penalty(params: PyTree, state: PyTree) -> jax.Array:
        apart = jax.tree.map(lambda w, mean: jnp.square(w - mean).sum(), params, state)
        return weight * sum(jax.tree.leaves(apart), jnp.zeros(()))

    def start(params: PyTree) -> PyTree:
        means = {n: jax.tree.map(jnp.copy, params[n]) for n in networks}
        return {"count": jnp.ones(()), **means}

    def follow(state: PyTree, metrics: Mapping[str, jax.Array], params: PyTree) -> PyTree:
        count = state["count"] + 1
        move = lambda mean, w: mean + (w - mean) / count
        return {"count": count, **{n: jax.tree.map(move, state[n], params[n]) for n in networks}}

    return Regulariser(
        "historical_averaging",
        weights=penalty,
        start=start,
        follow=follow,
        player="generator",
        networks=networks,
    )


def clip(bound: float = 0.01) -> Regulariser:
    """Every weight of the discriminator clipped to [-bound, bound] (Arjovsky et al. 2017)."""
    _positive("clip.bound", bound)

    def project(params: PyTree) -> PyTree:
        return jax.tree.map(lambda w: jnp.clip(w, -bound, bound), params)

    return Regulariser("clip", project=project, lipschitz=True)


def orthogonal(weight: float = 1e-4, networks: tuple[Network, ...] = ("generator",)) -> Regulariser:
    """weight sum |W'W x (1 - I)|^2 over kernels W [fan_in, features] (Brock et al. 2019, eq. 3).

    x is by element, so the columns' lengths are free. Label embeddings are left out.
    """
    _positive("orthogonal.weight", weight)

    def penalty(params: PyTree, state: PyTree = None) -> jax.Array:
        total = jnp.zeros(())
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if leaf.ndim < 2 or path[-1].key != "kernel":
                continue
            matrix = leaf.reshape(-1, leaf.shape[-1])
            gram = matrix.T @ matrix
            total += jnp.square(gram * (1 - jnp.eye(len(gram)))).sum()
        return weight * total

    return Regulariser("orthogonal", weights=penalty, networks=networks)


def _positive(option: str, value: float) -> None:
    if value <= 0:
        raise invalid(f"method.regularisers.{option}", value, "a number > 0")
