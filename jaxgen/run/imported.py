"""A checkpoint of somebody else's as a folder that every command takes in the place of a workdir.

    imported("DiT-XL-2-256x256.pt", "dit", layout="dit", vae="sd-vae-ft-mse")

What is written is an exported model (`run.portable`): the parameters, a config that samples as its
authors do, and where samples are latents or tokens what decodes them. `pretrained.layouts` says
which names are known.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections

from jaxgen import config as configs
from jaxgen import files
from jaxgen.data import Coding
from jaxgen.errors import invalid
from jaxgen.pretrained.autoencoder_kl import normalised, scale_of
from jaxgen.pretrained.layout import Found, Layout, check
from jaxgen.pretrained.layouts import LAYOUTS, layout_of
from jaxgen.pretrained.reading import opened
from jaxgen.run import portable, record
from jaxgen.run.setup import TOP, Setup, set_up
from jaxgen.training.log import say
from jaxgen.training.weights import fingerprint

PyTree = Any
NAME = "params"
"""What `--ema` calls the parameters."""

_REST: dict[str, Any] = dict(
    seed=0,
    optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.0),
    ema=dict(half_life=(1_774_000,), ramp=None),
    train=dict(images=1_000_000),
    checkpoint=dict(),
    log=dict(),
    mesh=dict(data=-1),
    evaluate=dict(samples=50_000, batch_size=64),
    classify=dict(at_end=False, draws=64),
)
"""What no checkpoint says and every config has, for who goes on with the model."""
_UNTOLD = {
    "heads": "the number of heads of its attention",
    "attention_sizes": "the heights at which it attends, e.g. (32,16,8)",
}
_TOKENIZER = {k: v for k, v in _REST.items() if k != "classify"}


def imported(
    source: str | Path,
    out: str | Path,
    *,
    layout: str | None = None,
    vae: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Convert a checkpoint and write it as a folder; `out` is new or empty.

    source: as `pretrained.reading.opened` takes it. layout: its name in `LAYOUTS`; None: by the
    weights' names. vae: where the network is that decodes its samples, if not in `source`.
    overrides: assignments to the config (`model.heads=3`): what weights do not tell, or sampling.
    Returns what it was taken for. Raises UsageError: nothing is written then.
    """
    place, target = files.local("SOURCE", source), files.local("--out", out)
    portable.check_new("--out", target)
    found = opened(place)
    decoder = found.pop("vae", None) or found.pop("vqvae", None)
    origin = place.name
    if vae is not None:
        origin = files.local("--vae", vae).name
        decoder = next(iter(opened(files.local("--vae", vae)).values()))
    if not found:
        raise invalid("SOURCE", str(place), "a folder with a network that generates")
    network = next(iter(found.values()))
    chosen = layout_of(network.state, layout)
    config = _config(chosen, network, overrides)
    coding = None
    if decoder is not None and "scale" in config.data.source and chosen.latents is None:
        scale, shift = scale_of(decoder)
        if not any(o.startswith("data.source.scale=") for o in overrides):
            config.data.source.scale = scale
        if shift:
            config.data.source.shift = shift
    said = {"from": place.name, "layout": chosen.name}
    with tempfile.TemporaryDirectory() as home:
        tokenizer = None
        if decoder is not None:
            tokenizer = Path(home) / portable.TOKENIZER
            digest = _decoder(decoder, tokenizer, config, chosen, origin)
            coding = Coding(ema=NAME, digest=digest)
        setup, params = _converted(chosen, network, config)
        if coding is not None or _coded(config):
            coding = dataclasses.replace(coding or Coding(), **_scales(config))
        _write(target, setup, params, coding, said, tokenizer)
    _say(target, chosen, setup, coded=_coded(config), decoded=decoder is not None)
    size = sum(int(a.size) for a in jax.tree.leaves(params))
    shape = list(setup.spec.shape)
    return {"out": str(target), **said, "parameters": size, "shape": shape,
            "classes": setup.spec.num_classes, "decoder": decoder is not None}  # fmt: skip


