"""Learners on quadratic losses: every update against its closed form, by gradient descent."""

import dataclasses
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.method import (
    Learner,
    Method,
    Sampler,
    Spec,
    Training,
    example_keys,
    learn,
    learning,
    method_of,
    minimise,
    normal,
    on_params,
    only_learner,
    retrained,
    single,
)
from jaxgen.training.ema import Averages

RATE, A, B = 0.25, 3.0, -2.0
X = np.array([1.0, -2.0, 4.0, 0.5, 3.0, -1.0, 2.0, 6.0])
BATCH = {"image": jnp.asarray(X, jnp.float32), "label": jnp.zeros(8, jnp.int32)}
KEY = jax.random.key(0)
# A batch's half-life: averages are the mean of what they were and of the parameters.
HALF = Averages(half_life=(8,), ramp=None)


def toward(name, target, trains=(), **options):
    """A learner of the group `name`, with the loss (it - target(params, batch, extra))^2 / 2."""

    def loss(params, batch, key, extra):
        gap = params[name] - target(params, batch, extra)
        return (gap**2).mean() / 2, ({name: params[name]}, extra)

    return Learner(loss=loss, trains=trains or (name,), **options)


def to_data(name, **options):
    """A learner whose gradient is the parameter minus the mean of the examples it is given."""
    return toward(name, lambda params, batch, extra: batch["image"], **options)


def training(learners, *, groups=("a", "b"), extra=(), optimizer=None, **options):
    """A `Training` from a = 3 and b = -2."""
    start = {n: jnp.float32({"a": A, "b": B}.get(n, 0.0)) for n in groups}
    return Training(
        learners=learners,
        fresh=lambda key: (start, extra),
        optimizer=optax.sgd(RATE) if optimizer is None else optimizer,
        averages=HALF,
        **options,
    )


def after(made, *, batch=BATCH, updates=1, frozen=None):
    """(state, metrics) after updates on the same batch."""
    init, update = learn(made)
    state, update = init(KEY), jax.jit(update)
    for number in range(updates):
        state, metrics = update(state, batch, jax.random.fold_in(KEY, number), frozen)
    return state, metrics


def stepped(value, *targets, rate=RATE):
    """Gradient descent on (value - target)^2 / 2, once for each target."""
    for target in targets:
        value = value - rate * (value - target)
    return value


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


# Learners, one after the other.


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_learner_sees_the_steps_of_those_before_it(order):
    both = {"a": to_data("a"), "b": toward("b", lambda params, batch, extra: params["a"])}
    state, metrics = after(training({name: both[name] for name in order}))
    a = stepped(A, X.mean())
    seen = a if order == "ab" else A
    close(state.params["a"], a)
    close(state.params["b"], stepped(B, seen))
    norms = abs(A - X.mean()), abs(B - seen)
    close([metrics["a_grad_norm"], metrics["b_grad_norm"]], norms)
    close(metrics["grad_norm"], np.hypot(*norms))
    close(metrics["loss"], ((A - X) ** 2).mean() / 2 + (B - seen) ** 2 / 2)
    close([metrics["a"], metrics["b"]], [A, B])


def test_averages_are_of_what_an_update_leaves():
    state, _ = after(training({"a": to_data("a")}, averaged=("a",)))
    close(state.ema["half_life_8"]["a"], (A + stepped(A, X.mean())) / 2)
    assert set(state.ema["half_life_8"]) == {"a"} and int(state.step) == 1


def test_every_step_has_a_key_of_its_own_and_the_first_has_the_updates():
    def drawing(name, steps):
        def loss(params, batch, key, extra):
            drawn = jax.random.uniform(key)
            return (params[name] - drawn) ** 2 / 2, ({f"drawn_{name}": drawn}, extra)

        return Learner(loss=loss, trains=(name,), steps=steps)

    own = float(jax.random.uniform(jax.random.fold_in(KEY, 0)))
    one = after(training({"a": drawing("a", 1), "b": drawing("b", 1)}))[1]
    close(one["drawn_a"], own)
    # Two steps' mean, of which the first drew what it drew alone.
    two = after(training({"a": drawing("a", 2), "b": drawing("b", 1)}))[1]
    second = 2 * float(two["drawn_a"]) - own
    for drawn in ((own, one["drawn_b"]), (own, second, two["drawn_b"])):
        assert len({round(float(value), 4) for value in drawn}) == len(drawn)


