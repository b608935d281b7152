"""Distribution matching: a student that draws in a call or a few what its teacher draws in many.

The student's samples, noised, are compared with the teacher's law: by the difference of the
teacher's score and that of a second network, the fake score, which learns the student's own law as
it moves. Yin et al., "Improved Distribution Matching Distillation" (2024); Xu et al. 2025 for other
divergences ("f-distill"); Luo et al., "One-Step Diffusion Distillation through Score Implicit
Matching" (2024); He et al., "Towards Training One-Step Diffusion Models Without Distillation"
(2025), where a critic's ratio takes the place of both scores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.distill.divergence import WEIGHTS, weight
from jaxgen.distill.student import denoisers, renoising, says
from jaxgen.errors import invalid, unknown
from jaxgen.families.diffusion.core.path import Path, expand
from jaxgen.families.diffusion.core.prediction import to_prediction
from jaxgen.families.diffusion.core.sampler import prior
from jaxgen.method import (
    Batch,
    Learner,
    Method,
    Spec,
    frozen_with,
    only_learner,
    retrained,
    teacher_of,
)
from jaxgen.method.streams import (
    LABEL,
    NOISE,
    OTHER,
    STEPS,
    TIME,
    drop_labels,
    example_keys,
    fold,
    normal,
)

PyTree = Any
DRAWS, COMPARED = 2**32 - 4, 2**32 - 5
"""Of a learner's key: what the student draws, and what is drawn to compare its samples."""

BY = ("score", "implicit", "ratio")


