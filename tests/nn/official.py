"""Networks of the papers, written down once more in PyTorch from their formulas, to compare with.

Each takes a dict of tensors under the names that the papers' own checkpoints have, so that what is
compared goes through the same doors as those do. NCHW, as there.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0, scale: float = 0.15):
    """Random float32 tensors; those called *norm*.weight are near one."""
    rng = np.random.default_rng(seed)
    return {
        name: torch.tensor(
            rng.normal(size=shape) * scale + ("norm" in name and name.endswith("weight")),
            dtype=torch.float32,
        )
        for name, shape in shapes.items()
    }


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def heads_of(x, heads):
    """[B, N, C] -> [B, heads, N, C / heads]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def sin_cos(positions, width):
    """MAE's 1-D table: sines, then cosines, of positions times 10000^(-2i / width)."""
    omega = 10_000.0 ** -(np.arange(width // 2) / (width / 2))
    angles = np.outer(np.asarray(positions).reshape(-1), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


# --- DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024) ---


def dit_shapes(*, depth, width, patch, channels, classes, mlp=4):
    shapes = {
        "x_embedder.proj": (width, channels, patch, patch),
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "final_layer.linear": (patch * patch * 2 * channels, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (mlp * width, width),
            f"blocks.{i}.mlp.fc2": (width, mlp * width),
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
        }
    full = {f"{name}.weight": shape for name, shape in shapes.items()}
    full |= {f"{name}.bias": shape[:1] for name, shape in shapes.items()}
    return {**full, "y_embedder.embedding_table.weight": (classes + 1, width)}


def dit(w, x, t, y, *, depth, heads, patch):
    """Output [B, 2 C, H, W] of x [B, C, H, W] at the numbers t [B] for labels y [B]."""
    width = w["t_embedder.mlp.2.bias"].shape[0]
    side = x.shape[-1] // patch
    h = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=patch)
    h = h.flatten(2).transpose(1, 2)
    # MAE's grid has the column first.
    columns, rows = np.meshgrid(np.arange(side), np.arange(side))
    table = np.concatenate([sin_cos(columns, width // 2), sin_cos(rows, width // 2)], 1)
    h = h + torch.tensor(table, dtype=torch.float32)
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = t[:, None].float() * frequencies
    c = torch.cat([angles.cos(), angles.sin()], -1)
    c = linear(w, "t_embedder.mlp.2", F.silu(linear(w, "t_embedder.mlp.0", c)))
    c = F.silu(c + w["y_embedder.embedding_table.weight"][y])

    def norm(h, shift, scale):
        return F.layer_norm(h, (width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    for i in range(depth):
        name = f"blocks.{i}"
        parts = linear(w, f"{name}.adaLN_modulation.1", c).chunk(6, 1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        qkv = linear(w, f"{name}.attn.qkv", norm(h, shift_a, scale_a)).chunk(3, -1)
        a = F.scaled_dot_product_attention(*(heads_of(part, heads) for part in qkv))
        a = linear(w, f"{name}.attn.proj", a.transpose(1, 2).reshape(h.shape))
        h = h + gate_a[:, None] * a
        m = linear(w, f"{name}.mlp.fc1", norm(h, shift_m, scale_m))
        m = linear(w, f"{name}.mlp.fc2", F.gelu(m, approximate="tanh"))
        h = h + gate_m[:, None] * m
    shift, scale = linear(w, "final_layer.adaLN_modulation.1", c).chunk(2, 1)
    h = linear(w, "final_layer.linear", norm(h, shift, scale))
    h = h.reshape(len(x), side, side, patch, patch, -1)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, *x.shape[2:])
