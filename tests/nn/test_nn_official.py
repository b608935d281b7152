"""Networks called by a paper's name compute what the paper's code does, weight for weight.

`tests/nn/official.py` has each written down a second time in PyTorch; without PyTorch the golden
numbers at the end, of networks that were equal to those, hold the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.errors import UsageError
from jaxgen.families.diffusion.methods.denoising import denoising
from jaxgen.method import Spec
from jaxgen.nn.dit import DiT, SiT
from jaxgen.nn.edm2 import EDM2
from jaxgen.nn.flops import parameters
from jaxgen.nn.glow import Glow
from jaxgen.nn.layers import Fourier
from jaxgen.nn.llama import Llama
from jaxgen.nn.mp import MPFourier
from jaxgen.nn.tarflow import TarFlow
from jaxgen.nn.unet import ADM, NCSNpp, UNet
from jaxgen.pretrained.dit import from_official
from jaxgen.pretrained.edm import from_edm
from jaxgen.pretrained.llamagen import from_gpt
from jaxgen.training.ema import Averages
from tests.nn_kit import abstract, quick_jit


def official():
    pytest.importorskip("torch")
    from tests.nn import official

    return official


def arrays(state):
    return {name: value.numpy() for name, value in state.items()}


def close(got, want, tolerance=2e-5):
    """Within `tolerance` of the largest number, which is not small."""
    want = np.asarray(want)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def fits(params, module, shape):
    wanted = abstract(module, shape)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, wanted)


# --- DiT and SiT ---

IMAGE = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
LABELS = np.array([0, 3, 6, 7])  # 7: no label
SMALL_DIT = dict(depth=3, width=48, patch=2)


def dit_peers(t):
    torch, theirs = pytest.importorskip("torch"), official()
    state = theirs.weights(theirs.dit_shapes(channels=3, classes=7, **SMALL_DIT))
    nchw = torch.tensor(IMAGE).permute(0, 3, 1, 2)
    want = theirs.dit(state, nchw, torch.tensor(t), torch.tensor(LABELS), depth=3, heads=3, patch=2)
    return arrays(state), want.permute(0, 2, 3, 1).numpy()


@pytest.mark.parity
def test_dit_is_told_the_index_and_equals_the_papers():
    index = np.array([0.0, 4.0, 500.0, 999.0], "float32")
    state, want = dit_peers(index)
    ours = DiT(num_classes=7, out_channels=6, heads=3, time_scale=1.0, **SMALL_DIT)
    params = from_official(state, patch=2, heads=3)
    fits(params, ours, (8, 8, 3))
    close(quick_jit(ours.apply)({"params": params}, IMAGE, index, LABELS), want)


@pytest.mark.parity
def test_sit_is_told_its_own_time_and_equals_the_papers():
    """Its velocity points to the data, and the half that is never read is left out."""
    time = np.array([0.0, 0.3, 0.71, 1.0], "float32")  # SiT's: 1 is data
    state, want = dit_peers(time)
    ours = SiT(num_classes=7, out_channels=3, heads=3, **SMALL_DIT)
    params = from_official(state, patch=2, heads=3, sit=True)
    fits(params, ours, (8, 8, 3))
    close(quick_jit(ours.apply)({"params": params}, IMAGE, 1 - time, LABELS), -want[..., :3])


def test_official_weights_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="x_embedder.proj.weight"):
        from_official({}, patch=2, heads=3)
    with pytest.raises(UsageError, match="patch: got 4.*2, the checkpoint's"):
        from_official({"x_embedder.proj.weight": np.zeros((8, 3, 2, 2))}, patch=4, heads=3)


# --- DDPM++ and NCSN++ ---

# Unconditional and of ten classes, without and with nine numbers of augmentation: what EDM's code
# has for CIFAR-10 (its published networks have the nine).
CIFAR = {(0, 0): 55_732_739, (0, 9): 55_733_891, (10, 0): 55_734_147, (10, 9): 55_735_299}
SMALL_UNET = dict(channels=32, multipliers=(1, 2), blocks=1)


@pytest.mark.parametrize("classes,augment", CIFAR)
def test_ddpmpp_has_the_parameters_of_the_papers(classes, augment):
    net = UNet(num_classes=classes, out_channels=3, augment_dim=augment)
    assert parameters(net, (32, 32, 3)) == CIFAR[classes, augment]


@pytest.mark.parity
@pytest.mark.parametrize("fir", [False, True], ids=["ddpmpp", "ncsnpp"])
def test_ddpmpp_and_ncsnpp_equal_the_papers(fir):
    torch, theirs = pytest.importorskip("torch"), official()
    net = theirs.SongUNet(attend=(4,), side=8, classes=5, augment=3, fir=fir, **SMALL_UNET)
    state = theirs.weights(net.names())
    rng = np.random.default_rng(1)
    x, augment = rng.normal(size=(4, 8, 8, 3)), rng.normal(size=(4, 3))
    noise, labels = np.array([-1.5, 0.0, 0.4, 1.1]), np.array([0, 2, 4, 5])  # 5: no label
    one_hot = np.eye(6)[labels][:, :5]
    x, augment, noise, one_hot = (a.astype("float32") for a in (x, augment, noise, one_hot))
    nchw = torch.tensor(x).permute(0, 3, 1, 2)
    want = net(state, nchw, *map(torch.tensor, (noise, one_hot, augment))).permute(0, 2, 3, 1)
    build = NCSNpp if fir else UNet
    ours = build(num_classes=5, out_channels=3, augment_dim=3, attention_sizes=(4,), **SMALL_UNET)
    params = from_edm(arrays(state))
    fits(params, ours, (8, 8, 3))
    got = quick_jit(ours.apply)({"params": params}, x, noise, labels, augment=augment)
    close(got, want.numpy())


def test_random_features_are_part_of_the_checkpoint_and_never_move():
    """Weight decay, gradients and averages leave frequencies and phases as they were drawn."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 2)), jnp.float32)
    batch = {"image": images, "label": jnp.arange(4, dtype=jnp.int32) % 3}
    net = EDM2(3, 2, channels=8, multipliers=(1,), blocks=1, attention_sizes=())
    method = denoising(
        Spec(shape=(4, 4, 2), num_classes=3),
        net,
        optax.adamw(0.1, weight_decay=0.5),
        Averages(half_life=(10,), power_std=(0.1,)),
        path="edm",
        prediction="edm",
        terms=("uncertainty",),
    )
    init, update = quick_jit(method.init), quick_jit(method.update)
    state = init(jax.random.key(1))
    held = {name: jax.device_get(group["constants"]) for name, group in state.params.items()}
    weights = jax.device_get(state.params["net"]["out"]["kernel"])
    for step in range(2):
        state, _ = update(state, batch, jax.random.key(step))
    assert np.abs(state.params["net"]["out"]["kernel"] - weights).max() > 1e-2
    for tree in (state.params, *state.ema.values()):
        moved = {name: group["constants"] for name, group in tree.items()}
        jax.tree.map(np.testing.assert_array_equal, held, jax.device_get(moved))
    other = init(jax.random.key(2)).params["net"]["constants"]
    assert np.abs(other["frequencies"] - held["net"]["frequencies"]).max() > 0.1


