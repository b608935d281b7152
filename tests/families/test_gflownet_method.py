"""GFlowNets as a method: every loss learns, buffers resume, meshes agree, commands work."""

import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxgen.cli import main
from jaxgen.errors import UsageError
from jaxgen.families.gflownet import replay
from jaxgen.method.ring import put
from jaxgen.run.setup import set_up
from tests.nn_kit import first_state

GRID = dict(name="hypergrid.hypergrid", dims=2, height=4)


def config(*, source=GRID, batch=32, rate=3e-3, images=3200, **method):
    name = method.pop("name", "gflownet.gflownet")
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=source, batch_size=batch),
            model=dict(name="policy.Policy", width=64, depth=1),
            method=dict(name=name, **method),
            optimizer=dict(name="adam", learning_rate=rate),
            ema=dict(half_life=(1000,)),
            train=dict(images=images, log_every=320),
            log=dict(tensorboard=False),
            evaluate=dict(samples=64, batch_size=32),
        )
    )


def train(parts, steps, key=1):
    """The state after a few hundred updates, in one program."""
    method, size = parts.method, parts.data.batch_size
    batch = {"label": jnp.zeros(size, jnp.int32)}

    @jax.jit
    def run(state):
        def body(state, i):
            return method.update(state, batch, jax.random.fold_in(jax.random.key(key), i))

        return jax.lax.scan(body, state, jnp.arange(steps))

    return run(first_state(method))


@pytest.mark.parametrize(
    "options",
    [
        dict(loss="flow_matching"),
        dict(loss="detailed_balance"),
        dict(loss="trajectory_balance", log_z_rate=30.0, backward="learned"),
        dict(loss=dict(name="subtrajectory_balance", decay=0.8)),
        dict(loss="trajectory_balance", log_z_rate=30.0, replay_size=256, replay_priority=0.5),
        dict(name="gflownet.fl_gflownet", loss="subtrajectory_balance"),
        dict(name="gflownet.fl_gflownet", truncate=2),
    ],
    ids=lambda o: str(o.get("name", ""))[9:] + str(o.get("loss", "fl")),
)
def test_every_loss_learns_the_target(options):
    parts = set_up(config(epsilon=0.1, **options))
    state, metrics = train(parts, 800)
    before = parts.method.scores(first_state(parts.method).params, jax.random.key(0))
    found = parts.method.scores(state.params, jax.random.key(0))
    assert float(before["total_variation"]) > 0.4
    assert float(found["total_variation"]) < 0.05, found
    assert float(found["log_z_error"]) < 0.05, found
    assert metrics["loss"][-1] < 0.05 * metrics["loss"][:10].mean()


def test_trajectory_balance_learns_nothing_from_parts():
    # All ways to a set have the same length, and none is seen whole.
    source = dict(name="sets.sets", items=6, size=3)
    parts = set_up(config(source=source, loss="trajectory_balance", truncate=2))
    state, _ = train(parts, 50)
    for a, b in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(first_state(parts.method).params),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_estimates_where_nothing_can_be_enumerated():
    source = dict(name="sets.sets", items=24, size=12, spread=0.5)
    parts = set_up(config(source=source, loss="trajectory_balance", epsilon=0.05))
    assert not parts.spec.target.enumerable
    fresh = parts.method.scores(first_state(parts.method).params, jax.random.key(0))
    state, _ = train(parts, 300)
    found = parts.method.scores(state.params, jax.random.key(0))
    exact = parts.spec.target.log_z
    assert float(fresh["elbo"]) < exact - 0.5
    assert exact - 0.2 < float(found["elbo"]) < exact + 0.02
    assert abs(float(found["log_z_estimate"]) - exact) < 0.02


def test_samples_depend_on_their_own_key_alone():
    parts = set_up(config())
    state, _ = train(parts, 20)
    sampler = parts.method.sampler()
    keys = jax.random.split(jax.random.key(5), 16)
    zeros = jnp.zeros(16, jnp.int32)
    every = sampler(state.params, keys, zeros)
    assert every.shape == (16, 2) and every.dtype == jnp.int32 and len(np.unique(every)) > 1
    order = np.random.default_rng(0).permutation(16)[:7]
    np.testing.assert_array_equal(sampler(state.params, keys[order], zeros[:7]), every[order])
    # A cold policy is greedy: all samples are one.
    cold = parts.method.sampler(temperature=1e-4)(state.params, keys, zeros)
    assert len(np.unique(cold, axis=0)) == 1


