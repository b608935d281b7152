"""Decoding image tokens one by one on the CPU: jaxgen against transformers' Llama, in one run.

    python -m experiments.benchmarks.ar_decode [--rounds 5] [--threads 1] [--json]
    python -m experiments.benchmarks.ar_decode --tiny    # a check of the script

Both sides hold the same weights and keep keys and values: jaxgen decodes an image in one compiled
loop, PyTorch calls transformers' LlamaForCausalLM (2-D rotary angles put in) with its dynamic and
with its static cache. Before anything is timed, greedy tokens are compared. What is timed draws
from the softmax. Rounds alternate; a ratio is the median over rounds of PyTorch's time over
jaxgen's in the same round, so above one jaxgen is faster. "cpu" is the processor time of the
process, which other loads on the machine disturb less than "wall". See `cpu_dit` about threads.

Measured on one processor of a busy 2-core machine (jax 0.10.2, 3 rounds), ratios of processor time
to the dynamic and to the static cache: digits 13.1, 15.8; small 3.6, 4.3; wide 2.6, 3.0. All greedy
tokens were equal.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from typing import Any

PROCESSORS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default="digits,small,wide", help="digits, small, wide")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="one small size, once")
    found = parser.parse_args()
    if found.tiny:
        found.sizes, found.rounds = "tiny", 1
    return found


ARGUMENTS = parse() if __name__ == "__main__" else argparse.Namespace(threads=0)
if ARGUMENTS.threads and PROCESSORS:
    # Before JAX and PyTorch start their thread pools, which take their size from this.
    os.sched_setaffinity(0, PROCESSORS[: ARGUMENTS.threads])

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from experiments.benchmarks import machine  # noqa: E402
from experiments.benchmarks.cpu_dit import alternate, rows, show  # noqa: E402
from jaxgen.families.autoregressive.heads import Softmax  # noqa: E402
from jaxgen.families.autoregressive.sampler import build_sampler  # noqa: E402
from jaxgen.method import Spec  # noqa: E402
from jaxgen.nn.llama import Llama  # noqa: E402
from jaxgen.pretrained.dit import by_layer  # noqa: E402

# width, depth, heads, codes, side of the grid, images at once.
SIZES = {
    "digits": (64, 4, 4, 17, 8, 16),
    "small": (256, 6, 4, 1024, 8, 8),
    "wide": (512, 8, 8, 4096, 8, 1),
    "tiny": (16, 2, 2, 11, 3, 2),
}
CLASSES = 10


def ours(net: Llama, params: Any, batch: int, top_k: int) -> Callable[[], np.ndarray]:
    """A function that draws `batch` images: int32 [batch, N]."""
    spec = Spec(net.shape, CLASSES, levels=net.levels, tokens=True)
    sampler = build_sampler(net, Softmax(net.levels), spec, top_k=top_k)
    compiled, labels = jax.jit(sampler.fn), jnp.arange(batch, dtype=jnp.int32) % CLASSES
    keys = jax.random.split(jax.random.key(0), batch)
    held = jax.device_put({"net": params})
    return lambda: np.asarray(compiled(held, keys, labels)).reshape(batch, -1)


def theirs(
    model: Any, first: Any, count: int, *, greedy: bool, static: bool
) -> Callable[[], np.ndarray]:
    """The same in PyTorch; first [batch, 1, width] are the labels' embeddings."""
    import torch
    from transformers import StaticCache

    def run() -> np.ndarray:
        cache = StaticCache(config=model.config, max_cache_len=count) if static else None
        drawn, out = [], None
        with torch.inference_mode():
            for i in range(count):
                given = {"inputs_embeds": first} if i == 0 else {"input_ids": drawn[-1]}
                place = torch.tensor([i])
                out = model(
                    **given,
                    past_key_values=cache,
                    use_cache=True,
                    cache_position=place,
                    position_ids=place[None],
                )
                cache = out.past_key_values
                logits = out.logits[:, -1]
                token = (
                    logits.argmax(-1, keepdim=True)
                    if greedy
                    else torch.multinomial(logits.softmax(-1), 1)
                )
                drawn.append(token)
        return torch.cat(drawn, 1).numpy()

    return run