@pytest.mark.parametrize("name", ["edm2", "ncsnpp"])
def test_random_features_are_the_checkpoints(name):
    """Features written out, from the numbers that the parameters hold."""
    values = jnp.array([-1.5, 0.0, 0.7])
    module = MPFourier(6) if name == "edm2" else Fourier(6)
    variables = module.init(jax.random.key(0), values)
    held = {k: np.asarray(a, np.float64) for k, a in variables["params"].items()}
    if name == "edm2":
        want = 2**0.5 * np.cos(np.outer(values, held["frequencies"]) + held["phases"])
    else:
        angles = 2 * np.pi * np.outer(values, held["frequencies"])
        want = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    np.testing.assert_allclose(module.apply(variables, values), want, atol=1e-4)
    # Drawn as the papers': 16 times a normal, and 2 pi times a normal and a uniform number.
    many = (MPFourier(4000) if name == "edm2" else Fourier(4000)).init(jax.random.key(1), values)
    spread = 2 * np.pi if name == "edm2" else 16
    np.testing.assert_allclose(many["params"]["frequencies"].std(), spread, rtol=0.05)
    if name == "edm2":
        phases = many["params"]["phases"]
        assert phases.min() >= 0 and phases.max() < 6.2832 and abs(phases.mean() - np.pi) < 0.1


