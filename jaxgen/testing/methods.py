"""Laws of a Method: training goes on after a restart, and on many devices, as if nothing were."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen import mesh as meshes
from jaxgen.errors import invalid
from jaxgen.method import Method, TrainState
from jaxgen.testing.functions import ROUNDING, plain, quick_jit, same_bits, traced_once
from jaxgen.testing.naming import law

PyTree = Any
Batch = Mapping[str, Any]
Update = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]

COUNTED = "steps are counted"
STRUCTURE = "a step keeps the structure of its state"
PROGRAM = "one program takes all steps"
FINITE = "metrics are finite numbers, a loss among them"
FALLS = "the loss falls"
KEY = "a step's randomness is its key"
AVERAGES = "averages are averages of the parameters"
RESUME = "k steps, a restart and N - k steps are N steps, bit for bit"
DEVICES = "a step on many devices is the step on one"


def check_method(
    build: Callable[[], Method],
    batches: Sequence[Batch],
    key: jax.Array,
    *,
    random: bool = True,
    falls: float | None = 1.0,
    devices: int = 8,
) -> None:
    """A method's laws; build() -> Method, anew each time, as a restarted process builds it.

    What is no `Method` needs init and update, and a state with the fields of `TrainState`. Where a
    method has a field `frozen`, update takes it as a fourth argument.

    batches: four or more, of arrays [B, ...] with B a multiple of `devices`; training goes round
    them. Step n's key is fold_in(key, n). random: whether it claims to draw from that key. falls,
    devices: see `check_loss_falls` (None: not asked) and `check_devices`.
    """
    check_steps(build(), batches, key, random=random)
    check_resume(build, batches, key)
    if falls is not None:
        check_loss_falls(build(), batches, key, below=falls)
    check_devices(build(), batches, key, devices=devices)


def check_steps(
    method: Method, batches: Sequence[Batch], key: jax.Array, *, random: bool = True
) -> None:
    """One program, a state of one structure, counted steps, finite metrics, honest averages."""
    step = _update(method)
    states = [quick_jit(method.init)(key)]
    with law(STRUCTURE):
        after = jax.eval_shape(step, states[0], batches[0], key)[0]
        chex.assert_trees_all_equal_structs(states[0], after)
        chex.assert_trees_all_equal_shapes_and_dtypes(states[0], after)
    with law(PROGRAM):
        once = quick_jit(traced_once(step))
        for n, batch in enumerate(batches[:4]):
            state, metrics = once(states[-1], batch, jax.random.fold_in(key, n))
            states.append(state)
    with law(COUNTED):
        counts = [int(s.step) for s in states]
        assert counts == list(range(len(states))), f"state.step went {counts}"
    with law(FINITE):
        assert "loss" in metrics, f"metrics are {sorted(metrics)}"
        for name, value in metrics.items():
            chex.assert_shape(value, ())
            assert jnp.isfinite(value), f"{name} is {value}"
    with law(KEY):
        start, batch = states[0], batches[0]
        same_bits(once(start, batch, jax.random.fold_in(key, 0))[0], states[1])
        if random:
            other = once(start, batch, jax.random.fold_in(key, 1))[0]
            assert not _equal(other.params, states[1].params), "another key, the same step"
    _check_averages(states)


@law(AVERAGES)
def _check_averages(states: Sequence[TrainState]) -> None:
    """Equal to the parameters at first; then each number within those that it averages."""
    for name, first in states[0].ema.items():
        same_bits(first, states[0].params)
        history = [jax.tree.map(np.asarray, s.params) for s in states]
        low, high = (jax.tree.map(lambda *a, f=f: f(a, 0), *history) for f in (np.min, np.max))
        last = states[-1].ema[name]
        assert not _equal(last, first), f"{name} stays what it was"
        for a, least, most in zip(*map(jax.tree.leaves, (last, low, high)), strict=True):
            room = ROUNDING * (1 + np.abs(a))
            inside = (a >= least - room) & (a <= most + room)
            assert inside.all(), f"{name} leaves the range of the parameters so far"


@law(RESUME)
def check_resume(build: Callable[[], Method], batches: Sequence[Batch], key: jax.Array) -> None:
    """Two steps, the state as arrays on the host, a new method, two steps: the bits of four.

    Whatever an update remembers outside of its state is lost between, as in a restart.
    """
    method = build()
    start = quick_jit(method.init)(key)
    whole = _train(method, start, batches[:4], key)
    half = jax.tree.map(_host, _train(method, start, batches[:2], key))
    resumed = _train(build(), half, batches[2:4], key, first=2)
    same_bits(resumed, whole)


@law(FALLS)
def check_loss_falls(
    method: Method,
    batches: Sequence[Batch],
    key: jax.Array,
    *,
    steps: int = 50,
    below: float = 1.0,
    floor: float = -math.inf,
) -> float:
    """The loss, a mean over the batches, after `steps` steps is under `below` times what it was.

    With the same keys before and after. floor: what it cannot be under, where that is known (the
    data's entropy, the least squared error). Returns the last loss.
    """
    step = quick_jit(_update(method))
    start = quick_jit(method.init)(key)
    end = _train(method, start, [batches[n % len(batches)] for n in range(steps)], key)

    def loss(state: TrainState) -> float:
        every = (step(state, b, jax.random.fold_in(key, n))[1] for n, b in enumerate(batches))
        return float(np.mean([metrics["loss"] for metrics in every]))

    before, after = loss(start), loss(end)
    bound = before - (1 - below) * abs(before)
    assert after < bound, f"{before:.4g}, and {after:.4g} after {steps} steps; allowed: {bound:.4g}"
    assert after >= floor, f"{after:.4g} after {steps} steps is under its floor {floor:.4g}"
    return after


@law(DEVICES)
def check_devices(
    method: Method,
    batches: Sequence[Batch],
    key: jax.Array,
    *,
    devices: int = 8,
    tolerance: float = ROUNDING,
) -> None:
    """Three steps with the batch cut over so many devices are those on one, up to rounding.

    As XLA partitions it and, where the method says that it is `separable`, with each device at its
    own part (`shard_map` along the axis `data`). tolerance: of each leaf's largest number; use
    plain descent, since Adam makes a step of the rounding of a gradient that is zero. Raises
    UsageError where there are not so many devices.
    """
    if len(jax.devices()) < devices:
        raise invalid(
            "check_devices", f"{len(jax.devices())} devices", f"{devices} or more",
            f"Set XLA_FLAGS=--xla_force_host_platform_device_count={devices} before JAX starts.",
        )  # fmt: skip
    start, step = jax.device_get(quick_jit(method.init)(key)), _update(method)
    expected = _train(method, start, batches[:3], key)
    chosen = np.asarray(jax.devices()[:devices]).reshape(-1, *[1] * (len(meshes.AXES) - 1))
    mesh = Mesh(chosen, meshes.AXES)
    whole, cut = PartitionSpec(), PartitionSpec("data")
    programs = {"jit": meshes.within(meshes.Layout(mesh), step)}
    if getattr(method, "separable", False):
        programs["shard_map"] = jax.shard_map(
            step, mesh=mesh, in_specs=(whole, cut, whole), out_specs=(whole, whole), check_vma=False
        )
    for name, program in programs.items():
        run = quick_jit(program, out_shardings=NamedSharding(mesh, whole))
        state = jax.device_put(start, NamedSharding(mesh, whole))
        for n, batch in enumerate(batches[:3]):
            batch = jax.device_put(dict(batch), NamedSharding(mesh, cut))
            state, _ = run(state, batch, jax.random.fold_in(key, n))
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
            actual, right = plain(a), plain(b)
            room = tolerance * max(np.abs(right).max(initial=0), 1)
            np.testing.assert_allclose(
                actual, right, rtol=tolerance, atol=room, err_msg=f"by {name} on {devices} devices"
            )


def _update(method: Method) -> Update:
    """The method's update, with its frozen arrays where it has such."""
    frozen = getattr(method, "frozen", None)
    update: Any = method.update
    if not jax.tree.leaves(frozen):
        return update
    return lambda state, batch, key: update(state, batch, key, frozen)


def _train(
    method: Method, state: TrainState, batches: Sequence[Batch], key: jax.Array, first: int = 0
) -> TrainState:
    """The state after one step on each batch, in one compiled program."""
    step = quick_jit(_update(method))
    for n, batch in enumerate(batches, first):
        state, _ = step(state, batch, jax.random.fold_in(key, n))
    return state


def _host(a: jax.Array) -> Any:
    """A copy in the host's memory; typed keys stay what they are."""
    return a if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else np.array(a)


def _equal(first: PyTree, second: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(plain(a), plain(b)) for a, b in pairs)
