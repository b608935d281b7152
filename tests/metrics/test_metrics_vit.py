"""DINOv2 and CLIP's image tower against transformers', on random weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxgen.errors import UsageError
from jaxgen.metrics.extractors import clip, dinov2, vit

TINY = dict(width=24, depth=3, heads=2)
REAL = dict(width=768, depth=1, heads=12)


def randomised(model, seed: int) -> dict[str, np.ndarray]:
    """Its weights drawn anew, none of them zero or one; as the names of the published files."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            scale = 0.3 if weight.ndim < 2 else weight[0].numel() ** -0.5
            weight.copy_(torch.randn_like(weight) * scale + (weight.ndim < 2) * 0.5)
    model.eval()
    renamed = {
        ".attention.q_proj.": ".attention.attention.query.",
        ".attention.k_proj.": ".attention.attention.key.",
        ".attention.v_proj.": ".attention.attention.value.",
        ".attention.o_proj.": ".attention.output.dense.",
    }
    state = {}
    for name, value in model.state_dict().items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        state[name] = value.numpy()
    return state


def images(side: int) -> np.ndarray:
    return np.random.default_rng(side).normal(size=(2, side, side, 3)).astype(np.float32)


def nchw(x: np.ndarray):
    import torch

    return torch.tensor(x.transpose(0, 3, 1, 2))


def run(module, params, x) -> np.ndarray:
    wanted = vit.shapes(module, x.shape[1])
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)
    return np.asarray(jax.jit(module.apply)({"params": params}, x))


def near(made, expected) -> None:
    # Measured: 2e-6 of the largest at most.
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def dinov2_model(size, side: int):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        image_size=14 * side,
        patch_size=14,
    )
    return transformers.Dinov2Model(config)


@pytest.mark.parity
@pytest.mark.parametrize(("size", "side"), [(TINY, 5), (TINY, 3), (REAL, 5)])
def test_dinov2_is_transformers(size, side):
    model = dinov2_model(size, 5)
    state = randomised(model, side)
    x = images(14 * side)
    import torch

    with torch.no_grad():
        expected = model(nchw(x)).last_hidden_state[:, 0].numpy()
    params = dinov2.convert(state, heads=size["heads"], side=side, offset=0.0)
    near(run(dinov2.module(**size), params, x), expected)


@pytest.mark.parity
def test_dinov2s_two_file_formats_are_one_network():
    model = dinov2_model(TINY, 5)
    state = randomised(model, 0)
    meta = {
        "cls_token": state["embeddings.cls_token"],
        "mask_token": state["embeddings.mask_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.output.dense": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for i in range(TINY["depth"]):
        theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            for hub, own in names.items():
                meta[f"{ours}{own}.{kind}"] = state[f"{theirs}{hub}.{kind}"]
            parts = [f"{theirs}attention.attention.{n}.{kind}" for n in ("query", "key", "value")]
            meta[f"{ours}attn.qkv.{kind}"] = np.concatenate([state[part] for part in parts])
        for n in (1, 2):
            meta[f"{ours}ls{n}.gamma"] = state[f"{theirs}layer_scale{n}.lambda1"]
    found = [dinov2.convert(s, heads=2, side=4) for s in (state, meta)]
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parity
def test_dinov2s_positions_are_metas_interpolation():
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(1 + 37 * 37, 4)).astype(np.float32)
    grid = torch.tensor(table[1:].reshape(1, 37, 37, 4).transpose(0, 3, 1, 2))
    scale = (16 + 0.1) / 37
    expected = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    expected = expected.numpy()[0].transpose(1, 2, 0).reshape(256, 4)
    made = dinov2.positions(table, 16, 0.1)
    np.testing.assert_array_equal(made[0], table[0])
    np.testing.assert_allclose(made[1:], expected, atol=1e-5)
    # The offset is no matter of rounding.
    assert np.abs(dinov2.positions(table, 16, 0.0)[1:] - expected).max() > 0.1
    assert dinov2.positions(table, 37, 0.1) is table


@pytest.mark.parity
@pytest.mark.parametrize("size", [TINY, REAL])
def test_clip_is_transformers(size):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        projection_dim=10,
        image_size=42,
        patch_size=14,
    )
    model = transformers.CLIPVisionModelWithProjection(config)
    state = randomised(model, 0)
    x = images(42)
    import torch

    with torch.no_grad():
        expected = model(nchw(x)).image_embeds.numpy()
    # A whole CLIP's file has more in it.
    params = clip.convert(state | {"text_model.x": np.zeros(1)}, heads=size["heads"])
    made = run(clip.module(**size, projection=10), params, x)
    near(made, expected)
    lengths = np.linalg.norm(expected, axis=-1, keepdims=True)
    near(np.asarray(clip.scaled(made)), expected / lengths)


def sizes(module, size: int) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(vit.shapes(module, size)))


def test_sizes():
    # The published counts: Meta's 86,580,480 and 304,368,640 have the 1,370 positions of 518
    # pixels (ours are the 257 of 224) and a mask token; CLIP's tower and its projection.
    for name, published in (("dinov2_vitb14", 86_580_480), ("dinov2_vitl14", 304_368_640)):
        width = dinov2.SIZES[name]["width"]
        ours = sizes(dinov2.module(**dinov2.SIZES[name]), dinov2.SIZE)
        assert ours == published - (1370 - 257 + 1) * width
    assert sizes(clip.module(**clip.LARGE), clip.SIZE) == 304_293_888


def test_missing_and_foreign_weights_are_named():
    with pytest.raises(UsageError, match="patch_embeddings.projection.weight"):
        dinov2.convert({}, heads=2)
    with pytest.raises(UsageError, match="register_tokens"):
        dinov2.convert({"pos_embed": np.zeros(1), "register_tokens": np.zeros(1)}, heads=2)
    with pytest.raises(UsageError, match="vision_model.embeddings"):
        clip.convert({"text_model.x": np.zeros(1)}, heads=2)
    with pytest.raises(UsageError, match="a square's"):
        dinov2.positions(np.zeros((9, 4), np.float32), 2, 0.1)