# --- TarFlow ---


def tarflow_params(state, *, flows, layers):
    """Parameters of `TarFlow` from the paper's names; an odd block's places are reversed there."""

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def layer(name):
        made = {f"norm{n}": norm(f"{name}.{at}.norm") for n, at in ((1, "attention"), (2, "mlp"))}
        made |= {n: dense(f"{name}.attention.{n}") for n in ("qkv", "proj")}
        return made | {
            "expand": dense(f"{name}.mlp.main.0"),
            "contract": dense(f"{name}.mlp.main.2"),
        }

    def stack(trees):
        return jax.tree.map(lambda *a: np.stack(a), *trees)

    def flow(t):
        name = f"blocks.{t}"
        return {
            "embed": dense(f"{name}.proj_in"),
            "head": dense(f"{name}.proj_out"),
            "place": state[f"{name}.pos_embed"][:: -1 if t % 2 else 1],
            "label": state[f"{name}.class_embed"][:, 0],
            "stack": stack([layer(f"{name}.attn_blocks.{k}") for k in range(layers)]),
        }

    return {"stack": stack([flow(t) for t in range(flows)])}


@pytest.mark.parity
@pytest.mark.parametrize("flows", [2, 3])
def test_tarflow_equals_the_papers_both_ways(flows):
    torch, theirs = pytest.importorskip("torch"), official()
    sizes = dict(flows=flows, layers=2)
    state = theirs.weights(
        theirs.tarflow_shapes(width=16, dim=8, places=9, classes=3, **sizes), scale=0.1
    )
    ours = TarFlow(num_classes=3, shape=(6, 6, 2), patch=2, width=16, heads=2, **sizes)
    params = tarflow_params(arrays(state), **sizes)
    x = np.random.default_rng(2).normal(size=(4, 6, 6, 2)).astype("float32")
    labels, told = np.array([0, 1, 2, 3]), torch.tensor([0, 1, 2, -1])  # 3 and -1: no label
    wanted = jax.eval_shape(ours.init, jax.random.key(0), x, labels)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, wanted)
    patches = torch.tensor(np.asarray(ours.patches(jnp.asarray(x))))
    want, mean = theirs.tarflow(state, patches, told, heads=2, **sizes)
    z, log_det = quick_jit(ours.apply)({"params": params}, x, labels)
    close(z, want.reshape(4, -1))
    close(log_det, mean * 72)
    for w, annealed in ((1.0, False), (1.8, False), (1.8, True)):
        back = theirs.tarflow_reverse(
            state, want, told, heads=2, guidance=w - 1, annealed=annealed, **sizes
        )
        images = ours.images(jnp.asarray(back.numpy()))
        inverse = quick_jit(lambda p, z, w=w, a=annealed: ours.inverse(p, z, labels, w, annealed=a))
        close(inverse(params, jnp.asarray(want.reshape(4, -1).numpy())), images, 5e-5)
    assert np.abs(np.asarray(images) - x)[:3].max() > 0.1


# --- Glow ---