def test_an_optimizer_for_each_learner():
    rates = {"a": optax.sgd(0.5), "b": optax.sgd(0.125)}
    learners = {"a": to_data("a"), "b": to_data("b")}
    state, _ = after(training(learners, optimizer=rates))
    close(state.params["a"], stepped(A, X.mean(), rate=0.5))
    close(state.params["b"], stepped(B, X.mean(), rate=0.125))
    with pytest.raises(UsageError, match=r"config\.optimizer"):
        learn(training(learners, optimizer={"a": optax.sgd(0.5)}))


# Several steps in an update.


def test_steps_are_on_shares_of_the_batch_and_schedules_count_updates():
    rate = optax.exponential_decay(RATE, transition_steps=1, decay_rate=0.5)
    made = training({"a": to_data("a", steps=2), "b": to_data("b")}, optimizer=optax.sgd(rate))
    state, metrics = after(made, updates=2)
    # Every second example from number p on is share p; one step takes the first.
    shares = X[0::2].mean(), X[1::2].mean()
    a = stepped(A, *shares)
    close(state.params["a"], stepped(a, *shares, rate=RATE / 2))
    close(state.params["b"], stepped(stepped(B, shares[0]), shares[0], rate=RATE / 2))
    counts = [s.count for s in jax.tree.leaves(state.opt_state, is_leaf=_counts) if _counts(s)]
    assert counts == [2, 2]
    # A learner's metrics are means over its steps.
    close(metrics["a"], (a + stepped(a, shares[0], rate=RATE / 2)) / 2)


def _counts(node):
    return isinstance(node, optax.ScaleByScheduleState)


def test_a_batch_is_a_multiple_of_steps_times_microbatches():
    made = training({"a": to_data("a", steps=2)}, accumulate=2)
    short = jax.tree.map(lambda x: x[:6], BATCH)
    with pytest.raises(UsageError, match="got 6; .*2 steps x 2 microbatches"):
        after(made, batch=short)


# Microbatches.


def test_microbatches_make_the_step_of_the_whole_batch():
    def loss(params, batch, key, extra):
        noise = normal(example_keys(key, batch), ())
        error = (params["a"] * batch["image"] + params["b"] - noise) ** 2
        return error.mean(), ({"noise": noise.mean()}, extra + 1)

    (whole, values), (parts, means) = (
        after(training({"net": Learner(loss=loss)}, extra=jnp.int32(0), accumulate=count))
        for count in (1, 4)
    )
    assert abs(whole.params["a"] - A) > 1
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-5)
    chex.assert_trees_all_close(means, values, rtol=1e-5)
    # What the state carries goes from one microbatch to the next.
    assert (int(whole.extra), int(parts.extra)) == (1, 4)


# What a loss moves by itself, and what follows a step.


def test_what_is_carried_is_moved_by_the_loss_alone():
    def loss(params, batch, key, extra):
        moved = (extra["mean"] + batch["image"].mean()) / 2
        kept = {**extra, "mean": moved, "calls": extra["calls"] + 1}
        return (params["a"] - moved) ** 2 / 2, ({}, kept)

    learners = {
        "a": Learner(loss=loss, trains=("a",), carries=("mean",)),
        "b": toward("b", lambda params, batch, extra: params["mean"]),
    }
    made = training(learners, groups=("a", "b", "mean"), extra={"calls": jnp.int32(0)},
                    optimizer=optax.sgd(RATE, momentum=0.9))  # fmt: skip
    state, _ = after(made)
    moved = X.mean() / 2
    close(state.params["mean"], moved)
    close(state.params["a"], A - RATE * (A - moved))
    close(state.params["b"], B - RATE * (B - moved))  # those after it see what it left
    assert state.extra.keys() == {"calls"} and int(state.extra["calls"]) == 1
    assert [set(s[0].trace) for s in state.opt_state.values()] == [{"a"}, {"b"}]
    assert made.trained == {"a", "b", "mean"}


def test_after_follows_each_step():
    def clip(params, extra, metrics):
        clipped = {**params, "a": jnp.minimum(params["a"], 2.0)}
        return clipped, extra + 1, {**metrics, "clipped": params["a"] - clipped["a"]}

    learner = to_data("a", steps=2, after=clip)
    state, metrics = after(training({"net": learner}, extra=jnp.int32(0)))
    first = stepped(A, X[0::2].mean())
    second = stepped(min(first, 2.0), X[1::2].mean())
    assert first > 2 > second  # so that clipping at the end alone would be another number
    close(state.params["a"], second)
    assert int(state.extra) == 2
    close(metrics["clipped"], (first - 2.0) / 2)