def _config(layout: Layout, found: Found, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that the weights and the user say; UsageError where they leave something open."""
    said = layout.config(found)
    config = ml_collections.ConfigDict({**(_REST if "sample" in said else _TOKENIZER), **said})
    configs.override(config, overrides, TOP)
    for name, what in _UNTOLD.items():
        if config.model.get(name, 0) is None:
            fix = f"Say it: --config.model.{name}=N"
            raise invalid(f"config.model.{name}", None, f"{what}, which weights do not tell", fix)
    if config.data.holds.shape is None:
        allowed = "the shape of an example, which these weights do not tell"
        example = "(16,16) of tokens" if config.data.holds.get("tokens") else "(32,32,4)"
        fix = f"Say it: --config.data.holds.shape={example}"
        raise invalid("config.data.holds.shape", None, allowed, fix)
    return config


def _converted(
    layout: Layout, found: Found, config: ml_collections.ConfigDict
) -> tuple[Setup, PyTree]:
    """(the config as objects, the parameters for them), compared with what its networks have."""
    setup = set_up(config, data=False, joining=False)
    params = layout.params(found, setup.modules)
    wanted = jax.eval_shape(setup.method.init, jax.random.key(0)).params
    for group, tree in params.items():
        check(tree, wanted[group], layout.what)
    return setup, params


def _decoder(
    found: Found, out: Path, model: ml_collections.ConfigDict, of: Layout, origin: str
) -> str:
    """Write what decodes the samples of a model's config; returns its parameters' digest."""
    layout = layout_of(found.state)
    if "sample" in (said := layout.config(found)):
        raise invalid("--vae", layout.what, "a network that decodes latents or tokens")
    factor = 2 ** (len(said["model"]["widths"]) - 1)
    height, width = (factor * n for n in model.data.holds.shape[:2])
    channels = said["data"]["holds"]["shape"][2]
    overrides = (
        f"data.holds.shape={(height, width, channels)}",
        f"data.source.image_size={height}",
        f"data.holds.num_classes={model.data.holds.num_classes}",
    )
    setup, params = _converted(layout, found, _config(layout, found, overrides))
    code = setup.method.code
    assert code is not None  # of every tokenizer
    (given, wanted) = ((tuple(c.shape), c.levels) for c in (code, model.data.holds))
    if given != wanted:
        told = [f"codes {shape} of {levels} levels" for shape, levels in (given, wanted)]
        raise invalid("--vae", told[0], f"{told[1]}, as the model's")
    if of.latents is not None and code.levels is None:
        params = normalised(params, *of.latents)
    _write(out, setup, params, None, {"from": origin, "layout": layout.name}, None)
    return fingerprint(params)


def _coded(config: ml_collections.ConfigDict) -> bool:
    """Whether examples are somebody's codes: what the source of such a config is called."""
    return str(config.data.source.name).split(".")[0] in ("latents", "codes")


def _scales(config: ml_collections.ConfigDict) -> dict[str, Any]:
    source = config.data.source
    return {k: float(source[k]) for k in ("scale", "shift") if k in source}


def _write(
    out: Path,
    setup: Setup,
    params: PyTree,
    coding: Coding | None,
    said: Mapping[str, str],
    tokenizer: Path | None,
) -> None:
    setup = dataclasses.replace(setup, coding=coding)
    whole = {
        **configs.to_dict(setup.config),
        record.KEY: {**record.record_of(setup, out), "imported": dict(said)},
    }
    exported = {"ema": NAME, "images": 0, "step": 0, "licence": None}
    what = LAYOUTS[said["layout"]].what
    card = f"# {out.name}\n\nWeights of {what}, converted by `jaxgen import`. Their licence is\n"
    card += "that of where they are from.\n"
    portable.write(out, whole, params, exported, {portable.CARD: card.encode()}, tokenizer)


def _say(out: Path, layout: Layout, setup: Setup, *, coded: bool, decoded: bool) -> None:
    shape = "x".join(map(str, setup.spec.shape))
    classes = setup.spec.num_classes
    say(f"{layout.name}: {layout.what}; examples {shape}, {classes} classes -> {out}")
    if coded and not decoded:
        what = "the network of its tokens" if setup.spec.tokens else "an AutoencoderKL of diffusers"
        say(f"Its samples are codes, and nothing decodes them: import it with --vae PLACE, {what}.")