def glow_params(state, *, steps):
    """Parameters of a `Glow` of two levels from the paper's names.

    Theirs takes every other output for shifts (means), ours the first half; the top convolution of
    zeros has weights for its zeros there; theirs has no row for "no label", which is zero here.
    """

    def halves(a):
        return np.concatenate([a[..., 0::2], a[..., 1::2]], -1)

    def norm(name):
        return {"shift": state[f"{name}/b"], "log_scale": state[f"{name}/logs"]}

    def zeros(name, order=halves):
        kernel, bias, gain = (order(state[f"{name}/{n}"]) for n in ("W", "b", "logs"))
        return {"edge": {"conv": {"kernel": kernel, "bias": bias}}, "gain": gain}

    params = {"prior0": {"conv": zeros("pool0/conv")}}
    for name in sorted({k.rsplit("/invconv", 1)[0] for k in state if "invconv" in k}):
        params[f"step{name.replace('/', '_')}"] = {
            "norm": norm(f"{name}/actnorm"),
            "mixing": {"weight": state[f"{name}/invconv/W"]},
            "coupling": {
                "conv1": {"conv": {"kernel": state[f"{name}/f1/l_1/W"]}},
                "norm1": norm(f"{name}/f1/l_1/actnorm"),
                "conv2": {"kernel": state[f"{name}/f1/l_2/W"]},
                "norm2": norm(f"{name}/f1/l_2/actnorm"),
                "conv3": zeros(f"{name}/f1/l_last"),
            },
        }
    top = zeros("prior/p", lambda a: a)
    top["edge"]["conv"]["kernel"] = top["edge"]["conv"]["kernel"][:, :, -1:]
    rows = state["prior/y_emb/W"]
    params["prior_top"] = {
        "conv": top,
        "label": {"embedding": np.concatenate([rows, 0 * rows[:1]])},
        "bias": state["prior/y_emb/b"],
        "gain": state["prior/y_emb/logs"],
    }
    return params


@pytest.mark.parity
def test_glow_equals_the_papers():
    torch, theirs = pytest.importorskip("torch"), official()
    state = theirs.weights(theirs.glow_shapes(steps=2, channels=1, hidden=6, classes=3), scale=0.2)
    for name, value in state.items():
        if "invconv" in name:
            state[name] = value + 1.5 * torch.eye(len(value)).flip(0)
    ours = Glow(num_classes=3, shape=(8, 8, 1), scales=2, steps=2, hidden=6)
    params = glow_params(arrays(state), steps=2)
    x = np.random.default_rng(2).normal(size=(4, 8, 8, 1)).astype("float32")
    labels = np.array([0, 1, 2, 3])  # 3: no label
    wanted = jax.eval_shape(ours.init, jax.random.key(0), x, labels)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, wanted)
    one_hot = torch.tensor(np.eye(4)[labels][:, :3].astype("float32"))
    want, total = theirs.glow(state, torch.tensor(x), one_hot, steps=2)
    z, log_det = quick_jit(ours.apply)({"params": params}, x, labels)
    close(z, torch.cat([a.reshape(4, -1) for a in want], 1))
    close(log_det, total)
    back = quick_jit(ours.inverse)(params, z, labels)
    np.testing.assert_allclose(back, x, atol=1e-3)


# --- LlamaGen ---


@pytest.mark.parity
@pytest.mark.parametrize("zero", [True, False])
def test_llamagen_equals_the_papers(zero):
    """With the class token's query and key at zero, as released, and as it was meant."""
    torch, theirs = pytest.importorskip("torch"), official()
    shapes = theirs.llamagen_shapes(layers=2, width=32, hidden=96, levels=11, classes=3)
    state = theirs.weights(shapes, scale=0.3)
    ours = Llama(3, 11, (3, 3), width=32, depth=2, heads=2, multiple=32, zero_class_token=zero)
    params = from_gpt(arrays(state), heads=2)
    tokens = np.random.default_rng(3).integers(0, 11, (4, 9))
    labels = np.array([0, 1, 2, 3])
    wanted = jax.eval_shape(ours.init, jax.random.key(0), tokens, labels)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda a: a.shape, wanted)
    want = theirs.llamagen(
        state,
        torch.tensor(tokens),
        torch.tensor(labels),
        layers=2,
        heads=2,
        side=3,
        turned=not zero,
    )
    got = quick_jit(ours.apply)({"params": params}, tokens, labels)
    close(got, want)
    # One by one, with keys and values kept.
    memory, step = ours.decoder(jax.tree.map(jnp.asarray, params), jnp.asarray(labels))
    step = quick_jit(step)
    for i in range(9):
        row, memory = step(memory, jnp.asarray(tokens), i)
        close(row, want[:, i])
    other = quick_jit(ours.clone(zero_class_token=not zero).apply)(
        {"params": params}, tokens, labels
    )
    assert np.abs(other - got).max() > 1e-2


