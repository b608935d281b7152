"""U-Nets: the papers' parameter counts, zero at initialisation, equality with diffusers' ADM."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn import edm2
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.nn.resample import double, halve
from jaxgen.nn.unet import ADM, NCSNpp, UNet
from tests.nn_kit import abstract, inputs, live_variables, quick_jit

# Millions of parameters: Karras et al. 2022 (DDPM++, NCSN++ for CIFAR-10; ADM for ImageNet-64) and
# Karras et al. 2024, table 6 (EDM2 for ImageNet-512 latents).
PAPER = [
    ("ddpmpp", UNet(num_classes=10, out_channels=3), (32, 32, 3), 55.7),
    ("ncsnpp", NCSNpp(num_classes=10, out_channels=3), (32, 32, 3), 56.5),
    ("adm", ADM(num_classes=1000, out_channels=3), (64, 64, 3), 295.9),
    *(
        (f"edm2_{size}", edm2.EDM2(1000, 4, size), (64, 64, 4), millions)
        for size, millions in
        {"XS": 125, "S": 280, "M": 498, "L": 777, "XL": 1119, "XXL": 1523}.items()
    ),
]  # fmt: skip


@pytest.mark.parametrize("name,module,shape,millions", PAPER, ids=[row[0] for row in PAPER])
def test_sizes_have_the_papers_parameters(name, module, shape, millions):
    assert parameters(module, shape) / 1e6 == pytest.approx(millions, rel=3e-3)


def test_edm2_has_the_papers_multiply_adds_within_two_percent():
    """Table 6 also counts element-wise work, which `multiply_adds` leaves out."""
    for size, giga in {"XS": 45.5, "S": 102.2, "XXL": 552.1}.items():
        module = edm2.EDM2(1000, 4, size)
        assert multiply_adds(module, (64, 64, 4)) / 1e9 == pytest.approx(giga, rel=0.02)


SMALL = {"num_classes": 5, "channels": 8, "multipliers": (1, 2), "blocks": 1}


@pytest.mark.parametrize("build", [NCSNpp, ADM, edm2.EDM2], ids=["ncsnpp", "adm", "edm2"])
def test_at_initialisation_the_output_is_zero(build):
    module = build(out_channels=2, attention_sizes=(4,), **SMALL)
    args = inputs((8, 8, 2))
    variables = quick_jit(module.init)(jax.random.key(0), *args)
    assert not jnp.any(quick_jit(module.apply)(variables, *args))


@pytest.mark.parametrize("build", [ADM, edm2.EDM2], ids=["adm", "edm2"])
def test_wrong_image_size_names_the_size_and_the_multiple(build):
    with pytest.raises(UsageError, match=r"image size: got \(8, 9, 2\).*multiples of 2"):
        abstract(build(out_channels=2, **SMALL), (8, 9, 2))


def test_unknown_names_are_usage_errors():
    with pytest.raises(UsageError, match="model.filter: got 'fer'.*'fir'"):
        abstract(UNet(5, 2, filter="fer"), (8, 8, 2))
    with pytest.raises(UsageError, match="model.embedding"):
        abstract(UNet(5, 2, embedding="fourrier"), (8, 8, 2))
    with pytest.raises(UsageError, match="model.size.*'XXL'"):
        edm2.EDM2(2, 1, "XXXL")


def test_augment_numbers_condition_the_output_and_zeros_are_the_default():
    module = UNet(out_channels=2, attention_sizes=(), augment_dim=3, **SMALL)
    variables = live_variables(module, (8, 8, 2))
    args = inputs((8, 8, 2))
    apply = quick_jit(module.apply)
    none = apply(variables, *args, augment=jnp.zeros((3, 3)))
    np.testing.assert_allclose(apply(variables, *args), none, rtol=1e-5, atol=1e-5)
    assert jnp.abs(apply(variables, *args, augment=jnp.ones((3, 3))) - none).max() > 1e-3


@pytest.mark.parametrize("name,taps", [("box", [1, 1]), ("fir", [1, 3, 3, 1])])
def test_resampling_is_convolution_with_the_filter(name, taps):
    kernel = np.outer(taps, taps) / np.sum(taps) ** 2
    x = np.random.default_rng(0).normal(size=(6, 8))
    pad = len(taps) // 2 - 1
    padded = np.pad(x, pad)
    want = np.array(
        [
            [
                (padded[2 * i : 2 * i + len(taps), 2 * j : 2 * j + len(taps)] * kernel).sum()
                for j in range(4)
            ]
            for i in range(3)
        ]
    )
    image = jnp.asarray(x[None, :, :, None], jnp.float32)
    np.testing.assert_allclose(halve(image, name)[0, :, :, 0], want, atol=1e-6)
    # Doubling is the transpose of halving, times the four pixels that one becomes.
    small = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 4, 1)), jnp.float32)
    (transpose,) = jax.linear_transpose(lambda a: halve(a, name), image)(small)
    np.testing.assert_allclose(double(small, name), 4 * transpose, atol=1e-6)


def _from_diffusers(state, levels, blocks):
    """Parameters of `ADM` from a UNet2DModel with ResNet resampling and scale-shift norm."""

    def conv(name):
        return {
            "kernel": state[f"{name}.weight"].transpose(2, 3, 1, 0),
            "bias": state[f"{name}.bias"],
        }

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def block(resnet, attend=None):
        made = {"norm_in": norm(f"{resnet}.norm1"), "conv_in": conv(f"{resnet}.conv1")}
        made |= {"affine": dense(f"{resnet}.time_emb_proj"), "norm_out": norm(f"{resnet}.norm2")}
        made["conv_out"] = conv(f"{resnet}.conv2")
        if f"{resnet}.conv_shortcut.weight" in state:
            made["skip"] = conv(f"{resnet}.conv_shortcut")
        if attend and f"{attend}.to_q.weight" in state:
            qkv = [dense(f"{attend}.to_{n}") for n in "qkv"]
            made["qkv"] = {k: np.concatenate([part[k] for part in qkv], -1) for k in qkv[0]}
            made |= {"norm_attention": norm(f"{attend}.group_norm")}
            made["proj"] = dense(f"{attend}.to_out.0")
        return made

    params = {"in": conv("conv_in"), "out": conv("conv_out"), "norm_out": norm("conv_norm_out")}
    params["noise_hidden"] = dense("time_embedding.linear_1")
    params["noise_out"] = dense("time_embedding.linear_2")
    params["labels"] = {"kernel": state["class_embedding.weight"]}
    params["middle_0"] = block("mid_block.resnets.0", "mid_block.attentions.0")
    params["middle_1"] = block("mid_block.resnets.1")
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for i in range(blocks):
            params[f"encode_{level}_{i}"] = block(f"{down}.resnets.{i}", f"{down}.attentions.{i}")
        for i in range(blocks + 1):
            params[f"decode_{level}_{i}"] = block(f"{up}.resnets.{i}", f"{up}.attentions.{i}")
        if level < levels - 1:
            params[f"halve_{level + 1}"] = block(f"{down}.downsamplers.0")
            params[f"double_{level}"] = block(f"up_blocks.{levels - 2 - level}.upsamplers.0")
    return params


@pytest.mark.parity
def test_adm_equals_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=6, block_out_channels=(128, 256),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        layers_per_block=1, downsample_type="resnet", upsample_type="resnet",
        resnet_time_scale_shift="scale_shift", attention_head_dim=32, num_class_embeds=5,
        attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    for name, parameter in theirs.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(norm), std=0.1)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    noise, labels = np.array([0.0, 3.5, 700.0], "float32"), np.array([0, 2, 4])
    with torch.no_grad():
        nchw = torch.tensor(x).permute(0, 3, 1, 2)
        want = theirs(nchw, torch.tensor(noise), class_labels=torch.tensor(labels)).sample
        want = want.permute(0, 2, 3, 1).numpy()
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours = ADM(
        num_classes=5, out_channels=6, channels=128, multipliers=(1, 2), blocks=1,
        attention_sizes=(4,), head_channels=32,
    )  # fmt: skip
    params = _from_diffusers(state, 2, 1)
    shapes = jax.tree.map(lambda a: a.shape, abstract(ours, (8, 8, 3))["params"])
    assert jax.tree.map(np.shape, params) == shapes
    got = quick_jit(ours.apply)({"params": params}, x, noise, labels)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
