"""What guidance costs beyond its network calls: one call of the guided denoiser, in processor time.

    taskset -c 0 python -m experiments.benchmarks.guidance_overhead

Beside it, in turn, the calls that it makes and nothing else: cond and uncond as one plain forward
at double batch, the weak model as a forward of its own. Gradients through the network are its calls
too. The functions that guidance asks (log p, logits) are of a Gaussian, so they cost nothing here.
Ratios of the medians over `--rounds`; processor time, so that other work on the machine matters
little.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import machine
from jaxgen.families.diffusion.core import path as paths
from jaxgen.families.diffusion.core.denoiser import Denoiser, Network
from jaxgen.families.diffusion.guidance.adaptive import adaptive_guidance
from jaxgen.families.diffusion.guidance.apg import apg
from jaxgen.families.diffusion.guidance.autoguidance import autoguidance
from jaxgen.families.diffusion.guidance.cads import cads
from jaxgen.families.diffusion.guidance.cfg import cfg
from jaxgen.families.diffusion.guidance.cfg_zero import cfg_zero
from jaxgen.families.diffusion.guidance.cfgpp import cfgpp
from jaxgen.families.diffusion.guidance.classifier import classifier
from jaxgen.families.diffusion.guidance.composition import mixture, product
from jaxgen.families.diffusion.guidance.dynamic_cfg import dynamic_cfg
from jaxgen.families.diffusion.guidance.elucd import elucd
from jaxgen.families.diffusion.guidance.gfcg import gfcg
from jaxgen.families.diffusion.guidance.interval import limit
from jaxgen.families.diffusion.guidance.rescale import rescale
from jaxgen.families.diffusion.guidance.threshold import dynamic
from jaxgen.families.diffusion.guidance.universal import backward, universal
from jaxgen.nn.dit import DiT

PATH = paths.linear()
CLASSES = 10
TIME = jnp.float32(0.5)
Case = tuple[Denoiser, Callable[[jax.Array], Any]]


def log_prob(x: jax.Array, t: jax.Array) -> jax.Array:
    """Of a standard Gaussian, [B]."""
    return -(x**2).reshape(x.shape[0], -1).sum(-1)


def logits(x0: jax.Array, t: jax.Array) -> jax.Array:
    """Of classes by the mean of an image, [B, CLASSES]."""
    means = x0.reshape(x0.shape[0], -1).mean(-1, keepdims=True)
    return -((means - jnp.linspace(-1, 1, CLASSES)) ** 2)


def cases(batch: int, size: int, width: int, depth: int) -> tuple[dict[str, Case], jax.Array]:
    """name -> (guided denoiser, its calls as a function of x), and x [batch, size, size, 4]."""
    model = DiT(CLASSES, patch=2, width=width, depth=depth, heads=width // 64, out_channels=4)
    x = jax.random.normal(jax.random.key(0), (batch, size, size, 4))
    labels = jnp.arange(batch) % CLASSES
    init = jax.jit(model.init)
    params, worse = (init(jax.random.key(s), x, jnp.zeros(batch), labels)["params"] for s in (1, 2))
    network = Network(model, PATH, "velocity")
    null = jnp.full_like(labels, CLASSES)
    cond, uncond = network.denoiser(params, labels), network.denoiser(params, null)
    weak = network.denoiser(worse, labels)

    def by_label(others: jax.Array) -> Denoiser:
        return network.denoiser(params, others)

    def forward(copies: int) -> Callable[[jax.Array], Any]:
        """The network on `copies` of the batch at once."""
        rows = jnp.concatenate([labels, null, labels][:copies])
        return lambda x: network.predict(params, jnp.tile(x, (copies, 1, 1, 1)), TIME, rows)

    def each(*which: tuple[Any, jax.Array]) -> Callable[[jax.Array], Any]:
        """Forwards one after the other."""
        return lambda x: [network.predict(p, x, TIME, rows) for p, rows in which]

    def gradient(x: jax.Array) -> Any:
        """A forward and the gradient through it."""
        out, back = jax.vjp(lambda y: network.predict(params, y, TIME, labels).x0, x)
        return out, back(out)

    plain, pair, twice = forward(1), forward(2), each((params, labels), (params, null))
    strong = cfg(cond, uncond, 3.0)
    both = [log_prob, log_prob]
    return {
        "cfg": (strong, pair),
        "apg": (apg(strong, radius=2.0, momentum=-0.5), pair),
        "cfgpp": (cfgpp(cfg(cond, uncond, 0.6)), pair),
        "cfg_zero": (cfg_zero(strong), pair),
        "rescale": (rescale(strong), pair),
        "limit, inside": (limit(strong, 0.2, 0.8), pair),
        "limit, outside": (limit(strong, 0.6, 0.8), plain),
        "adaptive_guidance": (adaptive_guidance(strong), pair),
        "dynamic_cfg": (dynamic_cfg(strong, log_prob), pair),
        "dynamic threshold": (dynamic(strong, PATH), pair),
        "product": (product(cond, uncond, 0.5), pair),
        "mixture": (mixture([cond, uncond], both, [0.3, 0.7]), pair),
        "cads": (cads(strong), twice),
        "autoguidance": (autoguidance(cond, weak, 2.0), each((params, labels), (worse, labels))),
        "gfcg": (gfcg(cond, labels, by_label, logits), twice),
        "gfcg on cfg": (gfcg(strong, labels, by_label, logits), lambda x: (pair(x), plain(x))),
        "classifier": (classifier(cond, PATH, log_prob), plain),
        "elucd": (elucd(cond, labels, logits), plain),
        "universal": (universal(cond, log_prob), gradient),
        "backward": (backward(cond, log_prob, steps=3), plain),
    }, x


def seconds(fn: Callable[[], Any]) -> float:
    """Processor time of one call."""
    begin = time.process_time()
    jax.block_until_ready(fn())
    return time.process_time() - begin


def measure(rounds: int, batch: int, size: int, width: int, depth: int) -> list[dict[str, Any]]:
    """A row a guidance: seconds guided, seconds of its calls, and their ratio."""
    guided_cases, x = cases(batch, size, width, depth)
    keys = jax.random.split(jax.random.key(3), batch)
    rows = []
    for name, (guided, calls) in guided_cases.items():
        memory = guided.init(x)

        def whole(x: jax.Array, memory: Any = memory, guided: Denoiser = guided) -> Any:
            return guided(keys, x, TIME, memory)

        programs = [jax.jit(whole), jax.jit(calls)]
        for program in programs:
            jax.block_until_ready(program(x))
        spent = np.array([[seconds(lambda p=p: p(x)) for p in programs] for _ in range(rounds)])
        ours, bare = np.median(spent, axis=0)
        rows.append(dict(guidance=name, seconds=ours, calls=bare, ratio=ours / bare))
        print(f"{name:20s} {ours:8.4f} {bare:8.4f} {ours / bare:6.3f}", flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; with --json also as JSON."""
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--rounds", type=int, default=9)
    asked.add_argument("--batch", type=int, default=8)
    asked.add_argument("--size", type=int, default=16, help="of the latents")
    asked.add_argument("--width", type=int, default=256)
    asked.add_argument("--depth", type=int, default=6)
    asked.add_argument("--json", action="store_true")
    asked.add_argument("--tiny", action="store_true", help="a small network, once")
    given = asked.parse_args(arguments)
    if given.tiny:
        given.rounds, given.batch, given.size, given.width, given.depth = 1, 2, 4, 48, 6
    print(machine.line())
    rows = measure(given.rounds, given.batch, given.size, given.width, given.depth)
    if given.json:
        print(json.dumps({"machine": machine.machine(), "rows": rows}))


if __name__ == "__main__":
    main()