# --- Golden numbers ---

TINY = dict(channels=8, multipliers=(1, 2), blocks=1, attention_sizes=(4,))
TRANSFORMER = dict(depth=2, width=16, heads=2)
PICTURES = {
    "dit": (DiT(3, 4, patch=2, time_scale=1.0, **TRANSFORMER), [4.0, 999.0]),
    "sit": (SiT(3, 2, patch=2, **TRANSFORMER), [0.1, 0.9]),
    "ddpmpp": (UNet(3, 2, augment_dim=2, **TINY), [-1.2, 0.4]),
    "ncsnpp": (NCSNpp(3, 2, **TINY), [-1.2, 0.4]),
    "adm": (ADM(3, 2, **TINY), [4.0, 999.0]),
    "edm2": (EDM2(3, 2, head_channels=4, **TINY), [-1.2, 0.4]),
}
LABELLED = {
    "tarflow": TarFlow(3, (4, 4, 2), patch=2, width=16, flows=3, layers=1, heads=2),
    "glow": Glow(3, (8, 8, 2), scales=2, steps=1, hidden=6),
    "llamagen": Llama(3, 11, (3, 3), multiple=16, zero_class_token=True, **TRANSFORMER),
}
GOLDEN: dict[str, list[float]] = {
    "dit": [0.1336374, -1.697745, -1.577547, -1.720338, -2.496881],
    "sit": [-2.213796, 1.880322, 0.9080949, 3.829002, 3.607817],
    "ddpmpp": [2.110472, -1.564814, -0.05432912, -2.320567, -0.02045716],
    "ncsnpp": [2.158072, -1.973225, 0.3588497, -3.245128, -0.1412808],
    "adm": [0.4222264, 0.196918, -0.01615503, -1.23091, -0.1539599],
    "edm2": [-1.660014, -0.9197329, 2.005394, 0.3558071, 0.5738117],
    "tarflow": [1.025538, 0.3412439, -0.7407145, 0.5221176, -1.251355],
    "glow": [0.1584937, -0.06300414, 0.5449041, -1.117802, -295.2434],
    "llamagen": [0.3150883, -0.00149222, 0.5227286, 1.344569, 0.2713295],
}
"""Five numbers of the output, evenly spaced from its first to its last."""


def sines(shape, scale):
    """scale times the sine of 1.7 n + .01 n^2, n = 1, 2, .. over the places, float32."""
    n = np.arange(1, int(np.prod(shape)) + 1)
    return (scale * np.sin(1.7 * n + 0.01 * n**2)).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("name", [*PICTURES, *LABELLED])
def test_golden_numbers(name):
    labels = np.array([1, 3])  # 3: no label
    if name in PICTURES:
        net, noise = PICTURES[name]
        given = sines((2, 8, 8, 2), 1.0), np.array(noise, np.float32), labels
    elif name == "llamagen":
        net, given = LABELLED[name], (np.arange(18).reshape(2, 9) % 11, labels)
    else:
        net = LABELLED[name]
        given = sines((2, *net.shape), 1.0), labels
    tree = jax.eval_shape(net.init, jax.random.key(0), *given)["params"]
    # Near one where a norm scales; a gain that is one number is not small.
    matrix = 0.1 if name == "tarflow" else 0.4
    params = jax.tree_util.tree_map_with_path(
        lambda path, a: (
            sines(a.shape, (1.0, 0.2, matrix)[min(a.ndim, 2)]) + (path[-1].key == "scale")
        ),
        tree,
    )
    out = quick_jit(net.apply)({"params": params}, *given)
    flat = np.concatenate([np.asarray(a).reshape(-1) for a in jax.tree.leaves(out)])
    found = flat[np.linspace(0, flat.size - 1, 5).astype(int)]
    np.testing.assert_allclose(found, GOLDEN[name], rtol=2e-5, atol=2e-5)
