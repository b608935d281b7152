"""DiT: the paper's sizes, the identity at initialisation, and equality with diffusers' DiT."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.nn.dit import DiT, patchify, unpatchify
from jaxgen.nn.flops import multiply_adds, parameters
from jaxgen.nn.positions import rope_2d, rotate, sin_cos_2d
from jaxgen.pretrained.dit import from_diffusers, to_diffusers
from tests.nn_kit import inputs, live_variables, quick_jit

# Peebles & Xie 2023, table 4 and appendix: millions of parameters, G multiply-adds.
PAPER = {
    "S/2": (33, 6.06), "S/4": (33, 1.41), "S/8": (33, 0.36),
    "B/2": (130, 23.01), "B/4": (130, 5.56), "B/8": (131, 1.42),
    "L/2": (458, 80.71), "L/4": (458, 19.70), "L/8": (459, 5.01),
    "XL/2": (675, 118.64), "XL/4": (675, 29.05), "XL/8": (676, 7.39),
}  # fmt: skip


@pytest.mark.parametrize("size", PAPER)
def test_sizes_have_the_papers_parameters_and_multiply_adds(size):
    module = DiT(1000, 8, size)
    millions, giga = PAPER[size]
    assert round(parameters(module, (32, 32, 4)) / 1e6) == millions
    assert multiply_adds(module, (32, 32, 4)) / 1e9 == pytest.approx(giga, rel=1e-3, abs=0.0051)


def test_xl_2_at_512_pixels_has_the_papers_multiply_adds():
    module = DiT(1000, 8, "XL/2")
    assert multiply_adds(module, (64, 64, 4)) / 1e9 == pytest.approx(524.6, rel=1e-3)


def test_fields_that_are_set_win_over_the_sizes():
    net = DiT(10, 3, "XL/2", depth=4, patch=8)
    assert (net.depth, net.width, net.heads, net.patch) == (4, 1152, 16, 8)
    assert net.clone(out_channels=6).depth == 4


def test_swiglu_keeps_the_size_of_the_plain_mlp():
    plain, gated = (DiT(10, 3, depth=2, width=384, heads=6, swiglu=s) for s in (False, True))
    assert parameters(gated, (32, 32, 3)) == pytest.approx(parameters(plain, (32, 32, 3)), rel=5e-3)


@pytest.mark.parametrize("variant", [{}, {"qk_norm": True, "rope": True, "swiglu": True}], ids=str)
def test_at_initialisation_the_output_is_zero_and_each_block_the_identity(variant):
    module = DiT(5, 3, depth=2, width=16, heads=2, **variant)
    args = inputs((8, 8, 3))
    variables = quick_jit(module.init)(jax.random.key(0), *args)
    assert not jnp.any(module.apply(variables, *args))
    for name, layer in variables["params"]["blocks"].items():
        zero = name == "modulation"
        assert jnp.any(layer.get("kernel", layer.get("scale"))) != zero
    # With a live head, the depth does not show: the blocks pass their input on.
    params = dict(variables["params"])
    params["out"] = jax.tree.map(jnp.ones_like, params["out"])
    shallow = {**params, "blocks": jax.tree.map(lambda a: a[:1], params["blocks"])}
    deep = module.apply({"params": params}, *args)
    assert jnp.any(deep)
    np.testing.assert_array_equal(deep, module.clone(depth=1).apply({"params": shallow}, *args))


def test_patches_come_back_where_they_came_from():
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    patches = patchify(x, 2)
    np.testing.assert_array_equal(patches[1], x[0, :2, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, 2, 2, 3, 2), x)


def test_wrong_image_size_names_the_size_and_the_patch():
    module = DiT(5, 1, patch=4)
    with pytest.raises(UsageError, match=r"image size: got \(10, 8, 1\).*patch=4"):
        jax.eval_shape(module.init, jax.random.key(0), *inputs((10, 8, 1)))
    with pytest.raises(UsageError, match="model.size.*'XL/2'"):
        DiT(10, 1, "XXL/2")


def test_rotary_scores_depend_on_offsets_alone():
    angles = rope_2d(4, 5, 8).reshape(4, 5, 4)
    q, k = np.random.default_rng(0).normal(size=(2, 8)).astype("float32")

    def score(a, b):
        return rotate(jnp.asarray(q), angles[a]) @ rotate(jnp.asarray(k), angles[b])

    assert score((0, 0), (2, 1)) == pytest.approx(float(score((1, 3), (3, 4))), abs=1e-5)
    assert abs(score((0, 0), (2, 1)) - score((0, 0), (1, 2))) > 1e-3


def test_an_out_of_range_label_is_never_silent():
    module = DiT(5, 1, depth=1, width=16, heads=2)
    variables = live_variables(module, (4, 4, 1))
    x, noise, _ = inputs((4, 4, 1))
    assert jnp.isnan(module.apply(variables, x, noise, jnp.full(3, 6))).all()


@pytest.fixture(scope="module")
def peers():
    """diffusers' DiT with learned sigma, its weights, and ours for them."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=3, out_channels=6, num_layers=3,
        sample_size=8, patch_size=2, num_embeds_ada_norm=7, norm_eps=1e-6,
    ).eval()  # fmt: skip
    embedding = theirs.transformer_blocks[0].norm1.emb
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(embedding.state_dict())
        # The paper's frequencies; diffusers' default differs (see jaxgen.pretrained.dit).
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours = DiT(num_classes=7, out_channels=6, depth=3, width=48, heads=3, patch=2)
    return torch, theirs, state, ours


@pytest.mark.parity
def test_forward_equals_diffusers(peers):
    torch, theirs, state, ours = peers
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    steps, labels = np.array([0, 17, 500, 999]), np.array([0, 3, 6, 7])  # 7: the null label
    with torch.no_grad():
        nchw = torch.tensor(x).permute(0, 3, 1, 2)
        want = theirs(nchw, torch.tensor(steps), class_labels=torch.tensor(labels)).sample
        want = want.permute(0, 2, 3, 1)
    params = from_diffusers(state, patch=2, heads=3)
    got = ours.apply({"params": params}, x, jnp.asarray(steps / 1000), jnp.asarray(labels))
    assert np.abs(want.numpy()).max() > 1
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-5 * np.abs(want.numpy()).max())


@pytest.mark.parity
def test_weights_return_from_diffusers_unchanged(peers):
    _, theirs, state, _ = peers
    back = to_diffusers(from_diffusers(state, patch=2, heads=3), patch=2, heads=3)
    assert set(state) == set(back)
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name])
    # Their buffer of positions is our table.
    table = theirs.pos_embed.pos_embed[0].numpy()
    np.testing.assert_allclose(table, sin_cos_2d(4, 4, 48), atol=1e-6)
    torn = {k: v for k, v in state.items() if k != "proj_out_1.bias"}
    with pytest.raises(UsageError, match="proj_out_1.bias"):
        from_diffusers(torn, patch=2, heads=3)
    hidden = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    uneven = {**state, hidden: np.ones(48)}
    with pytest.raises(UsageError, match="block 1 differs"):
        from_diffusers(uneven, patch=2, heads=3)
