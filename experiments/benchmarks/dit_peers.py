"""The same DiT in jaxgen and in PyTorch (diffusers), as training steps and samplers to be timed.

Both sides start from the same weights, see the same numbers and do the same work: the mean squared
error of the predicted noise and AdamW for training; for sampling, Euler steps of a linear path with
classifier-free guidance, conditional and unconditional images in one batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.nn.dit import DiT
from jaxgen.pretrained.dit import from_diffusers


@dataclasses.dataclass(frozen=True)
class Size:
    """A DiT and the images that it is timed on."""

    width: int
    depth: int
    heads: int
    patch: int
    image: int
    channels: int
    batch: int
    classes: int = 10

    def jaxgen(self, **fields: Any) -> DiT:
        """Our network of this size; `fields` as `DiT`'s."""
        return DiT(
            num_classes=self.classes,
            out_channels=self.channels,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch=self.patch,
            **fields,
        )

    def torch(self) -> Any:
        """diffusers' network of this size, weights random and none of them zero."""
        import diffusers
        import torch

        torch.manual_seed(0)
        model = diffusers.DiTTransformer2DModel(
            num_attention_heads=self.heads,
            attention_head_dim=self.width // self.heads,
            in_channels=self.channels,
            num_layers=self.depth,
            sample_size=self.image,
            patch_size=self.patch,
            num_embeds_ada_norm=self.classes,
            norm_eps=1e-6,
        )
        embedding = model.transformer_blocks[0].norm1.emb
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(embedding.state_dict())
            block.norm1.emb.time_proj.downscale_freq_shift = 0  # the paper's frequencies
            block.norm1.emb.class_embedder.dropout_prob = 0  # labels dropped by neither side
        return model


def batch(size: Size) -> dict[str, np.ndarray]:
    """One batch: image and target [B, H, W, C], time [B] in thousandths, label [B]."""
    rng = np.random.default_rng(0)
    shape = (size.batch, size.image, size.image, size.channels)
    return {
        "image": rng.normal(size=shape).astype(np.float32),
        "target": rng.normal(size=shape).astype(np.float32),
        "time": rng.integers(0, 1000, size.batch),
        "label": rng.integers(0, size.classes, size.batch),
    }


def weights(size: Size, model: Any) -> Any:
    """Our parameters from the PyTorch model's, on the device."""
    state = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    return jax.tree.map(jnp.asarray, from_diffusers(state, patch=size.patch, heads=size.heads))


def jaxgen_training(net: DiT, params: Any, data: dict[str, np.ndarray]) -> Callable[[], float]:
    """A function that does one training step and returns the loss; state donated in between."""
    optimizer = optax.adamw(1e-4, weight_decay=0.01)

    def loss(params: Any, data: dict[str, jax.Array]) -> jax.Array:
        out = net.apply({"params": params}, data["image"], data["time"] / 1000, data["label"])
        return jnp.square(out - data["target"]).mean()

    def step(state: Any, data: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        params, moments = state
        value, grads = jax.value_and_grad(loss)(params, data)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    compiled = jax.jit(step, donate_argnums=0)
    state = jax.tree.map(jnp.copy, (params, optimizer.init(params)))
    on_device = jax.device_put(data)

    def run() -> float:
        nonlocal state
        state, value = compiled(state, on_device)
        return float(value)

    return run


def torch_training(
    model: Any, data: dict[str, np.ndarray], *, device: str = "cpu", bfloat16: bool = False
) -> Callable[[], float]:
    """The same step in PyTorch: fused AdamW, channels first."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    tensors = {name: torch.from_numpy(value).to(device) for name, value in data.items()}
    image, target = (tensors[n].permute(0, 3, 1, 2).contiguous() for n in ("image", "target"))

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            out = model(image, tensors["time"], class_labels=tensors["label"]).sample
        loss = torch.nn.functional.mse_loss(out.float(), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def jaxgen_sampling(
    net: DiT, params: Any, data: dict[str, np.ndarray], *, steps: int, guidance: float, null: int
) -> Callable[[], np.ndarray]:
    """A function that draws one batch [B, H, W, C]: all the steps in one compiled scan."""
    labels = jnp.concatenate([data["label"], np.full_like(data["label"], null)])

    @jax.jit
    def sample(params: Any, x: jax.Array) -> jax.Array:
        def step(x: jax.Array, t: jax.Array) -> tuple[jax.Array, None]:
            both = jnp.concatenate([x, x])
            out = net.apply({"params": params}, both, jnp.broadcast_to(t, labels.shape), labels)
            cond, uncond = jnp.split(out, 2)
            return x - (uncond + guidance * (cond - uncond)) / steps, None

        return jax.lax.scan(step, x, jnp.arange(steps, 0, -1) / steps)[0]

    noise = jnp.asarray(data["image"])
    return lambda: np.asarray(sample(params, noise))


def torch_sampling(
    model: Any,
    data: dict[str, np.ndarray],
    *,
    steps: int,
    guidance: float,
    null: int,
    device: str = "cpu",
    bfloat16: bool = False,
) -> Callable[[], np.ndarray]:
    """The same sampler in PyTorch, without gradients; leaner than diffusers' pipeline."""
    import torch

    labels = torch.from_numpy(np.concatenate([data["label"], np.full_like(data["label"], null)]))
    labels = labels.to(device)
    noise = torch.from_numpy(data["image"]).permute(0, 3, 1, 2).contiguous().to(device)

    def run() -> np.ndarray:
        x = noise
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            for k in range(steps, 0, -1):
                t = torch.full((labels.shape[0],), 1000 * k / steps, device=device)
                out = model(torch.cat([x, x]), t, class_labels=labels).sample
                cond, uncond = out.float().chunk(2)
                x = x - (uncond + guidance * (cond - uncond)) / steps
        return x.permute(0, 2, 3, 1).cpu().numpy()

    return run