def test_project_is_applied_after_the_step_of_a_single_loss():
    learner = to_data("a")
    made = single(
        learner.loss, lambda key: ({"a": jnp.float32(A)}, ()), optax.sgd(RATE), HALF,
        project=lambda params: jax.tree.map(jnp.floor, params),
    )  # fmt: skip
    state, _ = after(made)
    close(state.params["a"], np.floor(stepped(A, X.mean())))
    close(state.ema["half_life_8"]["a"], (A + np.floor(stepped(A, X.mean()))) / 2)


# What comes before the steps.


def test_prepare_comes_first_and_without_a_gradient():
    def prepare(state, batch, key, frozen):
        # Moves with a: a gradient through it would point the other way.
        goal = frozen["times"] * state.params["a"]
        seen = state.replace(extra=state.extra + batch["seen"].max())
        return seen, {**batch, "goal": jnp.full(8, goal)}, {"drawn": jax.random.uniform(key)}

    learner = toward("a", lambda params, batch, extra: batch["goal"] + 0 * extra)
    made = training({"net": learner}, extra=jnp.float32(1), prepare=prepare,
                    frozen={"times": jnp.float32(2)})  # fmt: skip
    state, metrics = after(made, updates=2)
    close(state.params["a"], A * (1 + RATE) ** 2)
    close(state.extra, 1 + 0 + 8)  # kept from update to update
    close(metrics["drawn"], jax.random.uniform(jax.random.fold_in(KEY, 1)))


# What nobody trains.


@pytest.mark.parametrize("held", [jnp.float32(2), lambda: jnp.float32(2)], ids=["array", "loaded"])
def test_frozen_arrays_are_neither_trained_nor_averaged_nor_saved(held):
    def loss(params, batch, key, extra):
        return (params["a"] * params["frozen"]["scale"] - 1) ** 2 / 2, ({}, extra)

    rule = optax.sgd(RATE, momentum=0.9)
    made = training({"net": Learner(loss=loss)}, groups=("a",), optimizer=rule,
                    frozen={"scale": held})  # fmt: skip
    state, metrics = after(made)
    close(state.params["a"], A - RATE * 2 * (2 * A - 1))
    close(metrics["grad_norm"], 2 * (2 * A - 1))
    assert set(state.params) == set(state.ema["half_life_8"]) == {"a"}
    assert set(state.opt_state[0].trace) == {"a"} and state.extra == ()
    # As an argument of the update they need not be the training's own.
    given, _ = after(made, frozen={"scale": jnp.float32(3)})
    close(given.params["a"], A - RATE * 3 * (3 * A - 1))


def test_groups_of_no_learner_stay():
    state, _ = after(training({"net": to_data("a", trains="a")}, optimizer=optax.adam(RATE)))
    assert state.params["b"] == B
    assert state.opt_state[0].mu.shape == ()  # of a group named alone: not a dict of groups


# Wraps.


def draw(params, keys, labels):
    return params["a"] * jnp.ones(len(labels))


def method(learners):
    """A method with something of everything that reads parameters."""

    def sampler(*, steps: int = 3) -> Sampler:
        chain = lambda params, label: params["a"] + label
        return Sampler(fn=draw, calls=steps, chain=chain, denoiser=lambda p, labels: -p["a"])

    return method_of(
        Spec((), 1),
        training(learners),
        sampler=sampler,
        log_prob=lambda: lambda params, x, labels, keys: params["a"] - x,
        label_error=lambda params, x, labels, keys, draw, draws: params["a"] * x,
        encode=lambda params, x: x if params is None else x / params["a"],
        decode=lambda params, code: code * params["a"],
        scores=lambda params, key: {"a": params["a"]},
    )


def test_on_params_changes_what_is_made_of_parameters_and_not_their_training():
    base = method({"net": to_data("a")})
    made = on_params(base, lambda params: {"a": params["a"] + params["b"]})
    params, x = base.init(KEY).params, jnp.float32(5)
    sampler = made.sampler(steps=4)
    assert sampler.calls == 4 and inspect.signature(made.sampler) == inspect.signature(base.sampler)
    close(sampler(params, None, jnp.zeros(2)), [A + B] * 2)
    close(sampler.chain(params, 7.0), A + B + 7)
    close(sampler.denoiser(params, None), -(A + B))
    close(made.log_prob()(params, x, None, None), A + B - x)
    close(made.label_error(params, x, None, None, None, 1), (A + B) * x)
    close(made.encode(params, x), x / (A + B))
    close(made.encode(None, x), x)  # parameters that are not needed need no change
    close(made.decode(params, x), x * (A + B))
    close(made.scores(params, KEY)["a"], A + B)
    assert made.plain(params) == {"a": A + B}
    # Wrapped twice, the outer change comes first.
    twice = on_params(made, lambda params: {**params, "b": 10 * params["b"]})
    close(twice.decode(params, 1.0), A + 10 * B)
    assert twice.plain(params) == {"a": A + 10 * B}
    assert made.update is base.update and made.training is base.training
    bare = dataclasses.replace(base, sampler=None, encode=None)
    assert on_params(bare, dict).sampler is None and on_params(bare, dict).encode is None