def test_the_ring_keeps_the_newest_and_draws_by_reward():
    ring = replay.empty(4, 2)
    fresh = jnp.arange(12, dtype=jnp.int32).reshape(6, 2)
    keys = jax.random.split(jax.random.key(0), 6)
    same = replay.mix(ring, fresh, keys, share=1.0, priority=1.0)
    np.testing.assert_array_equal(same, fresh)  # there is nothing in it yet
    ring = put(ring, {"actions": fresh[:3], "log_rewards": jnp.asarray([0.0, 1.0, 2.0])})
    ring = put(ring, {"actions": fresh[3:5], "log_rewards": jnp.asarray([3.0, 4.0])})
    held = {tuple(row) for row in np.asarray(ring.rows["actions"]).tolist()}
    assert held == {(2, 3), (4, 5), (6, 7), (8, 9)}
    keys = jax.random.split(jax.random.key(1), 20_000)
    many = jnp.zeros((20_000, 2), jnp.int32)
    drawn = replay.mix(ring, many, keys, share=0.5, priority=1.0)
    share = {r: float((drawn[:, 0] == r).mean()) for r in (0, 2, 4, 6, 8)}
    weights = np.exp([1.0, 2.0, 3.0, 4.0])
    expected = dict(zip((2, 4, 6, 8), 0.5 * weights / weights.sum(), strict=True)) | {0: 0.5}
    # Three standard deviations of a share of 20,000 draws.
    assert all(abs(share[k] - v) < 0.011 for k, v in expected.items()), (share, expected)


def test_microbatches_are_the_batch():
    states = []
    for accumulate in (1, 4):
        changed = config(replay_size=64)
        changed.train.accumulate = accumulate
        states.append(train(set_up(changed), 3)[0])
    # Adam makes a step of 3e-3 of any gradient; a few per cent of it where that is nearly 0.
    for x, y in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-4)
    np.testing.assert_array_equal(*(s.extra["replay"].rows["actions"] for s in states))


def test_command_line_and_resume(tmp_path, capsys):
    """train, stop, go on, evaluate, sample; the resumed run is the whole one, bit for bit."""
    from jaxgen.api import train as run
    from tests.training.test_train_resume import assert_same_bits, raw_state

    whole = config(images=320, replay_size=64, epsilon=0.1)
    whole.mesh = dict(data=8)
    half = ml_collections.ConfigDict(whole.to_dict())
    half.train.images = 160
    trained = run(whole, tmp_path / "whole")
    names = {s["name"] for s in trained.report["results"]["evaluate"]["receipts"][0]["scores"]}
    assert {"total_variation", "log_z_error", "kl"} <= names
    run(half, tmp_path / "parts")
    run(whole, tmp_path / "parts")
    step, state = raw_state(tmp_path / "whole")
    assert step == 10 and state["extra"]["replay"]["count"] >= 64
    assert_same_bits(raw_state(tmp_path / "parts")[1], state)
    assert (tmp_path / "whole" / "report.html").is_file()
    workdir = str(tmp_path / "whole")
    capsys.readouterr()
    assert main(["evaluate", "--workdir", workdir, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["receipts"][0]["scores"]
    assert "total_variation" in {s["name"] for s in scores}
    out = tmp_path / "samples.npz"
    picture = tmp_path / "samples.png"
    arguments = ["sample", "--workdir", workdir, "--labels", "0:40", "--out", str(out)]
    assert main([*arguments, "--out", str(picture), "--sample.temperature=2.0"]) == 0
    assert np.load(out)["images"].shape == (40, 2) and picture.is_file()
    for command in ("likelihood", "classify"):
        assert main([command, "--workdir", workdir]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(loss="trajectory_balence"), "Did you mean"),
        (dict(loss=dict(name="subtrajectory_balance", decay=-1.0)), "method.loss.decay"),
        (dict(backward="reversed"), "method.backward"),
        (dict(forward_looking=True), "method.forward_looking"),
        (dict(epsilon=1.5), "method.epsilon"),
        (dict(temperature=0.0), "method.temperature"),
        (dict(log_z_rate=0.0), "method.log_z_rate"),
        (dict(truncate=-1), "method.truncate"),
        (dict(replay_size=-1), "method.replay_size"),
        (dict(replay_share=2.0), "method.replay_share"),
        (dict(replay_priority=-1.0), "method.replay_priority"),
        (dict(source=dict(name="digits.digits")), "config.data.source"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        set_up(config(**options))
    with pytest.raises(UsageError, match="sample.temperature"):
        set_up(config()).method.sampler(temperature=0.0)


def test_replay_draws_from_everything_that_is_kept():
    """Without priority each kept trajectory is as likely as another, however old."""
    size, count = 8, 8_000
    ring = replay.empty(size, 1)
    for start in (0, 4):
        rows = jnp.arange(start, start + 4)[:, None]
        ring = put(ring, {"actions": rows, "log_rewards": jnp.zeros(4)})
    keys = jax.random.split(jax.random.key(0), count)
    drawn = replay.mix(ring, jnp.full((count, 1), -1), keys, share=0.75, priority=0.0)[:, 0]
    shares = np.bincount(np.asarray(drawn) + 1, minlength=size + 1) / count
    expected = np.r_[0.25, np.full(size, 0.75 / size)]
    assert (np.abs(shares - expected) < 5 * (expected * (1 - expected) / count) ** 0.5).all()
