"""The discrete family as methods: networks, learning to the entropy, meshes, bits, commands."""

import itertools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jaxgen.data import batches
from jaxgen.errors import UsageError
from jaxgen.families.discrete import maskbit
from jaxgen.method import Spec
from jaxgen.nn import bert
from jaxgen.run.setup import set_up
from jaxgen.training.ema import Averages
from jaxgen.training.optim import optimizer
from tests.discrete_kit import bars
from tests.nn_kit import first_state

SMALL = dict(name="bert.Bert", width=32, depth=1, heads=2)


def config(*, source=None, model=None, images=640, rate=3e-3, batch=32, accumulate=1, **method):
    name = method.pop("name", "discrete.discrete_interpolants")
    decay, warmup = method.pop("schedule_of_rate", "constant"), method.pop("warmup", 0)
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=source or dict(name="digits.digits"), batch_size=batch),
            model=model or dict(SMALL, patch=2),
            method=dict(name=name, **method),
            optimizer=dict(name="adam", learning_rate=rate, schedule=decay, warmup_images=warmup),
            ema=dict(half_life=(1000,)),
            train=dict(images=images, log_every=320, accumulate=accumulate, preview_per_label=2),
            log=dict(tensorboard=False),
            sample=dict(steps=4),
            evaluate=dict(at_end=False, samples=20, batch_size=20),
            classify=dict(at_end=False, draws=2, limit=20),
            likelihood=dict(limit=20, batch_size=20),
        )
    )


@pytest.mark.parametrize(
    ("size", "levels", "millions"), [("maskgit", 1024, 173), ("maskbit", 2**14, 305)]
)
def test_sizes_are_the_papers(size, levels, millions):
    model = bert.Bert(1000, levels, (16, 16), size)
    x = jnp.zeros((1, 256), jnp.int32)
    if size == "maskbit":
        model, x = model.clone(bits=14, outputs=2 * 2**7), jnp.zeros((1, 256, 14))
    found = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1, jnp.int32))
    count = sum(math.prod(a.shape) for a in jax.tree.leaves(found)) / 1e6
    # MaskGIT's 227M less its tokenizer's 54M; both to the papers' rounding and the small tables.
    assert count == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("patch", [1, 2])
def test_logits_lie_where_their_elements_do(patch):
    """A patch is the four elements of a square; without attention an element touches its own."""
    model = bert.Bert(
        num_classes=2, levels=5, shape=(4, 6, 1), width=16, depth=1, heads=2, patch=patch
    )
    x = jnp.zeros((1, 24), jnp.int32)
    params = model.init(jax.random.key(0), x, jnp.zeros(1, jnp.int32))["params"]
    params["blocks"] = jax.tree.map(jnp.zeros_like, params["blocks"])
    params["out" if patch > 1 else "head"]["kernel"] = jax.random.normal(
        jax.random.key(1), params["out" if patch > 1 else "head"]["kernel"].shape
    )
    run = jax.jit(lambda x: model.apply({"params": params}, x, jnp.zeros(1, jnp.int32)))
    base, moved = run(x), run(x.at[0, 2 * 6 + 3].set(4))
    touched = np.asarray((jnp.abs(moved - base) > 1e-6).any(-1))[0].reshape(4, 6)
    expected = np.zeros((4, 6), bool)
    expected[2:4, 2:4] = patch == 2
    expected[2, 3] = True
    np.testing.assert_array_equal(touched, expected)
    nan = model.apply({"params": params}, x, jnp.full(1, 3))
    assert np.isnan(nan).all()