def test_retrained_trains_by_what_has_changed():
    base = method({"net": to_data("a")})
    made = retrained(base, learners={"net": to_data("b")}, averaged=("b",))
    state, _ = jax.jit(made.update)(made.init(KEY), BATCH, KEY)
    close([state.params["a"], state.params["b"]], [A, stepped(B, X.mean())])
    assert set(state.ema["half_life_8"]) == {"b"} and made.training.trained == {"b"}
    assert base.training.trained == {"a"} and made.sampler is base.sampler
    own = Method(spec=base.spec, init=base.init, update=base.update)
    with pytest.raises(UsageError, match="an update of its own"):
        retrained(own, learners={})


def test_only_learner_is_of_methods_with_one_loss():
    one, two = {"net": to_data("a")}, {"a": to_data("a"), "b": to_data("b")}
    assert only_learner(method(one), "tune") is one["net"]
    assert method(one).loss is one["net"].loss
    with pytest.raises(UsageError, match=r"tune: .*2 losses \(a, b\)"):
        only_learner(method(two), "tune")


# Apart from runs.


def by_hand(value, inputs, project):
    """Gradient descent with a momentum of 1/2 on (value - input)^2 / 2: (value, losses)."""
    velocity, losses = 0.0, []
    for given in inputs:
        losses.append((value - given) ** 2 / 2)
        velocity = velocity / 2 + value - given
        value = project(value - RATE * velocity)
    return value, losses


def test_minimise_takes_a_step_for_each_input():
    loss = lambda value, given: (value - given) ** 2 / 2
    inputs, starts, rule = jnp.asarray(X, jnp.float32), jnp.array([A, B]), optax.sgd(RATE, 0.5)
    fit = lambda start, project: minimise(loss, rule, start, inputs, project=project)
    for project in (lambda value: value, lambda value: value.clip(-1.5, 1.5)):
        found, losses = jax.jit(jax.vmap(lambda start, p=project: fit(start, p)))(starts)
        wanted = [by_hand(start, X, project) for start in np.array([A, B])]
        np.testing.assert_allclose(found, [value for value, _ in wanted], rtol=1e-5)
        np.testing.assert_allclose(losses, [each for _, each in wanted], rtol=1e-5)


def test_minimise_keeps_the_best_where_asked():
    """Of plain descent: the value before the step whose loss was least."""
    loss = lambda value, given: (value - given) ** 2 / 2
    inputs, rule = jnp.asarray(X, jnp.float32), optax.sgd(RATE, 0.5)
    found, losses = minimise(loss, rule, jnp.float32(A), inputs, best=True)
    before = [by_hand(A, X[:n], lambda value: value)[0] for n in range(len(X))]
    assert losses.argmin() != len(X) - 1
    np.testing.assert_allclose(found, before[int(losses.argmin())], rtol=1e-5)


@pytest.mark.parametrize(
    ("trains", "words"),
    [
        (("teacher",), "'teacher', which is frozen"),
        ("frozen", "'frozen', which is frozen"),
        (("aa",), "Did you mean 'a'"),
    ],
)
def test_what_is_frozen_or_not_there_is_not_trained(trains, words):
    learners = {"a": dataclasses.replace(to_data("a"), trains=trains)}
    init, _ = learn(training(learners, frozen={"teacher": jnp.ones(3)}))
    with pytest.raises(UsageError, match=words):
        init(KEY)


def test_averages_count_the_global_batch(monkeypatch):
    """Where this code sees one of four devices' shares, an update is four times as many images."""
    monkeypatch.setattr(learning.mesh, "size", lambda axis: 4 if axis == "data" else 1)
    monkeypatch.setattr(learning.mesh, "position", lambda *axes: 0)
    for name in ("mean", "mean_gradient"):
        monkeypatch.setattr(learning.mesh, name, lambda tree: tree)
    state, _ = after(training({"a": to_data("a")}))
    share = 0.5**4  # a half-life of 8 images, 32 of which were seen
    close(state.ema["half_life_8"]["a"], share * A + (1 - share) * stepped(A, X.mean()))
