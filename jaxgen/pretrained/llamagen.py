"""LlamaGen's own code (Sun et al. 2024): its GPT as `nn.llama.Llama`, its VQ as `nn.vqgan.VQGAN`.

Its rotary positions turn neighbouring numbers, and ours the halves of a head, so that columns of
queries and keys change places. Its code multiplies the class token's queries and keys by zero
(`zero_class_token`). Codes and what chooses them lie on the unit sphere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxgen.nn.llama import SIZES
from jaxgen.pretrained.autoencoder import Names, attending, half, levels
from jaxgen.pretrained.layout import (
    Found,
    Layout,
    Row,
    State,
    Table,
    by_head,
    converted,
    count,
    dense,
    norm,
    rows,
    shape_of,
    size_of,
    stacked,
    within,
)

_GPT, _VQ = "LlamaGen's GPT", "LlamaGen's VQ tokenizer"
NAMES = Names(
    levels="conv_blocks",
    residuals="res",
    attentions="attn",
    sampler="{kind}sample.conv",
    middle=("mid.0", "mid.1", "mid.2"),
    norm_out="norm_out",
    shortcut="nin_shortcut",
    attention={"norm": "norm", "q": "q", "k": "k", "v": "v", "proj": "proj_out"},
)
WEIGHTS = {"B": 2.0, "L": 2.0, "XL": 1.75, "XXL": 1.75, "3B": 1.65}
"""The guidance of its scores by size."""


def gpt_table(depth: int, heads: int) -> Table:
    """Names of the class-conditional GPT."""

    def halves(a: np.ndarray) -> np.ndarray:
        cut = a.reshape(len(a), heads, -1)
        return np.concatenate([cut[..., 0::2], cut[..., 1::2]], -1).reshape(len(a), -1)

    def qkv(weight: np.ndarray) -> np.ndarray:
        q, k, v = np.split(weight.T, 3, axis=-1)
        return by_head([halves(q), halves(k), v], heads)

    block: Table = {"qkv.kernel": Row(("attention.wqkv.weight",), qkv)}
    block |= dense("proj", "attention.wo", bias=False)
    for ours, theirs in {"gate": "w1", "value": "w3", "contract": "w2"}.items():
        block |= dense(ours, f"feed_forward.{theirs}", bias=False)
    block |= norm("attention_norm", "attention_norm", bias=False)
    block |= norm("mlp_norm", "ffn_norm", bias=False)
    return {
        **rows("tokens", "tok_embeddings"),
        **rows("labels", "cls_embedding.embedding_table"),
        **norm("norm", "norm", bias=False),
        **dense("out", "output", bias=False),
        **stacked("blocks", [f"layers.{i}" for i in range(depth)], block),
    }


def from_gpt(state: State, *, heads: int) -> dict[str, Any]:
    """Parameters of `Llama` (float32). UsageError for weights that do not fit."""
    shape_of(state, "tok_embeddings.weight", _GPT)
    return dict(converted(state, gpt_table(count(state, "layers"), heads), _GPT))


def from_vq(state: State) -> dict[str, Any]:
    """Parameters of the tokenizer: {"net", "codebook"}. UsageError for weights that do not fit."""
    table = {
        **within("net.encoder", "encoder", half(state, "encoder", NAMES)),
        **within("net.decoder", "decoder", half(state, "decoder", NAMES)),
        **dense("net.quant", "quant_conv"),
        **dense("net.post_quant", "post_quant_conv"),
        "codebook.codes": Row(("quantize.embedding.weight",)),
    }
    beside = (r"quantize\.codebook_used",)  # which codes were chosen lately
    return dict(converted(state, table, _VQ, beside=beside))


def _config_gpt(found: Found) -> dict[str, Any]:
    state = found.state
    levels, width = shape_of(state, "tok_embeddings.weight", _GPT)
    classes = shape_of(state, "cls_embedding.embedding_table.weight", _GPT)[0] - 1
    hidden = shape_of(state, "layers.0.feed_forward.w1.weight", _GPT)[0]
    fields = size_of(SIZES, depth=count(state, "layers"), width=width)
    named = [name for name, known in SIZES.items() if known == fields]
    # The hidden width is 8/3 of the width, rounded up to a multiple of 256.
    usual = -(-int(8 * width / 3) // 256) * 256
    model = dict(
        name="llama.Llama",
        **(dict(size=named[0]) if named else fields),
        zero_class_token=True,
        **({} if usual == hidden else {"multiple": hidden}),
    )
    return dict(
        data=dict(
            source=dict(name="codes.codes", path="data/codes"),
            holds=dict(shape=None, num_classes=classes, levels=levels, tokens=True),
        ),
        model=model,
        method=dict(name="autoregressive.autoregressive", label_dropout=0.1),
        sample=dict(temperature=1.0, guidance=WEIGHTS.get(named[0] if named else "", 2.0)),
    )


def _config_vq(found: Found) -> dict[str, Any]:
    state = found.state
    widths = tuple(
        shape_of(state, f"encoder.conv_blocks.{i}.res.0.conv2.weight", _VQ)[0]
        for i in range(levels(state, "encoder", NAMES))
    )
    codes, width = shape_of(state, "quantize.embedding.weight", _VQ)
    channels = shape_of(state, "quant_conv.weight", _VQ)[1]
    return dict(
        data=dict(
            source=dict(name="folder.folder", path="data", image_size=256),
            holds=dict(shape=(256, 256, 3), num_classes=1000, levels=256),
        ),
        model=dict(
            name="vqgan.VQGAN",
            channels=channels,
            widths=widths,
            blocks=count(state, "encoder.conv_blocks.0.res"),
            attention_levels=attending(state, NAMES),
        ),
        method=dict(
            name="jaxgen.tokenizers.vqgan.vqgan",
            quantiser=dict(name="nearest", levels=codes, width=width, l2=True),
        ),
    )


LAYOUTS = (
    Layout(
        "llamagen",
        "LlamaGen's GPT (Sun et al. 2024), of classes",
        ("tok_embeddings.weight", "cls_embedding.embedding_table.weight", r"layers\..*wqkv.*"),
        _config_gpt,
        lambda found, net: {"net": from_gpt(found.state, heads=net.heads)},
    ),
    Layout(
        "llamagen_vq",
        "LlamaGen's tokenizer, VQ-8 or VQ-16",
        ("encoder.conv_blocks.0.res.0.conv1.weight", "quantize.embedding.weight"),
        _config_vq,
        lambda found, net: from_vq(found.state),
    ),
)