def any_order_bound(parts, params, states):
    """Minus the bound, exactly: all masks of all states, weights 1 / (n C(N, n))."""
    size = states.shape[1]
    masks = np.array(list(itertools.product((False, True), repeat=size)))[1:]
    hidden = masks.sum(1)
    weights = 1 / (hidden * np.array([math.comb(size, n) for n in hidden]))
    x = np.where(masks[None], 2, states[:, None])
    net = parts.modules.clone(extra=1)
    rows = x.reshape(-1, size)
    logits = jax.jit(lambda p, x: net.apply({"params": p}, x, jnp.zeros(len(x), jnp.int32)))(
        params["net"], rows
    )
    log = jax.nn.log_softmax(logits).reshape(*x.shape, 2)
    own = np.take_along_axis(np.asarray(log), states[:, None, :, None], -1)[..., 0]
    return float(-(own * masks[None]).sum(-1).mean(0) @ weights)


@pytest.mark.parametrize(
    ("size", "steps", "width", "depth", "batch"), [(2, 1000, 32, 2, 48), (3, 3500, 64, 3, 56)]
)
def test_bars_and_stripes_are_learnt_to_their_entropy(size, steps, width, depth, batch):
    """Also that `log_prob` is unbiased for the bound that all masks give."""
    states = bars(size)
    parts = set_up(
        config(
            source=dict(name="bars_and_stripes.bars_and_stripes", size=size),
            model=dict(SMALL, width=width, depth=depth, heads=4),
            batch=batch,
            label_dropout=0.0,
            images=batch * steps,
            rate=2e-3,
            warmup=batch * 50,
            schedule_of_rate="cosine",
        )
    )
    method, count = parts.method, len(states)
    given = {
        "image": jnp.asarray(parts.source.images(np.arange(batch) % count)),
        "label": jnp.zeros(batch, jnp.int32),
    }

    @jax.jit
    def run(state):
        def body(state, i):
            return method.update(state, given, jax.random.fold_in(jax.random.key(1), i))[0], None

        return jax.lax.scan(body, state, jnp.arange(steps))[0]

    fresh = first_state(method)
    params = run(fresh).ema["half_life_1000"]
    exact = any_order_bound(parts, params, states)
    assert np.log(count) < exact < np.log(count) + 0.05
    x = jnp.asarray(parts.source.images(np.arange(count)))
    estimate = jax.jit(
        lambda keys: method.log_prob()(
            params, jnp.repeat(x, 1000, 0), jnp.zeros(1000 * count, jnp.int32), keys
        )
    )(jax.random.split(jax.random.key(2), 1000 * count))
    error = float(estimate.std()) / (1000 * count) ** 0.5
    assert -float(estimate.mean()) == pytest.approx(exact, abs=5 * error)
    start = any_order_bound(parts, fresh.params, states)
    assert start == pytest.approx(size**2 * np.log(2), abs=0.3)