def peer(net: Llama, params: Any) -> Any:
    """transformers' LlamaForCausalLM with our weights and rotary angles."""
    import torch
    import transformers

    blocks = jax.device_get(params["blocks"])
    config = transformers.LlamaConfig(
        vocab_size=net.levels,
        hidden_size=net.width,
        intermediate_size=blocks["contract"]["kernel"].shape[1],
        num_hidden_layers=net.depth,
        num_attention_heads=net.heads,
        num_key_value_heads=net.heads,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).eval()

    def tensor(a: Any) -> torch.Tensor:
        return torch.tensor(np.array(a))

    state = {
        "model.embed_tokens.weight": tensor(params["tokens"]["embedding"]),
        "model.norm.weight": tensor(params["norm"]["scale"]),
        "lm_head.weight": tensor(params["out"]["kernel"].T),
    }
    for i in range(net.depth):
        q, k, v = by_layer(blocks["qkv"]["kernel"][i], net.heads)
        tensors = {
            "self_attn.q_proj": q.T,
            "self_attn.k_proj": k.T,
            "self_attn.v_proj": v.T,
            "self_attn.o_proj": blocks["proj"]["kernel"][i].T,
            "mlp.gate_proj": blocks["gate"]["kernel"][i].T,
            "mlp.up_proj": blocks["value"]["kernel"][i].T,
            "mlp.down_proj": blocks["contract"]["kernel"][i].T,
            "input_layernorm": blocks["attention_norm"]["scale"][i],
            "post_attention_layernorm": blocks["mlp_norm"]["scale"][i],
        }
        state |= {f"model.layers.{i}.{k}.weight": tensor(v) for k, v in tensors.items()}
    model.load_state_dict(state)
    angles = tensor(net._angles(net.shape[0] * net.shape[1]))
    both = torch.cat([angles, angles], dim=-1)

    class Rotary(torch.nn.Module):
        def forward(self, x: Any, position_ids: Any) -> Any:
            turned = both[position_ids[0]][None]
            return turned.cos(), turned.sin()

    model.model.rotary_emb = Rotary()
    return model


def compare(name: str, rounds: int) -> list[dict[str, Any]]:
    """Rows of one size."""
    import torch

    torch.set_num_threads(max(1, ARGUMENTS.threads))
    width, depth, heads, codes, side, batch = SIZES[name]
    net = Llama(CLASSES, codes, (side, side), depth=depth, width=width, heads=heads, multiple=32)
    rng, count = np.random.default_rng(0), side * side
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), jnp.zeros((1, count), jnp.int32), jnp.zeros(1, jnp.int32)
    )["params"]
    params = jax.tree.map(
        lambda a: (
            jnp.asarray(rng.normal(size=a.shape) * a.shape[0] ** -0.5, jnp.float32)
            if a.ndim < 3
            else jnp.asarray(rng.normal(size=a.shape) * a.shape[1] ** -0.5, jnp.float32)
        ),
        shapes,
    )
    model = peer(net, params)
    labels = np.arange(batch) % CLASSES
    first = torch.tensor(np.asarray(params["labels"]["embedding"])[labels][:, None])
    want = theirs(model, first, count, greedy=True, static=False)()
    same = (ours(net, params, batch, 1)() == want).mean()
    # A tie broken by rounding changes the rest of its image, so not all must be equal.
    if same < 0.9:
        raise SystemExit(f"{name}: only {100 * same:.0f} % of the greedy tokens are equal")
    sides = {
        "jaxgen": ours(net, params, batch, 0),
        "torch dynamic": theirs(model, first, count, greedy=False, static=False),
        "torch static": theirs(model, first, count, greedy=False, static=True),
    }
    table = rows("decode", name, batch, alternate(sides, rounds, 1))
    for row in table:
        row["tokens_per_s"] = row.pop("images_per_s") * count
        row["greedy_equal"] = float(same)
    return table


def main() -> None:
    """Run the benchmark that the command line asks for."""
    jax.config.update("jax_enable_compilation_cache", False)
    table = [row for name in ARGUMENTS.sizes.split(",") for row in compare(name, ARGUMENTS.rounds)]
    if ARGUMENTS.json:
        found = {"threads": ARGUMENTS.threads, "machine": machine.machine(), "rows": table}
        print(json.dumps(found))
    else:
        print(machine.line())
        show(table)


if __name__ == "__main__":
    main()
