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


# --- U-ViT (Bao et al. 2023) ---


def uvit_shapes(*, half, width, patch, channels, classes, places, last):
    shapes = {
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        "label_emb.weight": (classes + 1, width),
        "pos_embed": (1, 2 + places, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "decoder_pred.weight": (patch * patch * channels, width),
        "decoder_pred.bias": (patch * patch * channels,),
    }
    if last:
        shapes |= {
            "final_layer.weight": (channels, channels, 3, 3),
            "final_layer.bias": (channels,),
        }
    blocks = [f"{side}_blocks.{i}" for side in ("in", "out") for i in range(half)]
    for name in [*blocks, "mid_block"]:
        dense = {"attn.proj": (width, width), "mlp.fc1": (4 * width, width)}
        dense |= {"mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
        if name.startswith("out"):
            dense["skip_linear"] = (width, 2 * width)
        shapes[f"{name}.attn.qkv.weight"] = (3 * width, width)
        shapes |= {f"{name}.{n}.weight": shape for n, shape in dense.items()}
        shapes |= {f"{name}.{n}.bias": shape[:1] for n, shape in dense.items()}
    return shapes


def uvit(w, x, t, y, *, half, heads, patch):
    """Output [B, C, H, W] of x at the numbers t [B] for labels y [B]."""
    width, channels, side = w["norm.weight"].shape[0], x.shape[1], x.shape[-1] // patch
    h = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    half_width = width // 2
    steps = torch.arange(half_width, dtype=torch.float32)
    angles = t[:, None].float() * torch.exp(-math.log(10_000) * steps / half_width)
    time = torch.cat([angles.cos(), angles.sin()], -1)
    first = torch.stack([w["label_emb.weight"][y], time], 1)
    h = torch.cat([first, h.flatten(2).transpose(1, 2)], 1) + w["pos_embed"]

    def norm(name, h):
        return F.layer_norm(h, (width,), w[f"{name}.weight"], w[f"{name}.bias"])

    def block(name, h):
        qkv = linear(w, f"{name}.attn.qkv", norm(f"{name}.norm1", h)).chunk(3, -1)
        a = F.scaled_dot_product_attention(*(heads_of(part, heads) for part in qkv))
        h = h + linear(w, f"{name}.attn.proj", a.transpose(1, 2).reshape(h.shape))
        m = F.gelu(linear(w, f"{name}.mlp.fc1", norm(f"{name}.norm2", h)))
        return h + linear(w, f"{name}.mlp.fc2", m)

    skips = []
    for i in range(half):
        h = block(f"in_blocks.{i}", h)
        skips.append(h)
    h = block("mid_block", h)
    for i in range(half):
        merged = torch.cat([h, skips.pop()], -1)
        h = block(f"out_blocks.{i}", linear(w, f"out_blocks.{i}.skip_linear", merged))
    h = linear(w, "decoder_pred", norm("norm", h))[:, 2:]
    h = h.reshape(len(x), side, side, patch, patch, channels)
    h = h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
    if "final_layer.weight" in w:
        h = F.conv2d(h, w["final_layer.weight"], w["final_layer.bias"], padding=1)
    return h


# --- DDPM++ and NCSN++ (Song et al. 2021) as EDM's code has them (Karras et al. 2022) ---


class SongUNet:
    """EDM's network: `shapes` of its checkpoint, and `__call__` on such weights.

    fir: NCSN++ (Fourier features, [1, 3, 3, 1] resampling, residual input); otherwise DDPM++.
    """

    def __init__(self, *, channels, multipliers, blocks, attend, side, classes, augment, fir):
        self.c, self.multipliers, self.blocks, self.attend = channels, multipliers, blocks, attend
        self.side, self.classes, self.augment, self.fir = side, classes, augment, fir
        self.noise = channels * (2 if fir else 1)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if fir else [1.0, 1.0])
        self.filter = torch.outer(taps, taps) / taps.sum() ** 2
        self.shapes = {}

    def names(self):
        """Run once on shapes alone, which fills `shapes`."""
        self.recording = True
        x = torch.zeros(1, 3, self.side, self.side)
        self({}, x, torch.zeros(1), torch.zeros(1, self.classes), torch.zeros(1, self.augment))
        self.recording = False
        return self.shapes

    recording = False

    def get(self, w, name, shape):
        if self.recording:
            self.shapes[name] = shape
            return torch.zeros(shape)
        return w[name]

    def dense(self, w, name, x, out, bias=True):
        weight = self.get(w, f"{name}.weight", (out, x.shape[-1]))
        return F.linear(x, weight, self.get(w, f"{name}.bias", (out,)) if bias else None)

    def norm(self, w, name, x):
        c = x.shape[1]
        weight, bias = (self.get(w, f"{name}.{n}", (c,)) for n in ("weight", "bias"))
        return F.group_norm(x, min(32, c // 4), weight, bias, eps=1e-6)

    def conv(self, w, name, x, out, kernel, change=""):
        """A convolution; change: "up" or "down" by the filter first."""
        pad = (self.filter.shape[0] - 1) // 2
        each = self.filter.expand(x.shape[1], 1, -1, -1)
        if change == "up":
            x = F.conv_transpose2d(x, 4 * each, groups=x.shape[1], stride=2, padding=pad)
        if change == "down":
            x = F.conv2d(x, each, groups=x.shape[1], stride=2, padding=pad)
        weight = self.get(w, f"{name}.weight", (out, x.shape[1], kernel, kernel))
        x = F.conv2d(x, weight, padding=kernel // 2)
        return x + self.get(w, f"{name}.bias", (out,))[:, None, None]

    def residual(self, w, name, x, out):
        """A 3x3 at full resolution and the filter in one: padding for both goes before both."""
        pad = (self.filter.shape[0] - 1) // 2
        x = F.conv2d(x, self.get(w, f"{name}.weight", (out, x.shape[1], 3, 3)), padding=1 + pad)
        x = F.conv2d(x, self.filter.expand(out, 1, -1, -1), groups=out, stride=2)
        return x + self.get(w, f"{name}.bias", (out,))[:, None, None]

    def block(self, w, name, x, emb, out, change="", attend=False):
        h = F.silu(self.norm(w, f"{name}.norm0", x))
        h = self.conv(w, f"{name}.conv0", h, out, 3, change)
        h = h + self.dense(w, f"{name}.affine", emb, out)[:, :, None, None]
        h = F.silu(self.norm(w, f"{name}.norm1", h))
        h = self.conv(w, f"{name}.conv1", h, out, 3)
        if x.shape[1] != out or change:
            x = self.conv(w, f"{name}.skip", x, out, 1, change)
        x = (x + h) * 0.5**0.5
        if attend:
            b, c, side = len(x), out, x.shape[-1]
            qkv = self.conv(w, f"{name}.qkv", self.norm(w, f"{name}.norm2", x), 3 * c, 1)
            q, k, v = qkv.reshape(b, c, 3, -1).unbind(2)  # one head
            weight = torch.einsum("ncq,nck->nqk", q, k / c**0.5).softmax(2)
            a = torch.einsum("nqk,nck->ncq", weight, v).reshape(b, c, side, side)
            x = (self.conv(w, f"{name}.proj", a, c, 1) + x) * 0.5**0.5
        return x

    def embedding(self, w, noise, labels, augment):
        if self.fir:
            freqs = self.get(w, "map_noise.freqs", (self.noise // 2,)) * 2 * math.pi
        else:
            half = self.noise // 2
            freqs = (1 / 10_000) ** (torch.arange(half, dtype=torch.float32) / (half - 1))
        angles = torch.outer(noise, freqs)
        emb = torch.cat([angles.sin(), angles.cos()], 1)
        if self.classes:
            labels = labels * self.classes**0.5
            emb = emb + self.dense(w, "map_label", labels, self.noise)
        if self.augment:
            emb = emb + self.dense(w, "map_augment", augment, self.noise, bias=False)
        emb = F.silu(self.dense(w, "map_layer0", emb, 4 * self.c))
        return F.silu(self.dense(w, "map_layer1", emb, 4 * self.c))

    def __call__(self, w, x, noise, labels, augment):
        """[B, 3, H, W] at noise [B] for one-hot labels [B, classes] and augmentations."""
        emb, levels = self.embedding(w, noise, labels, augment), len(self.multipliers)
        widths, aux, skips = [self.c * m for m in self.multipliers], x, []
        for level, width in enumerate(widths):
            res = self.side >> level
            at = f"enc.{res}x{res}"
            if level == 0:
                x = self.conv(w, f"{at}_conv", x, self.c, 3)
            else:
                x = self.block(w, f"{at}_down", x, emb, x.shape[1], "down")
                if self.fir:
                    aux = self.residual(w, f"{at}_aux_residual", aux, x.shape[1])
                    x = aux = (x + aux) / 2**0.5
            skips.append(x)
            for i in range(self.blocks):
                x = self.block(w, f"{at}_block{i}", x, emb, width, attend=res in self.attend)
                skips.append(x)
        for level, width in reversed(list(enumerate(widths))):
            res = self.side >> level
            at = f"dec.{res}x{res}"
            if level == levels - 1:
                x = self.block(w, f"{at}_in0", x, emb, width, attend=True)
                x = self.block(w, f"{at}_in1", x, emb, width)
            else:
                x = self.block(w, f"{at}_up", x, emb, x.shape[1], "up")
            for i in range(self.blocks + 1):
                x = torch.cat([x, skips.pop()], 1)
                attend = i == self.blocks and res in self.attend
                x = self.block(w, f"{at}_block{i}", x, emb, width, attend=attend)
        x = F.silu(self.norm(w, f"{at}_aux_norm", x))
        return self.conv(w, f"{at}_aux_conv", x, 3, 3)


# --- TarFlow (Zhai et al. 2024) ---


def tarflow_shapes(*, flows, layers, width, dim, places, classes):
    shapes = {}
    for t in range(flows):
        shapes |= {
            f"blocks.{t}.pos_embed": (places, width),
            f"blocks.{t}.class_embed": (classes, 1, width),
        }
        dense = {"proj_in": (width, dim), "proj_out": (2 * dim, width)}
        for k in range(layers):
            name = f"attn_blocks.{k}"
            dense |= {
                f"{name}.attention.norm": (width,),
                f"{name}.attention.qkv": (3 * width, width),
                f"{name}.attention.proj": (width, width),
                f"{name}.mlp.norm": (width,),
                f"{name}.mlp.main.0": (4 * width, width),
                f"{name}.mlp.main.2": (width, 4 * width),
            }
        for name, shape in dense.items():
            shapes |= {
                f"blocks.{t}.{name}.weight": shape,
                f"blocks.{t}.{name}.bias": shape[:1],
            }
    return shapes


def tarflow_block(w, name, x, y, heads, layers, flip):
    """alpha, mu [B, N, D] of the next patch at each place of x [B, N, D], in the block's order."""
    order = (lambda a: a.flip(-2)) if flip else (lambda a: a)
    h = linear(w, f"{name}.proj_in", x) + order(w[f"{name}.pos_embed"])
    table = w[f"{name}.class_embed"]
    null = (y < 0).float()[:, None, None]
    h = h + (1 - null) * table[y.clamp(min=0)] + null * table.mean(0)
    n, width = h.shape[1:]
    mask = torch.tril(torch.ones(n, n)).bool()

    def norm(at, h):
        return F.layer_norm(h, (width,), w[f"{at}.weight"], w[f"{at}.bias"])

    for k in range(layers):
        at = f"{name}.attn_blocks.{k}"
        qkv = linear(w, f"{at}.attention.qkv", norm(f"{at}.attention.norm", h)).chunk(3, -1)
        a = F.scaled_dot_product_attention(*(heads_of(p, heads) for p in qkv), attn_mask=mask)
        h = h + linear(w, f"{at}.attention.proj", a.transpose(1, 2).reshape(h.shape))
        m = F.gelu(linear(w, f"{at}.mlp.main.0", norm(f"{at}.mlp.norm", h)))
        h = h + linear(w, f"{at}.mlp.main.2", m)
    return linear(w, f"{name}.proj_out", h).chunk(2, -1)


def tarflow(w, x, y, *, flows, layers, heads):
    """(z [B, N, D], mean log-determinant [B]) of patches x [B, N, D]; y < 0: no label."""
    total = torch.zeros(len(x))
    for t in range(flows):
        order = (lambda a: a.flip(1)) if t % 2 else (lambda a: a)
        x = order(x)
        alpha, mu = tarflow_block(w, f"blocks.{t}", x, y, heads, layers, t % 2)
        alpha, mu = (torch.cat([torch.zeros_like(a[:, :1]), a[:, :-1]], 1) for a in (alpha, mu))
        total = total - alpha.mean((1, 2))
        x = order((x - mu) * (-alpha).exp())
    return x, total


def tarflow_reverse(w, z, y, *, flows, layers, heads, guidance, annealed):
    """Patches of z; guidance g adds g (label - no label), growing place by place if annealed."""
    for t in reversed(range(flows)):
        order = (lambda a: a.flip(1)) if t % 2 else (lambda a: a)
        x = order(z).clone()
        last = x.shape[1] - 1
        for i in range(last):
            alpha, mu = (
                p[:, i] for p in tarflow_block(w, f"blocks.{t}", x, y, heads, layers, t % 2)
            )
            if guidance:
                none = torch.full_like(y, -1)
                weak = tarflow_block(w, f"blocks.{t}", x, none, heads, layers, t % 2)
                g = guidance * ((i + 1) / last if annealed else 1)
                alpha, mu = (a + g * (a - b[:, i]) for a, b in zip((alpha, mu), weak, strict=True))
            x[:, i + 1] = x[:, i + 1] * alpha.exp() + mu
        z = order(x)
    return z


# --- Glow (Kingma & Dhariwal 2018), NHWC as its TensorFlow code ---


def glow_shapes(*, steps, channels, hidden, classes):
    """Of two levels; convolutions [height, width, in, out], one input more where it tells edges."""
    shapes, c = {}, channels
    for level in range(2):
        c = 4 * c
        for k in range(steps):
            name = f"{level}/{k}"
            shapes |= {f"{name}/actnorm/b": (c,), f"{name}/actnorm/logs": (c,)}
            shapes |= {f"{name}/invconv/W": (c, c), f"{name}/f1/l_1/W": (3, 3, c // 2 + 1, hidden)}
            shapes |= {f"{name}/f1/l_2/W": (1, 1, hidden, hidden)}
            for layer in ("l_1", "l_2"):
                shapes |= {f"{name}/f1/{layer}/actnorm/{n}": (hidden,) for n in ("b", "logs")}
            shapes |= {f"{name}/f1/l_last/W": (3, 3, hidden + 1, c)}
            shapes |= {f"{name}/f1/l_last/{n}": (c,) for n in ("b", "logs")}
        if level == 0:
            c //= 2
            shapes |= {"pool0/conv/W": (3, 3, c + 1, 2 * c)}
            shapes |= {f"pool0/conv/{n}": (2 * c,) for n in ("b", "logs")}
    shapes |= {"prior/p/W": (3, 3, 2 * c + 1, 2 * c), "prior/y_emb/W": (classes, 2 * c)}
    return shapes | {f"prior/{m}/{n}": (2 * c,) for m in ("p", "y_emb") for n in ("b", "logs")}


def glow(w, x, one_hot, *, steps):
    """(latents of both levels, normalised, as a list [B, h, w, c]; ln |det| [B]) of x [B, H, W, C].

    The determinant includes that of the normalisation by the priors.
    """
    total, out, levels = torch.zeros(len(x)), [], 2

    def conv(name, h, edges=True):
        kernel = w[f"{name}/W"]
        if edges and kernel.shape[0] == 3:
            b, height, width, _ = h.shape
            ring = torch.zeros(b, height + 2, width + 2, 1)
            ring[:, 0], ring[:, -1], ring[:, :, 0], ring[:, :, -1] = 1, 1, 1, 1
            h = torch.cat([F.pad(h, (0, 0, 1, 1, 1, 1)), ring], -1)
        return F.conv2d(h.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1)).permute(0, 2, 3, 1)

    def actnorm(name, h):
        return (h + w[f"{name}/b"]) * torch.exp(3 * w[f"{name}/logs"])

    def zeros(name, h):
        return (conv(name, h) + w[f"{name}/b"]) * torch.exp(3 * w[f"{name}/logs"])

    def squeeze(h):
        b, height, width, c = h.shape
        h = h.reshape(b, height // 2, 2, width // 2, 2, c).permute(0, 1, 3, 5, 2, 4)
        return h.reshape(b, height // 2, width // 2, 4 * c)

    h = x
    for level in range(levels):
        h = squeeze(h)
        area = h.shape[1] * h.shape[2]
        for k in range(steps):
            name = f"{level}/{k}"
            h = actnorm(f"{name}/actnorm", h)
            total = total + 3 * area * w[f"{name}/actnorm/logs"].sum()
            h = h @ w[f"{name}/invconv/W"]
            total = total + area * torch.linalg.slogdet(w[f"{name}/invconv/W"])[1]
            first, second = h.chunk(2, -1)
            f = torch.relu(actnorm(f"{name}/f1/l_1/actnorm", conv(f"{name}/f1/l_1", first)))
            f = torch.relu(actnorm(f"{name}/f1/l_2/actnorm", conv(f"{name}/f1/l_2", f)))
            f = zeros(f"{name}/f1/l_last", f)
            scale = torch.sigmoid(f[..., 1::2] + 2)
            h = torch.cat([first, (second + f[..., 0::2]) * scale], -1)
            total = total + scale.log().sum((1, 2, 3))
        if level < levels - 1:
            h, z = h.chunk(2, -1)
            p = zeros(f"pool{level}/conv", h)
            mean, logs = p[..., 0::2], p[..., 1::2]
        else:
            z, c = h, h.shape[-1]
            p = zeros("prior/p", torch.zeros(*h.shape[:3], 2 * c))
            y = one_hot @ w["prior/y_emb/W"] + w["prior/y_emb/b"]
            y = y * torch.exp(3 * w["prior/y_emb/logs"])
            mean, logs = (p + y[:, None, None]).chunk(2, -1)
        out.append((z - mean) * torch.exp(-logs))
        total = total - logs.expand_as(z).sum((1, 2, 3))
    return out, total


# --- LlamaGen (Sun et al. 2024) ---


def llamagen_shapes(*, layers, width, hidden, levels, classes):
    shapes = {
        "tok_embeddings.weight": (levels, width),
        "cls_embedding.embedding_table.weight": (classes + 1, width),
        "norm.weight": (width,),
        "output.weight": (levels, width),
    }
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * width, width),
            f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.feed_forward.w1.weight": (hidden, width),
            f"layers.{i}.feed_forward.w3.weight": (hidden, width),
            f"layers.{i}.feed_forward.w2.weight": (width, hidden),
            f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.ffn_norm.weight": (width,),
        }
    return shapes


def llamagen(w, tokens, labels, *, layers, heads, side, turned):
    """Logits [B, N, levels] of tokens [B, N]; turned: whether the class token keeps its query."""
    table = w["cls_embedding.embedding_table.weight"][labels][:, None]
    h = torch.cat([table, w["tok_embeddings.weight"][tokens]], 1)[:, :-1]
    width = h.shape[-1]
    half = width // heads // 2
    # The table of cosines and sines: rows, then columns; all zeros for the class token.
    freqs = 1.0 / 10_000 ** (torch.arange(0, half, 2)[: half // 2] / half)
    angles = torch.outer(torch.arange(side), freqs)
    grid = torch.cat(
        [
            angles[:, None].expand(-1, side, -1),
            angles[None].expand(side, -1, -1),
        ],
        -1,
    ).flatten(0, 1)
    rope = torch.stack([grid.cos(), grid.sin()], -1)
    first = torch.zeros(1, half, 2)
    first[..., 0] = float(turned)
    rope = torch.cat([first, rope])[: h.shape[1]]

    def rotate(x):
        pair = x.reshape(*x.shape[:-1], -1, 2)
        cos, sin = rope[..., 0], rope[..., 1]
        out = [pair[..., 0] * cos - pair[..., 1] * sin, pair[..., 1] * cos + pair[..., 0] * sin]
        return torch.stack(out, -1).flatten(-2)

    def norm(name, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"]

    for i in range(layers):
        at = f"layers.{i}"
        qkv = linear(w, f"{at}.attention.wqkv", norm(f"{at}.attention_norm", h)).chunk(3, -1)
        q, k, v = (heads_of(part, heads) for part in qkv)
        a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        h = h + linear(w, f"{at}.attention.wo", a.transpose(1, 2).reshape(h.shape))
        m = norm(f"{at}.ffn_norm", h)
        gate = F.silu(linear(w, f"{at}.feed_forward.w1", m))
        h = h + linear(w, f"{at}.feed_forward.w2", gate * linear(w, f"{at}.feed_forward.w3", m))
    return linear(w, "output", norm("norm", h))


class LlamaGenVQ:
    """Its tokenizer: `names()` the shapes of its checkpoint, `encode` and `decode` on weights."""

    def __init__(self, *, widths, blocks, channels, levels, width, groups=32):
        self.widths, self.blocks, self.channels, self.groups = widths, blocks, channels, groups
        self.levels, self.width, self.shapes, self.recording = levels, width, {}, False

    def names(self):
        """Run once on shapes alone, which fills `shapes`."""
        self.recording = True
        side = 2 ** len(self.widths)
        self.encode({}, torch.zeros(1, 3, side, side))
        self.decode({}, torch.zeros(1, 2, 2, dtype=torch.int64))
        self.recording = False
        return self.shapes

    def get(self, w, name, shape):
        if self.recording:
            self.shapes[name] = shape
            return torch.zeros(shape)
        return w[name]

    def conv(self, w, name, x, out, kernel=3, **options):
        weight = self.get(w, f"{name}.weight", (out, x.shape[1], kernel, kernel))
        options = options or dict(padding=kernel // 2)
        return F.conv2d(x, weight, self.get(w, f"{name}.bias", (out,)), **options)

    def norm(self, w, name, x):
        weight, bias = (self.get(w, f"{name}.{n}", (x.shape[1],)) for n in ("weight", "bias"))
        return F.group_norm(x, self.groups, weight, bias, eps=1e-6)

    def res(self, w, name, x, out):
        h = self.conv(w, f"{name}.conv1", F.silu(self.norm(w, f"{name}.norm1", x)), out)
        h = self.conv(w, f"{name}.conv2", F.silu(self.norm(w, f"{name}.norm2", h)), out)
        return h + (x if x.shape[1] == out else self.conv(w, f"{name}.nin_shortcut", x, out, 1))

    def attend(self, w, name, x):
        c, h = x.shape[1], self.norm(w, f"{name}.norm", x)
        q, k, v = (self.conv(w, f"{name}.{n}", h, c, 1).flatten(2) for n in "qkv")
        weight = (q.transpose(1, 2) @ k * c**-0.5).softmax(-1)
        a = (v @ weight.transpose(1, 2)).reshape(x.shape)
        return x + self.conv(w, f"{name}.proj_out", a, c, 1)

    def middle(self, w, side, h):
        h = self.res(w, f"{side}.mid.0", h, self.widths[-1])
        return self.res(w, f"{side}.mid.2", self.attend(w, f"{side}.mid.1", h), self.widths[-1])

    def codes(self, w):
        return F.normalize(self.get(w, "quantize.embedding.weight", (self.levels, self.width)))

    def encode(self, w, x):
        """Tokens [B, h, w] of images [B, 3, H, W]."""
        h, last = self.conv(w, "encoder.conv_in", x, self.widths[0]), len(self.widths) - 1
        for level, width in enumerate(self.widths):
            at = f"encoder.conv_blocks.{level}"
            for i in range(self.blocks):
                h = self.res(w, f"{at}.res.{i}", h, width)
                h = self.attend(w, f"{at}.attn.{i}", h) if level == last else h
            if level < last:
                h = F.pad(h, (0, 1, 0, 1))
                h = self.conv(w, f"{at}.downsample.conv", h, width, stride=2)
        h = F.silu(self.norm(w, "encoder.norm_out", self.middle(w, "encoder", h)))
        h = self.conv(w, "quant_conv", self.conv(w, "encoder.conv_out", h, self.channels),
                      self.width, 1)  # fmt: skip
        return (F.normalize(h).permute(0, 2, 3, 1) @ self.codes(w).T).argmax(-1)

    def decode(self, w, tokens):
        """Images [B, 3, H, W], not clipped, of tokens [B, h, w]."""
        h = self.codes(w)[tokens].permute(0, 3, 1, 2)
        h = self.conv(w, "post_quant_conv", h, self.channels, 1)
        h = self.middle(w, "decoder", self.conv(w, "decoder.conv_in", h, self.widths[-1]))
        last = len(self.widths) - 1
        for level, width in enumerate(reversed(self.widths)):
            at = f"decoder.conv_blocks.{level}"
            for i in range(self.blocks + 1):
                h = self.res(w, f"{at}.res.{i}", h, width)
                h = self.attend(w, f"{at}.attn.{i}", h) if level == 0 else h
            if level < last:
                h = F.interpolate(h, scale_factor=2.0)
                h = self.conv(w, f"{at}.upsample.conv", h, width)
        return self.conv(w, "decoder.conv_out", F.silu(self.norm(w, "decoder.norm_out", h)), 3)


# --- EDM2 (Karras et al. 2024) ---


class EDM2Net(SongUNet):
    """EDM2's network: `names` the shapes of its checkpoint, and `__call__` on such weights."""

    def __init__(self, *, channels, multipliers, blocks, attend, side, classes, head):
        self.c, self.multipliers, self.blocks, self.attend = channels, multipliers, blocks, attend
        self.side, self.classes, self.head, self.shapes = side, classes, head, {}

    def names(self):
        """Run once on shapes alone, which fills `shapes`."""
        self.recording = True
        self(
            {},
            torch.zeros(1, 3, self.side, self.side),
            torch.zeros(1),
            torch.zeros(1, self.classes),
        )
        self.recording = False
        return self.shapes

    @staticmethod
    def unit(x, dims):
        """Over the root mean square, to which 1e-4 is added."""
        return x / (x.square().mean(dims, keepdim=True).sqrt() + 1e-4)

    @staticmethod
    def silu(x):
        return F.silu(x) / 0.596

    @staticmethod
    def add(a, b, t):
        return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5

    def mp(self, w, name, x, out, kernel=None, gain=1.0):
        """A layer on weights of unit magnitude: dense where there is no kernel."""
        shape = (out, x.shape[1], *(() if kernel is None else (kernel, kernel)))
        weight = self.get(w, f"{name}.weight", shape)
        weight = self.unit(weight, tuple(range(1, weight.ndim))) * gain / weight[0].numel() ** 0.5
        return x @ weight.T if kernel is None else F.conv2d(x, weight, padding=kernel // 2)

    def block(self, w, name, x, emb, out, change="", attend=False, decoder=True):
        x = F.avg_pool2d(x, 2) if change == "down" else x
        x = F.interpolate(x, scale_factor=2.0) if change == "up" else x
        if not decoder:
            x = x if x.shape[1] == out else self.mp(w, f"{name}.conv_skip", x, out, 1)
            x = self.unit(x, 1)
        gain = self.get(w, f"{name}.emb_gain", ())
        scale = 1 + self.mp(w, f"{name}.emb_linear", emb, out, gain=gain)
        h = self.mp(w, f"{name}.conv_res0", self.silu(x), out, 3)
        h = self.silu(h * scale[:, :, None, None])
        h = self.mp(w, f"{name}.conv_res1", h, out, 3)
        if decoder and x.shape[1] != out:
            x = self.mp(w, f"{name}.conv_skip", x, out, 1)
        x = self.add(x, h, 0.3)
        if attend:
            b, heads = len(x), max(1, out // self.head)
            qkv = self.mp(w, f"{name}.attn_qkv", x, 3 * out, 1).reshape(
                b, heads, -1, 3, x[0, 0].numel()
            )
            q, k, v = self.unit(qkv, 2).unbind(3)
            weight = torch.einsum("nhcq,nhck->nhqk", q, k / q.shape[2] ** 0.5).softmax(3)
            a = torch.einsum("nhqk,nhck->nhcq", weight, v).reshape(x.shape)
            x = self.add(x, self.mp(w, f"{name}.attn_proj", a, out, 1), 0.3)
        return x.clip(-256, 256)

    def __call__(self, w, x, noise, labels):
        """[B, 3, H, W] at noise [B] for one-hot labels [B, classes]."""
        widths, levels = [self.c * m for m in self.multipliers], len(self.multipliers)
        freqs, phases = (self.get(w, f"emb_fourier.{n}", (self.c,)) for n in ("freqs", "phases"))
        emb = (torch.outer(noise, freqs) + phases).cos() * 2**0.5
        emb = self.mp(w, "emb_noise", emb, max(widths))
        told = self.mp(w, "emb_label", labels * self.classes**0.5, max(widths))
        emb, skips = self.silu(self.add(emb, told, 0.5)), []
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        for level, width in enumerate(widths):
            res = self.side >> level
            at, options = f"enc.{res}x{res}", dict(decoder=False)
            if level == 0:
                x = self.mp(w, f"{at}_conv", x, width, 3)
            else:
                x = self.block(w, f"{at}_down", x, emb, x.shape[1], "down", **options)
            skips.append(x)
            for i in range(self.blocks):
                attend = res in self.attend
                x = self.block(w, f"{at}_block{i}", x, emb, width, attend=attend, **options)
                skips.append(x)
        for level, width in reversed(list(enumerate(widths))):
            res = self.side >> level
            at = f"dec.{res}x{res}"
            if level == levels - 1:
                x = self.block(w, f"{at}_in0", x, emb, width, attend=True)
                x = self.block(w, f"{at}_in1", x, emb, width)
            else:
                x = self.block(w, f"{at}_up", x, emb, x.shape[1], "up")
            for i in range(self.blocks + 1):
                skip = skips.pop()
                n, m = x.shape[1], skip.shape[1]
                scale = ((n + m) / 0.5) ** 0.5 / 2
                x = torch.cat([x * scale / n**0.5, skip * scale / m**0.5], 1)
                x = self.block(w, f"{at}_block{i}", x, emb, width, attend=res in self.attend)
        return self.mp(w, "out_conv", x, 3, 3, gain=self.get(w, "out_gain", ()))


# --- ADM (Dhariwal & Nichol 2021) ---


class GuidedUNet(SongUNet):
    """ADM's network: `names` the shapes of its checkpoint, and `__call__` on such weights.

    Groups of norms have four channels at least, which those of its networks (32 groups) have.
    """

    def __init__(self, *, channels, multipliers, blocks, attend, classes, head, new_order):
        self.c, self.multipliers, self.blocks, self.attend = channels, multipliers, blocks, attend
        self.classes, self.head, self.new_order, self.shapes = classes, head, new_order, {}

    def names(self):
        """Run once on shapes alone, which fills `shapes`."""
        self.recording = True
        x = torch.zeros(1, 3, 8, 8)
        self({}, x, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
        self.recording = False
        return self.shapes

    def plain(self, w, name, x, out, kernel=3):
        weight = self.get(w, f"{name}.weight", (out, x.shape[1], kernel, kernel))
        return F.conv2d(x, weight, self.get(w, f"{name}.bias", (out,)), padding=kernel // 2)

    def grouped(self, w, name, x):
        weight, bias = (self.get(w, f"{name}.{n}", (x.shape[1],)) for n in ("weight", "bias"))
        return F.group_norm(x, min(32, x.shape[1] // 4), weight, bias, eps=1e-5)

    def res(self, w, name, x, emb, out, change=""):
        h = F.silu(self.grouped(w, f"{name}.in_layers.0", x))
        if change:
            scaled = (lambda a: F.avg_pool2d(a, 2)) if change == "down" else (
                lambda a: F.interpolate(a, scale_factor=2.0)
            )  # fmt: skip
            h, x = scaled(h), scaled(x)
        h = self.plain(w, f"{name}.in_layers.2", h, out)
        told = self.dense(w, f"{name}.emb_layers.1", F.silu(emb), 2 * out)[:, :, None, None]
        scale, shift = told.chunk(2, 1)
        h = F.silu(self.grouped(w, f"{name}.out_layers.0", h) * (1 + scale) + shift)
        h = self.plain(w, f"{name}.out_layers.3", h, out)
        return h + (x if x.shape[1] == out else self.plain(w, f"{name}.skip_connection", x, out, 1))

    def attention(self, w, name, x):
        b, c = x.shape[:2]
        h = self.grouped(w, f"{name}.norm", x).flatten(2)
        weight = self.get(w, f"{name}.qkv.weight", (3 * c, c, 1))
        qkv = F.conv1d(h, weight, self.get(w, f"{name}.qkv.bias", (3 * c,)))
        if self.new_order:
            q, k, v = (part.reshape(-1, self.head, h.shape[-1]) for part in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.reshape(-1, 3 * self.head, h.shape[-1]).chunk(3, 1)
        share = (q.transpose(1, 2) @ k * self.head**-0.5).softmax(-1)
        a = (v @ share.transpose(1, 2)).reshape(b, c, -1)
        weight = self.get(w, f"{name}.proj_out.weight", (c, c, 1))
        a = F.conv1d(a, weight, self.get(w, f"{name}.proj_out.bias", (c,)))
        return x + a.reshape(x.shape)

    def __call__(self, w, x, t, labels):
        """[B, 6, H, W] at the numbers t [B] for labels [B]; levels in `attend` have attention."""
        half = self.c // 2
        freqs = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32) / half)
        angles = t[:, None].float() * freqs
        emb = torch.cat([angles.cos(), angles.sin()], 1)
        emb = self.dense(w, "time_embed.0", emb, 4 * self.c)
        emb = self.dense(w, "time_embed.2", F.silu(emb), 4 * self.c)
        emb = emb + self.get(w, "label_emb.weight", (self.classes, 4 * self.c))[labels]
        widths, last = [self.c * m for m in self.multipliers], len(self.multipliers) - 1
        x, n = self.plain(w, "input_blocks.0.0", x, widths[0]), 1
        skips = [x]
        for level, width in enumerate(widths):
            for _ in range(self.blocks):
                x = self.res(w, f"input_blocks.{n}.0", x, emb, width)
                if level in self.attend:
                    x = self.attention(w, f"input_blocks.{n}.1", x)
                skips.append(x)
                n += 1
            if level < last:
                x = self.res(w, f"input_blocks.{n}.0", x, emb, width, "down")
                skips.append(x)
                n += 1
        x = self.res(w, "middle_block.0", x, emb, widths[-1])
        x = self.attention(w, "middle_block.1", x)
        x, n = self.res(w, "middle_block.2", x, emb, widths[-1]), 0
        for level, width in reversed(list(enumerate(widths))):
            for i in range(self.blocks + 1):
                at = f"output_blocks.{n}"
                x = self.res(w, f"{at}.0", torch.cat([x, skips.pop()], 1), emb, width)
                if level in self.attend:
                    x = self.attention(w, f"{at}.1", x)
                if level and i == self.blocks:
                    after = 2 if level in self.attend else 1
                    x = self.res(w, f"{at}.{after}", x, emb, width, "up")
                n += 1
        return self.plain(w, "out.2", F.silu(self.grouped(w, "out.0", x)), 6)