CASES = {
    "uniform": dict(noise="uniform", time="explicit", weighting="elbo"),
    "llama": dict(model=dict(name="llama.Llama", causal=False, width=32, depth=1, heads=2)),
    "maskbit": dict(
        name="discrete.maskbit", source=dict(name="bars_and_stripes.bars_and_stripes", size=4)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cases_learn_sample_and_tell_classes(case):
    parts = set_up(config(**CASES[case]))
    method = parts.method
    batch = next(iter(batches(parts.source, batch_size=32, seed=0)))
    batch = {k: jnp.asarray(v) for k, v in batch.items()}
    root = jax.random.key(1)

    @jax.jit
    def run(state):
        def body(state, i):
            state, metrics = method.update(state, batch, jax.random.fold_in(root, i))
            return state, metrics["loss"]

        return jax.lax.scan(body, state, jnp.arange(60))

    state, losses = run(first_state(method))
    assert losses[-10:].mean() < 0.9 * losses[:3].mean()
    keys = jax.random.split(jax.random.key(2), 4)
    labels = jnp.zeros(4, jnp.int32)
    sampler = method.sampler(**({"solver": "euler"} if "uniform" in case else {}), steps=3)
    made = jax.jit(sampler.fn)(state.params, keys, labels)
    assert made.shape == (4, *parts.spec.shape)
    np.testing.assert_allclose(parts.spec.from_tokens(parts.spec.to_tokens(made)), made, atol=1e-6)
    error = jax.jit(
        lambda k, y, d: method.label_error(state.params, batch["image"][:4], y, k, d, 8)
    )
    draw = jnp.zeros(4, jnp.int32)
    one = error(keys, labels, draw)
    np.testing.assert_array_equal(one, error(keys, labels, draw))
    assert one.shape == (4,) and (one != error(keys, labels, draw + 1)).all()
    assert np.isfinite(one).all()


def test_bits_of_large_codes():
    """Codes of 12 bits in two groups, without a table of 4096 rows."""
    spec = Spec(shape=(2, 3), num_classes=2, levels=4096, tokens=True)
    net = bert.Bert(num_classes=2, levels=4096, shape=(2, 3), width=16, depth=1, heads=2)
    tx = optimizer("adam", learning_rate=1e-3, images=100, batch_size=4)
    method = maskbit(spec, net, tx, Averages(half_life=(10,)), groups=2)
    state = first_state(method)
    assert max(a.size for a in jax.tree.leaves(state.params)) < 4096
    labels = jnp.asarray([0, 1, 2])
    keys = jax.random.split(jax.random.key(1), 3)
    made = jax.jit(method.sampler(steps=12, guidance=2.0).fn)(state.params, keys, labels)
    assert made.shape == (3, 2, 3) and made.dtype == jnp.int32
    assert int(made.min()) >= 0 and 255 < int(made.max()) < 4096
    # Twelve elements of 64 values, uniform at first.
    bound = -method.log_prob()(state.params, made, labels, keys)
    np.testing.assert_allclose(bound, 12 * np.log(64), rtol=1e-3)


def test_command_line(tmp_path, capsys):
    from jaxgen.api import train
    from jaxgen.cli import main

    changed = config(name="discrete.maskgit", images=320)
    changed.likelihood.at_end = True
    changed.classify.at_end = True
    report = train(changed, tmp_path / "run").report["results"]
    assert report["likelihood"]["kind"].startswith("lower bound")
    assert report["likelihood"]["bits_per_dim"] < np.log2(17) + 0.3
    workdir = str(tmp_path / "run")
    out = tmp_path / "samples.png"
    assert main(["sample", "--workdir", workdir, "--labels", "3:4", "--out", str(out)]) == 0
    assert out.is_file()
    arguments = ["likelihood", "--workdir", workdir, "--json"]
    capsys.readouterr()
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(noise="gaussian"), "method.noise"),
        (dict(schedule="cosines"), "Did you mean 'cosine'"),
        (dict(time="sometimes"), "method.time"),
        (dict(weighting="snr"), "method.weighting"),
        (dict(label_smoothing=1.0), "method.label_smoothing"),
        (dict(label_smoothing=0.1, weighting="elbo"), "method.label_smoothing"),
        (dict(label_dropout=-0.1), "method.label_dropout"),
        (dict(model=dict(name="llama.Llama", width=32, depth=1, heads=2)), "config.model.causal"),
        (
            dict(
                model=dict(name="llama.Llama", width=32, depth=1, heads=2, causal=False),
                time="explicit",
            ),
            "method.time",
        ),
        (dict(name="discrete.maskbit"), "a power of two"),
        (
            dict(
                name="discrete.maskbit",
                groups=2,
                source=dict(name="bars_and_stripes.bars_and_stripes"),
            ),
            "method.groups",
        ),
        (dict(model=dict(SMALL, patch=3)), "model.patch"),
        (dict(model=dict(SMALL, width=33)), "model.width"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        set_up(config(**options))


def test_bad_options_of_bounds_are_refused():
    method = set_up(config(label_dropout=0.0)).method
    with pytest.raises(UsageError, match="steps"):
        method.log_prob(steps=65)
    with pytest.raises(UsageError, match="label_dropout"):
        method.sampler(guidance=2.0)
