"""U-ViT's own code (Bao et al. 2023) as parameters of `jaxgen.nn.uvit.UViT`.

Its tokens are label, time, patches, and ours time, label, patches, so that two rows of the
positions change places. Its guidance weight is ours minus 1, on all channels. Latent networks are
told the number of a level, from 1, of Stable Diffusion's chain; those of pixels 999 t on the
variance-preserving path.
"""

from __future__ import annotations

from typing import Any

from jaxgen.errors import invalid
from jaxgen.nn.uvit import SIZES
from jaxgen.pretrained.dit import STABLE_DIFFUSION
from jaxgen.pretrained.layout import (
    Found,
    Layout,
    Row,
    State,
    Table,
    conv,
    converted,
    count,
    dense,
    heads_joined,
    norm,
    patches,
    rows,
    shape_of,
    size_of,
    stacked,
)

_WHAT = "U-ViT's own code"


def table(half: int, heads: int, *, last: bool) -> Table:
    """Names of a network of `half` blocks on each side; last: whether it ends in a convolution."""
    block = heads_joined("qkv", ("attn.qkv",), heads, bias=False)
    block |= {**norm("attention_norm", "norm1"), **norm("mlp_norm", "norm2")}
    for ours, theirs in {"proj": "attn.proj", "expand": "mlp.fc1", "contract": "mlp.fc2"}.items():
        block |= dense(ours, theirs)
    shallow = [*(f"in_blocks.{i}" for i in range(half)), "mid_block"]
    deep = [f"out_blocks.{i}" for i in range(half)]
    return {
        **patches("patch", "patch_embed.proj"),
        **rows("labels", "label_emb"),
        "positions": Row(("pos_embed",), lambda a: a[0][[1, 0, *range(2, a.shape[1])]]),
        **stacked("shallow_blocks", shallow, block),
        **stacked("deep_blocks", deep, block | dense("skip", "skip_linear")),
        **norm("norm", "norm"),
        **dense("out", "decoder_pred"),
        **(conv("conv", "final_layer") if last else {}),
    }


def from_official(state: State, *, patch: int, heads: int) -> dict[str, Any]:
    """Parameters of `UViT` (float32). UsageError for weights that do not fit, and another patch."""
    held = shape_of(state, "patch_embed.proj.weight", _WHAT)[-1]
    if held != patch:
        raise invalid("patch", patch, f"{held}, the checkpoint's")
    names = table(count(state, "in_blocks"), heads, last="final_layer.weight" in state)
    return dict(converted(state, names, _WHAT))


def _config(found: Found) -> dict[str, Any]:
    state = found.state
    width, channels, patch, _ = shape_of(state, "patch_embed.proj.weight", _WHAT)
    classes = shape_of(state, "label_emb.weight", _WHAT)[0] - 1
    hidden = shape_of(state, "mid_block.mlp.fc1.weight", _WHAT)[0]
    side = round((shape_of(state, "pos_embed", _WHAT)[1] - 2) ** 0.5) * patch
    fields = size_of(SIZES, depth=2 * count(state, "in_blocks") + 1, width=width)
    latent = channels == 4
    model = dict(
        name="uvit.UViT",
        **fields,
        patch=patch,
        mlp_ratio=hidden / width,
        time_scale=1.0 if latent else 999.0,
        time_offset=1.0 if latent else 0.0,
        epsilon=1e-5,
        exact=True,
        conv="final_layer.weight" in state,
    )
    chain = dict(name="discrete", betas="scaled_linear", levels=1000,
                 beta_min=0.00085, beta_max=0.012)  # fmt: skip
    source = dict(name="latents.latents", path="data/{split}", scale=STABLE_DIFFUSION)
    images = dict(name="folder.folder", path="data", image_size=side)
    return dict(
        data=dict(
            source=source if latent else images,
            holds=dict(
                shape=(side, side, channels), num_classes=classes, levels=None if latent else 256
            ),
        ),
        model=model,
        method=dict(
            name="diffusion.denoising",
            path=chain if latent else dict(name="vp_linear"),
            prediction="eps",
            times=dict(name="levels") if latent else dict(name="uniform"),
            weighting=dict(name="simple"),
            label_dropout=0.1 if latent else 0.0,
        ),
        sample=dict(
            solver="dpmpp_2m",
            steps=50,
            grid="uniform",
            guidance=[dict(name="cfg.cfg", weight=1.4)] if latent else 1.0,
        ),
    )


LAYOUTS = (
    Layout(
        "uvit",
        "U-ViT's own code (Bao et al. 2023)",
        ("patch_embed.proj.weight", "mid_block.attn.qkv.weight", r"out_blocks\.0\.skip_linear\..*"),
        _config,
        lambda found, net: {"net": from_official(found.state, patch=net.patch, heads=net.heads)},
    ),
)
