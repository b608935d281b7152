"""The convolutional autoencoder: Stable Diffusion's layout, size and function."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.autoencoder import AutoencoderKL, Decoder, Encoder
from jaxgen.pretrained.autoencoder_kl import from_diffusers, from_own, normalised
from jaxgen.pretrained.layout import Found
from jaxgen.pretrained.layouts import LAYOUTS, layout_of
from tests.nn_kit import quick_jit, random_like

TINY = dict(widths=(8, 16, 16), blocks=1, latent_channels=3, groups=4)


def size(module, *args) -> int:
    shapes = jax.eval_shape(module.init, jax.random.key(0), *args)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def test_stable_diffusions_size():
    # diffusers' AutoencoderKL of Stable Diffusion 1.x has 83,653,863 weights.
    assert size(AutoencoderKL(out_channels=3), jnp.zeros((1, 64, 64, 3))) == 83_653_863


@pytest.mark.parity
@pytest.mark.parametrize("blocks", [1, 2])
def test_is_diffusers_autoencoder_on_random_weights(blocks):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(blocks)
    kinds = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
    theirs = diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=kinds[0],
        up_block_types=kinds[1],
        block_out_channels=TINY["widths"],
        layers_per_block=blocks,
        latent_channels=3,
        norm_num_groups=4,
    ).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2)
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    params = from_diffusers(state)
    ours = AutoencoderKL(out_channels=3, **{**TINY, "blocks": blocks})
    x = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    abstract = jax.eval_shape(ours.init, jax.random.key(0), x)["params"]
    shapes = jax.tree.map(jnp.shape, abstract)
    assert jax.tree.map(jnp.shape, params) == shapes
    with torch.no_grad():
        moments = theirs.encode(torch.tensor(x.transpose(0, 3, 1, 2))).latent_dist
        image = theirs.decode(moments.mean).sample.numpy().transpose(0, 2, 3, 1)
    apply = quick_jit(ours.apply, static_argnames="method")
    mean, logvar = apply({"params": params}, x, method="encode")
    made = apply({"params": params}, mean, method="decode")
    for a, b in ((mean, moments.mean), (logvar, moments.logvar)):
        b = b.numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    np.testing.assert_allclose(made, image, atol=1e-4 * np.abs(image).max())


def test_missing_weights_are_named():
    with pytest.raises(UsageError, match="encoder.conv_in.weight"):
        from_diffusers({})


def test_sizes_that_do_not_divide_are_refused():
    encoder = Encoder(4, widths=(8, 8, 8))
    with pytest.raises(UsageError, match="multiples of 4"):
        jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 10, 8, 1)))


def test_shapes_attention_levels_and_bfloat16():
    encoder = Encoder(6, widths=(8, 16), blocks=1, attention_levels=(1,), dtype="bfloat16")
    decoder = Decoder(1, widths=(8, 16), blocks=1, attention_levels=(1,), dtype="bfloat16")
    x = jnp.ones((2, 8, 12, 1))
    variables = random_like(jax.eval_shape(encoder.init, jax.random.key(0), x))
    code = quick_jit(encoder.apply)(variables, x)
    assert code.shape == (2, 4, 6, 6) and code.dtype == jnp.float32
    assert "down1_attention0" in variables["params"]
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(variables))
    held = random_like(jax.eval_shape(decoder.init, jax.random.key(0), code))
    image = quick_jit(decoder.apply)(held, code)
    assert image.shape == x.shape and image.dtype == jnp.float32


def test_latents_normalised_by_channel_are_of_the_same_images():
    """Of EDM2: the mean, the deviation and the image, before and after."""
    net = AutoencoderKL(out_channels=3, **TINY)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
    params = {"net": random_like(jax.eval_shape(net.init, jax.random.key(0), x))["params"]}
    mean, scale = np.array([5.8, 0.1, -2.0]), np.array([0.12, 0.4, 2.0])
    changed = normalised(jax.device_get(params), mean, scale)
    apply = quick_jit(net.apply, static_argnames="method")
    (m, v), (n, w) = (apply({"params": p["net"]}, x, method="encode") for p in (params, changed))
    np.testing.assert_allclose(n, (m - mean) * scale, atol=1e-4)
    np.testing.assert_allclose(np.exp(w / 2), np.exp(v / 2) * scale, rtol=1e-4)
    first, second = (
        apply({"params": p["net"]}, z, method="decode") for p, z in ((params, m), (changed, n))
    )
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_latent_diffusions_own_names_are_of_the_same_network():
    """Its names are given to our arrays one by one: levels of both halves from the highest."""
    net = AutoencoderKL(out_channels=3, **{**TINY, "blocks": 2}, attention_levels=(2,))
    shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    params = random_like(jax.eval_shape(net.init, jax.random.key(0), shape))["params"]
    flat = {".".join(k.key for k in p): a for p, a in jax.tree_util.tree_leaves_with_path(params)}
    state = {}
    for name, array in flat.items():
        side, *rest = name.split(".")
        words = {"mid0": "mid.block_1", "mid1": "mid.block_2", "mid_attention": "mid.attn_1"}
        if side in ("quant", "post_quant"):
            theirs = f"{side}_conv"
        else:
            part = rest[0]
            level = re.fullmatch(r"(down|up)(\d)_(sample|attention)?(\d)?", part)
            if level:
                kind, number, what, n = level.groups()
                list_of = {"sample": f"{kind}sample.conv", "attention": f"attn.{n}"}
                part = f"{kind}.{number}.{list_of.get(what, f'block.{n}')}"
            inner = [{"proj": "proj_out", "shortcut": "nin_shortcut"}.get(w, w) for w in rest[1:-1]]
            theirs = ".".join([side, words.get(part, part), *inner])
        array = np.asarray(array)
        if array.ndim == 2:  # attention's matrices are 1x1 convolutions there
            array = array[None, None]
        kernel = array.ndim == 4
        end = "bias" if name.endswith("bias") else "weight"
        state[f"{theirs}.{end}"] = array.transpose(3, 2, 0, 1) if kernel else array
    found = from_own({**state, "loss.logvar": np.zeros(1)})
    jax.tree.map(np.testing.assert_array_equal, found, jax.device_get(params))
    config = LAYOUTS["autoencoder_ldm"].config(Found(state))["model"]
    assert config["attention_levels"] == (2,) and config["widths"] == TINY["widths"]
    assert layout_of(state).name == "autoencoder_ldm"
