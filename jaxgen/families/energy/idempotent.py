"""`idempotent`: a network that maps noise to data and data to itself, in one call.

Shocher et al., "Idempotent Generative Network" (2023). The energy of y is how far f moves it,
D(y, f(y)): data have none, f takes its own samples where they have none, and what is not data gets
much.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgen.errors import invalid
from jaxgen.method import Averages, Batch, Method, Sampler, Spec, method_of, single
from jaxgen.method.streams import NOISE, dropout_key, example_keys, fold, normal

PyTree = Any


def idempotent(
    spec: Spec,
    model: Any,
    optimizer: optax.GradientTransformation,
    averages: Averages,
    *,
    reconstruction: float = 20.0,
    idempotence: float = 20.0,
    tightness: float = 2.5,
    clamp: float = 1.5,
    accumulate: int = 1,
) -> Method:
    """Train f(., label) so that f(x) = x for data, f(f(z)) = f(z) for noise, and for little else.

    model: a denoiser's network (`dit.DiT`, `unet.UNet`, `mlp.MLP`), whose noise level is 1
    throughout; without labels where its data have one. D is the mean absolute difference. Weights
    are the paper's (section 3.2): of D(f(x), x); of D(f(f(z)), f(z)), which moves f(z) alone; and
    of its negative at the same f(z), which moves what f makes of it alone, in the smooth bound
    a tanh(. / a) with a = `clamp` times the first.

    Sampling: `steps` times f, 1 of noise; the second takes what is not data yet nearer to them.
    Raises UsageError for data that are no images, and for weights out of range.
    """
    weights = (reconstruction, idempotence, tightness, clamp)
    if min(weights[:2]) <= 0 or tightness < 0 or clamp <= 0:
        raise invalid("method.reconstruction", weights, "weights > 0 (tightness >= 0), clamp > 0")
    if spec.tokens or spec.target is not None:
        raise invalid("config.data.source", "examples that are no images", "images")
    if getattr(model, "out_channels", spec.shape[-1]) != spec.shape[-1]:
        model = model.clone(out_channels=spec.shape[-1])

    def moved(params: PyTree, x: jax.Array, labels: Any, **options: Any) -> jax.Array:
        """f(x) [B, ...]."""
        out: Any = model.apply({"params": params["net"]}, x, jnp.ones(len(x)), labels, **options)
        return out

    def apart(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.abs(x - y).mean(tuple(range(1, x.ndim)))

    def loss(params: PyTree, batch: Batch, key: jax.Array, extra: PyTree) -> Any:
        keys, labels = example_keys(key, batch), batch["label"]
        x, z = batch["image"].astype(jnp.float32), normal(fold(keys, NOISE), spec.shape)
        options: Any = dict(train=True, rngs={"dropout": dropout_key(key, batch)})
        held = jax.lax.stop_gradient(params)
        made = moved(params, z, labels, **options)
        still = jax.lax.stop_gradient(made)
        rec = apart(moved(params, x, labels, **options), x)
        idem = apart(moved(held, made, labels, **options), made)
        tight = -apart(moved(params, still, labels, **options), still)
        bound = jax.lax.stop_gradient(clamp * rec) + 1e-12
        value = reconstruction * rec + idempotence * idem
        value += tightness * bound * jnp.tanh(tight / bound)
        metrics = {"reconstruction": rec.mean(), "idempotence": idem.mean()}
        return value.mean(), (metrics, extra)

    def fresh(key: jax.Array) -> tuple[dict[str, PyTree], PyTree]:
        inputs = jnp.zeros((1, *spec.shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
        return {"net": model.init(key, *inputs)["params"]}, ()

    def sampler(*, steps: int = 1) -> Sampler:
        """f of noise, `steps` times."""
        if steps < 1:
            raise invalid("sample.steps", steps, "steps >= 1")

        def fn(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
            x = normal(fold(keys, NOISE), spec.shape)
            again = lambda x, _: (moved(params, x, labels), None)
            return jax.lax.scan(again, x, length=steps)[0]

        return Sampler(fn, calls=float(steps), steps=steps)

    training = single(loss, fresh, optimizer, averages, accumulate=accumulate)
    return method_of(spec, training, sampler=sampler)