class Critic(nn.Module):
    """ln p(x) / q(x) of tokens [B, N, D] or [B, D]: a hidden layer, their mean, a number."""

    width: int = 128

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, (N,) D] -> [B]; 0 at first."""
        h = nn.LayerNorm()(
            tokens.astype(jnp.float32).reshape(tokens.shape[0], -1, tokens.shape[-1])
        )
        h = nn.silu(nn.Dense(self.width)(h)).mean(1)
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[:, 0]


def matching(
    method: Method,
    *,
    spec: Spec,
    networks: Mapping[str, Any],
    by: Literal["score", "implicit", "ratio"] = "score",
    calls: int = 1,
    guidance: float = 1.0,
    divergence: str = "reverse_kl",
    adversarial: float = 0.0,
    huber: float = 0.03,
    fake_steps: int = 4,
    label_dropout: float = 0.1,
    low: float = 0.02,
    high: float = 0.98,
    instead: Mapping[str, int | str] | None = None,
    teacher: str = "teacher",
) -> Method:
    """Train the model to draw in `calls` network calls what networks[teacher] draws.

    Start from the teacher, too (`config.start`); the fake score starts there by itself.

    by: "score", the teacher's score less the fake's, weighted for a `divergence` of
    `distill.divergence.WEIGHTS`; "implicit", a Pseudo-Huber distance of the two scores (of scale
    `huber` times the root of the dimension) through the samples; "ratio", the gradient of a
    critic's log-ratio of data to samples, without any score. calls: the student draws from noise,
    is noised again and draws again, at times 1, 1 - 1 / calls, ... (compared are the samples of all
    calls together). guidance: the teacher's weight,
    which the student then has without a second call. adversarial: weight of the critic's
    non-saturating loss. The critic reads the fake score's last tokens and sees the data; it is
    there for what needs it. fake_steps: of fake score and critic for each of the student, each on
    its share of the batch; with 1 they lag behind, and samples swing about the teacher's law.
    label_dropout: share of the student's samples without a label. Times of the comparison are
    uniform from `low` to `high`. instead: classes (by name, or number) for which the teacher is
    asked for another, so that the student forgets them, without data if by="implicit" (Chen et
    al., "Score Forgetting Distillation", 2024).

    Raises UsageError: no teacher; a divergence that there is not, or that "implicit" does not have;
    a network that cannot say an x0 of pure noise (prediction "eps" or "score").
    """
    needs = adversarial > 0 or by == "ratio" or divergence != "reverse_kl"
    _check(method, networks, teacher, by, calls, divergence, adversarial, low, high)
    if needs and instead:
        allowed = "none with a critic, which sees the data of the classes that are to be forgotten"
        raise invalid("distill.matching.instead", dict(instead), allowed)
    base, other = only_learner(method, "distill"), networks[teacher]
    asked = jnp.arange(spec.num_classes + 1)
    for word, other_class in (instead or {}).items():
        gone, kept = (spec.label(c, "distill.matching.instead") for c in (word, other_class))
        asked = asked.at[gone].set(kept)
    match = _Match(
        method, base, spec, by, calls, divergence, adversarial, huber, label_dropout,
        times=(low, high),
        critical=needs,
        teacher=lambda params, labels: other.method.sampler(guidance=guidance).denoiser(
            params["frozen"][teacher], asked[labels]
        ),
    )  # fmt: skip
    if needs and not match.tap:
        name = type(match.network.model).__name__
        raise invalid("config.model", name, "a stack of blocks (DiT, MLP), which a critic can read")
    learners = {
        "fake": Learner(
            loss=match.fake_loss,
            trains=("fake", "critic") if needs else ("fake",),
            steps=fake_steps,
            after=_after(base, "fake"),
        ),
        "net": Learner(loss=match.loss, trains=("net",), after=_after(base, "net")),
    }
    made = retrained(
        method,
        learners=learners,
        fresh=match.fresh,
        copies={**method.training.copies, "fake": "net"},
        averaged=("net",),
        frozen=frozen_with(method, spec, networks, teacher),
    )
    silent: dict[str, Any] = {"label_error": None, "log_prob": None, "likelihood": None}
    drawn = renoising(method, calls)
    return dataclasses.replace(made, sampler=drawn, separable=False, train_flops=None, **silent)


@dataclasses.dataclass(frozen=True, eq=False)
class _Match:
    """The losses of student and fake score; fields as `matching`'s.

    teacher(params, labels) -> its denoiser. critical: whether there is a critic.
    """

    method: Method
    base: Learner
    spec: Spec
    by: str
    calls: int
    divergence: str
    adversarial: float
    huber: float
    label_dropout: float
    times: tuple[float, float]
    critical: bool
    teacher: Callable[[PyTree, Any], Any]
    critic: Critic = Critic()

    @functools.cached_property
    def network(self) -> Any:
        """Whose parameters student and fake score are."""
        return denoisers(self.method)(guidance=())(None, None).network

    @property
    def path(self) -> Path:
        """Its path."""
        path: Path = self.network.path
        return path

    @property
    def tap(self) -> int:
        """After how many blocks the critic reads; 0: none can be read."""
        return getattr(self.network.model, "depth", 0)

    def draws(self, params: PyTree, batch: Batch, key: jax.Array) -> tuple[jax.Array, ...]:
        """(x0 of the student, labels, t, eps): differentiable in the student's last call."""
        spec, (low, high) = self.spec, self.times
        keys, own = (example_keys(jax.random.fold_in(key, n), batch) for n in (DRAWS, COMPARED))
        labels = drop_labels(fold(own, LABEL), batch["label"], self.label_dropout, spec.null_label)
        t = low + (high - low) * jax.vmap(jax.random.uniform)(fold(own, TIME))
        student = denoisers(self.method)(guidance=())(params, labels)
        says_x0 = lambda x, t: says(student, x, t).x0
        x0 = generated(says_x0, self.path, keys, spec.shape, self.calls)
        return x0, labels, t, normal(fold(own, NOISE), spec.shape)

    def told(self, params: PyTree, x: jax.Array, t: jax.Array, labels: Any) -> tuple[Any, Any]:
        """What fake score and critic say of x [B, ...] at t [B]: (x0, ln r or None)."""
        net, taps = self.network, (self.tap,) if self.critical else ()
        out, _, tokens = net.tapped(params["fake"], x, t, labels, None, taps)
        x0 = to_prediction(net.kind, out, x, t, self.path, sigma_data=net.sigma_data).x0
        if not self.critical:
            return x0, None
        return x0, self.critic.apply({"params": params["critic"]}, tokens[self.tap])

    def fake_loss(self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        """The method's own loss on the student's samples, and the critic's."""
        x0, labels, t, eps = jax.lax.stop_gradient(self.draws(params, batch, key))
        known = {**params, "net": params["fake"]}
        made = {**batch, "image": x0, "label": labels}
        value, (metrics, extra) = self.base.loss(known, made, key, extra)
        if self.critical:
            real, fake = (
                self.told(params, self.path.mix(x, eps, t), t, labels)[1]
                for x in (batch["image"], x0)
            )
            judged = (jax.nn.softplus(-real) + jax.nn.softplus(fake)).mean()
            value, metrics = value + judged, {**metrics, "critic": judged}
        return value, ({f"fake_{k}": v for k, v in metrics.items()}, extra)

    def loss(self, params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        """The student's: its samples are drawn to the teacher's law."""
        path, (x0, labels, t, eps) = self.path, self.draws(params, batch, key)
        x = path.mix(x0, eps, t)
        fixed = jax.lax.stop_gradient({k: v for k, v in params.items() if k != "net"})
        metrics = {}
        ours, log_ratio = self.told(fixed, x, t, labels)
        h = weight(self.divergence, log_ratio) if self.critical else jnp.ones_like(t)
        if self.by == "ratio":
            ascent = jax.grad(lambda x: self.told(fixed, x, t, labels)[1].sum())(x)
            # In units of x0, as the two others: (sigma^2 / alpha) grad ln r.
            pull = expand(path.sigma(t) ** 2 / path.alpha(t), x) * ascent
            value = matched(x0, pull, jnp.ones_like(t), h).mean()
        else:
            theirs = says(self.teacher(fixed, labels), x, t).x0
            scale = _mean(jnp.abs(jax.lax.stop_gradient(x0 - theirs))) + 1e-6
            if self.by == "implicit":
                value = implicit(x0, ours, theirs, scale, self.huber).mean()
            else:
                value = matched(x0, theirs - ours, scale, h).mean()
        if self.adversarial:
            fooled = jax.nn.softplus(-log_ratio).mean()
            value, metrics = value + self.adversarial * fooled, {"adversarial": fooled}
        return value, (metrics, extra)

    def fresh(self, key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        """The method's first parameters, and the critic's."""
        params, extra = self.method.training.fresh(key)
        if self.critical:
            x, t = jnp.zeros((1, *self.spec.shape)), jnp.ones(1)
            labels = jnp.zeros(1, jnp.int32)
            tokens = self.network.tapped(params["net"], x, t, labels, None, (self.tap,))[2]
            key = jax.random.fold_in(key, DRAWS)
            params = {**params, "critic": self.critic.init(key, tokens[self.tap])["params"]}
        return params, extra


def generated(
    student: Callable[[jax.Array, jax.Array], jax.Array],
    path: Path,
    keys: jax.Array,
    shape: tuple[int, ...],
    calls: int,
) -> jax.Array:
    """x0 [B, *shape] that student(x, t) -> x0 says at one of its `calls` times, drawn evenly.

    What it is given there it has itself drawn at the earlier times (Yin et al. 2024, sec. 4.5), as
    `solvers.renoise` does; the gradient is of its last call alone.
    """
    x = first = prior(path, keys, shape)
    t = jnp.ones(keys.shape[0])
    if calls > 1:
        last = jax.vmap(lambda k: jax.random.randint(k, (), 0, calls))(fold(keys, OTHER))

        def step(state: tuple[jax.Array, jax.Array], n: jax.Array) -> Any:
            x, kept = state
            x0 = student(x, jnp.full(keys.shape[0], 1 - n / calls))
            noise = normal(fold(fold(fold(keys, STEPS), n), NOISE), shape)
            x = path.mix(x0, noise, 1 - (n + 1) / calls)
            return (x, jnp.where(expand(last == n + 1, x), x, kept)), None

        (_, x), _ = jax.lax.scan(step, (first, first), jnp.arange(calls - 1))
        x, t = jax.lax.stop_gradient(x), 1 - last / calls
    return student(x, t)


def matched(x0: jax.Array, pull: jax.Array, scale: jax.Array, h: jax.Array) -> jax.Array:
    """[B] whose gradient in x0 [B, ...] is -h pull / scale, each held; a mean over elements.

    Its value is half the square of that step.
    """
    step = jax.lax.stop_gradient(expand(h / scale, x0) * pull)
    return _mean((x0 - jax.lax.stop_gradient(x0) - step) ** 2) / 2


def implicit(
    x0: jax.Array, ours: jax.Array, theirs: jax.Array, scale: jax.Array, huber: float
) -> jax.Array:
    """Score implicit matching [B] (Luo et al. 2024, eq. 3.7), in units of x0.

    With y = ours - theirs, of fake and teacher at the noised x0, and the Pseudo-Huber distance
    d(y) = sqrt(|y|^2 + c^2) - c: d'(y) . (x0 - ours) / scale. All but the law that x0 is drawn
    from is differentiated: the two networks too, through what they are given.
    """
    y = (ours - theirs).reshape(x0.shape[0], -1)
    c = huber * y.shape[1] ** 0.5
    direction = y / jnp.sqrt((y**2).sum(1, keepdims=True) + c**2)
    off = (x0 - ours).reshape(x0.shape[0], -1)
    return (direction * off).sum(1) / (scale * y.shape[1] ** 0.5)


def _after(base: Learner, group: str) -> Any:
    """What the method does to its network after each step, for one of the two networks."""
    known = base.after
    if known is None:
        return None

    def after(params: PyTree, extra: PyTree, metrics: Any) -> Any:
        done, extra, metrics = known({**params, "net": params[group]}, extra, metrics)
        return {**params, group: done["net"]}, extra, metrics

    return after


def _mean(a: jax.Array) -> jax.Array:
    """[B, ...] -> [B]."""
    return a.reshape(a.shape[0], -1).mean(1)


def _check(
    method: Method,
    networks: Mapping[str, Any],
    teacher: str,
    by: str,
    calls: int,
    divergence: str,
    adversarial: float,
    low: float,
    high: float,
) -> None:
    """Refuse values out of range, and a network that cannot begin at noise."""
    teacher_of(networks, teacher, "distill.matching")
    if by not in BY:
        raise unknown("distill.matching.by", by, BY)
    if divergence not in WEIGHTS:
        raise unknown("distill.matching.divergence", divergence, WEIGHTS)
    if by == "implicit" and divergence != "reverse_kl":
        allowed = "'reverse_kl' (none) with by='implicit', which has a distance of its own"
        raise invalid("distill.matching.divergence", divergence, allowed)
    if calls < 1 or adversarial < 0:
        given = (calls, adversarial)
        raise invalid("distill.matching", given, "calls >= 1 and adversarial >= 0")
    if not 0 < low < high < 1:
        raise invalid("distill.matching", (low, high), "0 < low < high < 1")
    kind = denoisers(method)(guidance=())(None, None).network.kind
    if kind in ("eps", "score"):
        allowed = "x0, v, velocity or edm: noise alone says nothing of an x0 by eps"
        raise invalid("method.prediction", kind, allowed)
