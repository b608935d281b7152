"""What the laws share: their names in messages, methods of strangers, and too few devices."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import pytest

from jaxgen import testing
from jaxgen.errors import UsageError
from jaxgen.method import TrainState

TARGET = jnp.array([1.0, -2.0])


def stranger(frozen=TARGET, rate=0.1):
    """Descent to the frozen arrays, by an update that takes them as an argument."""

    def init(key):
        del key
        zeros = jnp.zeros(2)
        return TrainState(jnp.zeros((), jnp.int32), {"x": zeros}, (), {"mean": {"x": zeros}})

    def update(state, batch, key, frozen):
        del key
        gap = state.params["x"] - frozen * batch["scale"].mean()
        params = {"x": state.params["x"] - rate * gap}
        mean = {"x": 0.9 * state.ema["mean"]["x"] + 0.1 * params["x"]}
        new = TrainState(state.step + 1, params, (), {"mean": mean})
        return new, {"loss": (gap**2).sum()}

    return types.SimpleNamespace(init=init, update=update, frozen=frozen)


BATCHES = [{"scale": jnp.ones(8)}] * 4


def test_a_strangers_method_with_frozen_arrays_obeys_the_laws():
    testing.check_method(stranger, BATCHES, jax.random.key(0), random=False, falls=0.1)
    assert testing.check_loss_falls(stranger(), BATCHES, jax.random.key(0), floor=0.0) >= 0


def test_a_loss_below_its_floor_is_a_broken_law():
    with pytest.raises(AssertionError, match="law 'the loss falls': .* is under its floor 1"):
        testing.check_loss_falls(stranger(), BATCHES, jax.random.key(0), floor=1.0)


def test_a_method_that_does_not_draw_is_not_asked_to():
    with pytest.raises(AssertionError, match="law 'a step's randomness is its key'"):
        testing.check_steps(stranger(), BATCHES, jax.random.key(0))


def test_devices_that_are_not_there_are_a_usage_error():
    with pytest.raises(UsageError, match="XLA_FLAGS=--xla_force_host_platform_device_count=9"):
        testing.check_devices(stranger(), BATCHES, jax.random.key(0), devices=9)


def test_the_innermost_law_stands_in_the_message_and_other_errors_pass_through():
    with (
        pytest.raises(AssertionError, match=r"^law 'inner': no$"),
        testing.law("outer"),
        testing.law("inner"),
    ):
        raise AssertionError("no")
    with pytest.raises(KeyError), testing.law("outer"):
        raise KeyError("a piece's own")


@testing.law("a decorated function holds one law")
def broken(value):
    assert value, "it was false"


def test_a_law_decorates():
    broken(True)
    for _ in range(2):
        with pytest.raises(AssertionError, match="law 'a decorated .* one law': it was false"):
            broken(False)
