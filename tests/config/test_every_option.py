"""Every option of a config changes what is computed, or is on a short list with the reason.

A section's keywords are a signature, so the options are known. Each is given another allowed value;
then a program of the run (traced, with its constants), or the numbers that go with it, must differ.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from jaxgen import config as configs
from jaxgen import distill, families, tokenizers, tune, unlearn
from jaxgen.errors import UsageError
from jaxgen.run.setup import SECTIONS, TOP, Setup, set_up
from jaxgen.training.optim import optimizer
from tests import base_run
from tests.every_family import DRAWN, FAMILIES, LIKENESS, SHORT, TEACHER
from tests.option_kit import PROGRAMS, options, others, program

MLP = dict(name="mlp.MLP", width=8, depth=2)
TOLD_W = MLP | dict(conditions=(("w", "number"),))
DIT = dict(name="dit.DiT", patch=4, width=8, depth=2, heads=2, attention="xla")
BERT = dict(name="bert.Bert", width=8, depth=1, heads=2, attention="xla")
MASKED = DIT | dict(name="masked_dit.MaskedDiT", decoder_depth=1, decoder_width=8, decoder_heads=2)
EDM2 = dict(
    name="edm2.EDM2",
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    head_channels=8,
    attention_sizes=(8,),
)
UNET = dict(channels=8, multipliers=(1, 1), blocks=1, attention_sizes=(8,))
THIN = dict(width=2, attention=0)
BARS = dict(name="bars_and_stripes.bars_and_stripes", size=4)
ONES = (1.0,) * 64
WORDS = dict(name="bit_sequences.bit_sequences", length=32, word=4, modes=4)
INCLUSIVE = dict(name="tune.inclusive", classes=(3, 4), parent=8, sample=SHORT)
TOKENS = dict(name="tune.tokens", classes=(3,), reward="tests.option_kit.brightness")

STYLED = dict(name="stylegan2.Generator", base=32, most=8, latent=4, style=8, depth=1)


def _tiny(model: Any, *more: str) -> tuple[str, list[str]]:
    return "tests/tiny.py", [f"model={model}", *more]


CASES: Mapping[str, tuple[str, list[str]]] = {
    **FAMILIES,
    "mlp": _tiny(MLP),
    "dit": _tiny(DIT),
    "masked": _tiny(MASKED, "method=diffusion.masked_denoising"),
    "idempotent": _tiny(MLP, "method=energy.idempotent", "sample={}"),
    "mean_flow": _tiny(MLP, "method=diffusion.mean_flow", "sample={}"),
    "shortcut": _tiny(MLP, "method=diffusion.shortcut", "sample={}"),
    "pixel_flow": _tiny(
        DIT | dict(patch=2),
        "method=" + repr(dict(name="diffusion.pixel_flow", stages=2)),
        "sample={}",
    ),
    "cca": _tiny(MLP, TEACHER, "wrap=" + repr([dict(name="tune.contrast.cca")])),
    "near": _tiny(MLP, TEACHER, "wrap=" + repr([dict(name="unlearn.near_access")])),
    "ddo": _tiny(MLP, TEACHER, "wrap=" + repr([dict(name="tune.contrast.ddo")])),
    "consistency": _tiny(
        MLP, TEACHER, "sample={}", "wrap=" + repr([dict(name="distill.consistency", steps=8)])
    ),
    "only": _tiny(MLP, "wrap=" + repr([dict(name="tune.only", match="bias$")])),
    "routed": _tiny(
        dict(name="routed.Routed", of=MLP, groups=(tuple(range(5)), tuple(range(5, 10))))
    ),
    "redact": _tiny(
        MLP | dict(width=10),
        "wrap=" + repr([dict(name="unlearn.redact", classes=(3,), reference=1)]),
    ),
    "repulsion": _tiny(
        MLP | dict(width=24, depth=1),
        "networks={'adapted': BASE}",
        "wrap=" + repr([dict(name="unlearn.repulsion", group="net")]),
    ),
    "dpo": _tiny(MLP, TEACHER, f"wrap=[dict(name='tune.preference.dpo', {DRAWN}, {LIKENESS})]"),
    "pool": _tiny(
        MLP,
        TEACHER,
        f"wrap=[dict(name='distill.pool', {LIKENESS}, sample=dict(steps=2), own=dict(steps=2))]",
    ),
    "told": _tiny(TOLD_W, "wrap=" + repr([dict(name="tune.told.told", levels=2)])),
    "weighted": _tiny(MLP, f"wrap=[dict(name='tune.weighted.weighted', {LIKENESS})]"),
    "tokens": (
        FAMILIES["gan"][0],
        [*FAMILIES["gan"][1], "wrap=" + repr([TOKENS]), "optimizer=" + repr(dict(name="adam"))],
    ),
    "concepts": _tiny(
        MLP | dict(conditions=(("code", "vector", 2),)),
        "wrap=" + repr([dict(name="tune.concepts")]),
    ),
    "priors": _tiny(
        MLP | dict(conditions=(("prior", "vector", 2),)),
        "wrap=" + repr([dict(name="tune.priors", width=16, depth=1, heads=2)]),
    ),
    "hypernet": _tiny(MLP, "wrap=" + repr([dict(name="tune.hypernet")])),
    "inclusive": _tiny(MLP, "wrap=" + repr([INCLUSIVE])),
    "diffusion_tokens": _tiny(MLP, "wrap=" + repr([TOKENS | dict(sample=SHORT)])),
    "directional": (
        "configs/digits_gan.py",
        [
            "model.generator.width=8",
            "model.discriminator.width=8",
            "wrap=" + repr([dict(name="tune.directional", encoder="flat", direction=ONES)]),
        ],
    ),
    "edm2": _tiny(EDM2),
    "unet": _tiny(dict(name="unet.UNet") | UNET),
    "uvit_model": _tiny(
        dict(name="uvit.UViT", patch=4, width=8, depth=3, heads=2, attention="xla")
    ),
    "tread": _tiny(DIT | dict(name="tread.TREAD", depth=3, routes=((1, 2, 0.5),))),
    "diffmoe": _tiny(DIT | dict(name="diffmoe.DiffMoE", experts=4), "method.terms=['capacity']"),
    "lit": _tiny(DIT | dict(name="lit.LiT", kernel=3)),
    "can": _tiny(DIT | dict(name="can.CAN", rank=2)),
    "diffit": _tiny(DIT | dict(name="diffit.DiffiT")),
    "dis": _tiny(dict(name="dis.DiS", patch=4, width=8, depth=3, states=2)),
    "ascan": _tiny(
        dict(name="ascan.AsCAN", width=8, head_channels=4, stages=("C", "T", "C"), attention="xla")
    ),
    "dimr": _tiny(
        dict(name="dimr.DiMR", patch=2, depths=(1, 1), widths=(8, 4), heads=2, attention="xla")
    ),
    "iwin": _tiny(DIT | dict(name="iwin.Iwin", patch=2, window=2)),
    "gsdm": _tiny(DIT | dict(name="gsdm.GSDM", edges=((0, 1), (1, 2)))),
    "dico": _tiny(dict(name="dico.DiCo", width=8, depths=(1, 1, 1))),
    "dit_moe": _tiny(DIT | dict(name="dit_moe.DiTMoE", experts=4)),
    "biggan": (
        "configs/digits_gan.py",
        [
            "data.holds=" + repr(dict(shape=(32, 32, 3), num_classes=3, levels=256)),
            "data.workers=0",
            "model="
            + repr(
                dict(
                    generator=dict(name="biggan.Generator", label_width=4) | THIN,
                    discriminator=dict(name="biggan.Discriminator") | THIN,
                )
            ),
            "method.latent=" + repr(dict(name="normal", size=8)),
        ],
    ),
    "dcgan": ("configs/gan.py:dcgan-pd-ns-none-none", []),
    "stylegan2": (
        "configs/digits_gan.py",
        [
            "model.generator=" + repr(STYLED),
            "model.discriminator=" + repr(dict(name="stylegan2.Discriminator", base=32, most=8)),
            "method.latent.size=154",
            "method.regularisers=('path_length',)",
        ],
    ),
    "own": _tiny(dict(name="own.Pure", of="tests.own_kit.shaded")),
    "interpolants": (
        "configs/digits_maskgit.py",
        [
            f"data.source={BARS}",
            "method=discrete.discrete_interpolants",
            f"model={BERT}",
            "sample={}",
        ],
    ),
    "bits": (
        "configs/digits_maskgit.py",
        [
            "data.holds=" + repr(dict(shape=(2, 2), num_classes=2, levels=16, tokens=True)),
            "method=discrete.maskbit",
            f"model={BERT}",
            "sample.steps=2",
            "data.workers=0",
        ],
    ),
    "words": (
        "configs/hypergrid.py",
        [f"data.source={WORDS}", "model.width=8", "method.estimate_samples=8"],
    ),
}

GIVEN = {"spec", "model", "optimizer", "averages", "accumulate", "networks", "method"}
OFFERED = {"num_classes", "out_channels", "shape", "levels", "parent", "name", "conditions"}
"""What the run supplies, and a config's section may not say."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The options of the section `key` of a case's config with `overrides`.

    values: where the type does not say what else there is. skip: option -> why nothing changes
    here. only: nothing but these, in a case in which they matter.
    """

    case: str
    key: str
    overrides: tuple[str, ...] = ()
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    skip: Mapping[str, str] = dataclasses.field(default_factory=dict)
    only: tuple[str, ...] = ()
    programs: tuple[str, ...] = PROGRAMS

    def tried(self, function: Callable[..., Any], given: set[str]) -> list[str]:
        """The options of the section's function that this sweep changes."""
        every = [o for o in options(function) if o not in given and o not in self.skip]
        return [o for o in every if o in self.only] if self.only else every

    @property
    def name(self) -> str:
        """The name of the test."""
        return "-".join((self.case, self.key, *self.only))


ELSEWHERE = "another sweep has it"
DEFAULT = dict(path="cosine", times="log_normal", weighting="snr", coupling="optimal")
DENOISING = DEFAULT | dict(
    prediction="eps",
    noise=dict(name="pfgmpp", extra_dims=8),
    terms=("uncertainty",),
    describe=dict(name="representation.representation", encoder="flat", width=8, depth=1),
    coherence=2,
)
GFLOWNET = dict(loss="flow_matching", backward="learned")
ADVERSARIAL = dict(
    loss="hinge",
    head="unconditional",
    regularisers=("r1",),
    augmentation=dict(name="differentiable", policy=("flip",)),
    latent=dict(name="uniform", size=8),
    freeze="hidden0",
)
VQGAN = dict(quantiser=dict(name="lookup_free", bits=4), loss="non_saturating")

METHODS = (
    Sweep("mlp", "method", values=DENOISING, skip=dict(sigma_data=ELSEWHERE, coherence=ELSEWHERE)),
    Sweep("mlp", "method", ("method.prediction=edm",), only=("sigma_data",)),
    Sweep(
        "mlp",
        "method",
        ("method.label_dropout=0.0", "sample.guidance=1.0"),
        values=dict(coherence=2),
        only=("coherence",),
    ),
    Sweep(
        "masked",
        "method",
        values=DEFAULT | dict(prediction="eps"),
        skip=dict(sigma_data=ELSEWHERE),
    ),
    Sweep("masked", "method", ("method.prediction=edm",), only=("sigma_data",)),
    Sweep("mean_flow", "method", values=DEFAULT),
    Sweep("shortcut", "method", values=DEFAULT),
    Sweep("pixel_flow", "method", values=dict(times="log_normal", stages=1)),
    Sweep(
        "interpolants",
        "method",
        values=dict(noise="uniform", schedule="cosine", time="explicit", weighting="elbo"),
    ),
    Sweep("maskgit", "method", values=dict(schedule="linear", weighting="elbo")),
    Sweep(
        "bits",
        "method",
        ("method.label_smoothing=0.0",),
        dict(groups=2, schedule="linear", weighting="elbo"),
    ),
    Sweep("jem", "method", values=dict(buffer=128)),
    Sweep("idempotent", "method"),
    Sweep(
        "llamagen",
        "method",
        values=dict(head=dict(name="logistic_mixture", components=2)),
        skip=dict(alpha=ELSEWHERE),
    ),
    Sweep("llamagen", "method", ("method.discriminative=0.5",), only=("alpha",)),
    Sweep("gan", "method", values=ADVERSARIAL, skip=dict(statistics_decay=ELSEWHERE)),
    Sweep("gan", "method", ("model.generator.batch_norm=True",), only=("statistics_decay",)),
    Sweep("tarflow", "method"),
    Sweep(
        "cvae",
        "method",
        values=dict(observation="gaussian", gradient="score", samples=2),
        skip=dict(gradient=ELSEWHERE, samples=ELSEWHERE),
    ),
    Sweep("iwae", "method", values=dict(samples=3), only=("samples", "gradient")),
    Sweep(
        "gflownet",
        "method",
        values=GFLOWNET,
        skip=dict(estimate_samples=ELSEWHERE, forward_looking=ELSEWHERE),
    ),
    Sweep("gflownet", "method", ("method.loss=detailed_balance",), only=("forward_looking",)),
    Sweep(
        "gflownet",
        "method",
        ("method={'name': 'gflownet.fl_gflownet', 'replay_size': 64}",),
        GFLOWNET | dict(loss="subtrajectory_balance"),
        skip=dict(estimate_samples="as in gflownet", log_z_rate="this loss learns no log Z"),
    ),
    Sweep("words", "method", only=("estimate_samples",), programs=("scores",)),
    Sweep(
        "vqgan",
        "method",
        values=VQGAN | dict(perceptual="jaxgen.frozen.encoders.flat", reconstruction="l1"),
        skip=dict(perceptual_weight=ELSEWHERE),
    ),
    Sweep(
        "vqgan",
        "method",
        ("method.perceptual=jaxgen.frozen.encoders.flat",),
        only=("perceptual_weight",),
    ),
)


SAMPLER = ("sampler",)
SOLVED = dict(
    solver="heun",
    grid="karras",
    guidance=2.0,
    clip="static",
    preview=1,
    steps=4,
    describe=dict(name="representation.representation", encoder="flat", width=8, depth=1),
)
CODE = "an argument for code that samples, not for a config"
SAMPLES = (
    Sweep(
        "mlp",
        "sample",
        values=SOLVED,
        skip=dict(branches=CODE, describe="a model that is told a description: slow tests"),
        programs=SAMPLER,
    ),
    Sweep("pixel_flow", "sample", values=SOLVED | dict(solver="euler"), programs=SAMPLER),
    Sweep(
        "llamagen",
        "sample",
        values=dict(guidance=2.0, top_k=3),
        skip=dict(models=CODE),
        programs=SAMPLER,
    ),
    Sweep(
        "maskgit",
        "sample",
        values=dict(
            solver="ancestral", schedule="linear", guidance=2.0, guidance_schedule="linear"
        ),
        skip=dict(guidance_schedule=ELSEWHERE),
        programs=SAMPLER,
    ),
    Sweep(
        "maskgit",
        "sample",
        ("sample.guidance=2.0",),
        dict(guidance_schedule="linear"),
        only=("guidance_schedule",),
        programs=SAMPLER,
    ),
    Sweep(
        "gan",
        "sample",
        values=dict(truncation=0.5),
        skip=dict(standing=ELSEWHERE),
        programs=SAMPLER,
    ),
    Sweep(
        "gan",
        "sample",
        ("model.generator.batch_norm=True",),
        dict(standing=4),
        only=("standing",),
        programs=SAMPLER,
    ),
    Sweep("tarflow", "sample", values=dict(guidance=3.0), programs=SAMPLER),
    Sweep(
        "glow",
        "sample",
        skip=dict(
            guidance="for label dropout", denoised="for Gaussian noise", annealed="is for TarFlow"
        ),
        programs=SAMPLER,
    ),
    Sweep("cvae", "sample", programs=SAMPLER),
    Sweep("jem", "sample", programs=SAMPLER),
    Sweep("idempotent", "sample", programs=SAMPLER),
    Sweep("gflownet", "sample", programs=SAMPLER),
)

UPDATE = ("update",)
RATES = dict(
    decay_images="for inverse_sqrt: another sweep",
    momentum="for sgd: another sweep",
    final_fraction="for cosine and linear: another sweep",
)
OPTIMIZERS = (
    Sweep(
        "mlp",
        "optimizer",
        values=dict(warmup_images=999, clip_norm=0.5),
        skip=RATES,
        programs=UPDATE,
    ),
    Sweep(
        "mlp",
        "optimizer",
        ("optimizer.schedule=cosine",),
        only=("final_fraction",),
        programs=UPDATE,
    ),
    Sweep(
        "mlp",
        "optimizer",
        ("optimizer.schedule=linear",),
        only=("final_fraction",),
        programs=UPDATE,
    ),
    Sweep(
        "mlp",
        "optimizer",
        ("optimizer.schedule=inverse_sqrt", "optimizer.decay_images=99"),
        only=("decay_images",),
        programs=UPDATE,
    ),
    Sweep("mlp", "optimizer", ("optimizer={'name': 'sgd'}",), only=("momentum",), programs=UPDATE),
    Sweep(
        "mlp",
        "optimizer",
        ("optimizer={'name': 'adam'}",),
        only=("b1", "b2", "eps"),
        programs=UPDATE,
    ),
    Sweep(
        "mlp",
        "optimizer",
        ("optimizer={'name': 'muon'}",),
        only=("b1", "b2", "eps", "weight_decay"),
        programs=UPDATE,
    ),
    Sweep(
        "mlp", "ema", values=dict(half_life=(600,), power_std=(0.1,)), programs=("init", *UPDATE)
    ),
    Sweep("mlp", "train", values=dict(accumulate=2), only=("accumulate",), programs=UPDATE),
    Sweep(
        "mlp",
        "train",
        ("optimizer.schedule=cosine",),
        dict(images=9999),
        only=("images",),
        programs=UPDATE,
    ),
    Sweep("mlp", "data", values=dict(batch_size=32), only=("batch_size",), programs=UPDATE),
)

DROPOUT = dict(dropout=0.25)
WHOLE = dict(size="the sizes are in tests/nn", dtype="")
TAKES = dict(identity_attention="for a denoiser that perturbs itself")
HIDDEN = dict(
    width=16,
    heads=1,
    depth=4,
    patch=2,
    dtype="bfloat16",
    remat="none",
    attention="reference",
    size="B/2",
    dropout=0.25,
)
NETWORK = ("init", "update")
PASSES = ("init", "update", "sampler")
SIZED = dict(size="fields that are set win")
MODELS = (
    Sweep(
        "own",
        "model",
        values=dict(of="tests.own_kit.shaded_twice", call="x, 1000 * t, y"),
        programs=NETWORK,
    ),
    Sweep("mlp", "model", values=HIDDEN | dict(remat="dots"), programs=NETWORK),
    Sweep("dit", "model", values=HIDDEN, skip=SIZED | TAKES, programs=NETWORK),
    Sweep(
        "masked",
        "model",
        values=HIDDEN | dict(decoder_width=16, decoder_heads=1, decoder_depth=2),
        skip=SIZED | TAKES | dict(rope="refused: hidden patches have no angles"),
        programs=NETWORK,
    ),
    Sweep(
        "edm2",
        "model",
        skip=SIZED,
        programs=NETWORK,
        values=HIDDEN
        | dict(
            channels=16,
            multipliers=(1, 1),
            attention_sizes=(4,),
            head_channels=4,
            blocks=2,
            remat="dots",
        ),
    ),
    Sweep(
        "unet",
        "model",
        programs=NETWORK,
        skip=TAKES,
        values=HIDDEN
        | dict(
            channels=16,
            multipliers=(1, 2),
            attention_sizes=(4,),
            filter="fir",
            remat="dots",
            embedding="fourier",
            embedding_channels=12,
        ),
    ),
    Sweep(
        "routed", "model", values=dict(of=DIT, groups=((0,), tuple(range(1, 10)))), programs=NETWORK
    ),
    Sweep("uvit_model", "model", values=HIDDEN | dict(depth=5), skip=SIZED, programs=NETWORK),
    Sweep(
        "diffmoe",
        "model",
        values=HIDDEN | dict(experts=3, capacity=2.0),
        skip=SIZED | TAKES,
        programs=NETWORK,
    ),
    Sweep(
        "lit",
        "model",
        values=HIDDEN | dict(kernel=1, lowering="direct"),
        skip=SIZED | TAKES | dict(attention="there is no map to compute"),
        programs=NETWORK,
    ),
    Sweep(
        "can",
        "model",
        values=HIDDEN | dict(rank=3),
        skip=SIZED | TAKES,
        programs=NETWORK,
    ),
    Sweep(
        "diffit",
        "model",
        values=HIDDEN | dict(size="XL/4"),
        skip=SIZED | TAKES | dict(attention="maps with relative positions are the plain formula's"),
        programs=NETWORK,
    ),
    Sweep(
        "dis",
        "model",
        values=HIDDEN | dict(depth=5, states=3, kernel=2),
        skip=SIZED,
        programs=NETWORK,
    ),
    Sweep(
        "ascan",
        "model",
        values=HIDDEN | dict(stages=("C", "CT", "C"), head_channels=8, lowering="direct"),
        programs=NETWORK,
    ),
    Sweep(
        "dimr",
        "model",
        values=HIDDEN | dict(depths=(2, 1), widths=(8, 8), patch=1, kernel=3, lowering="direct"),
        programs=NETWORK,
    ),
    Sweep(
        "iwin",
        "model",
        values=HIDDEN | dict(patch=4, window=1, kernel=5, lowering="direct"),
        skip=SIZED | TAKES | dict(rope="refused: windows are of distant patches"),
        programs=NETWORK,
    ),
    Sweep(
        "gsdm",
        "model",
        values=HIDDEN | dict(edges=((0, 3),), kinds=(0, 0, 1, 1)),
        skip=SIZED
        | TAKES
        | dict(
            attention="maps of a graph are the plain formula's", rope="refused: there are no places"
        ),
        programs=NETWORK,
    ),
    Sweep(
        "dico",
        "model",
        values=HIDDEN | dict(depths=(1, 2, 1), lowering="direct"),
        skip=SIZED,
        programs=NETWORK,
    ),
    Sweep(
        "dit_moe",
        "model",
        values=HIDDEN | dict(experts=3, chosen=1, shared=0),
        skip=SIZED | TAKES,
        programs=NETWORK,
    ),
    Sweep(
        "tread",
        "model",
        values=HIDDEN | dict(routes=((0, 3, 0.25),)),
        skip=SIZED | TAKES | dict(rope="refused: examples keep different places"),
        programs=NETWORK,
    ),
    Sweep(
        "maskgit",
        "model",
        values=HIDDEN | dict(patch=4, width=16),
        programs=NETWORK,
        skip=SIZED
        | {k: "the method sets it" for k in ("extra", "bits", "outputs", "timed", "causal")},
    ),
    Sweep(
        "llamagen",
        "model",
        values=HIDDEN | dict(multiple=8),
        programs=NETWORK,
        skip=SIZED | {k: "the method sets it" for k in ("extra", "outputs", "causal")},
    ),
    Sweep(
        "pixelcnn",
        "model",
        ("model.depth=2", "model.width=8"),
        HIDDEN | dict(kernel=5, first=7, lowering="direct"),
        skip=dict(outputs="the method sets it"),
        programs=NETWORK,
    ),
    *(
        Sweep(
            "biggan",
            f"model.{player}",
            values=dict(width=4, deep=True, label_width=8, attention=16, dtype="bfloat16"),
            skip=dict(spectral="always on, and False is refused"),
            programs=UPDATE,
        )
        for player in ("generator", "discriminator")
    ),
    Sweep("gan", "model.generator", values=HIDDEN | dict(width=8), programs=NETWORK),
    Sweep(
        "stylegan2",
        "model.generator",
        values=HIDDEN | dict(base=64, most=4, mixing=0.0),
        skip=dict(latent="the latent's size follows", psi="of samples: see sample.truncation"),
        programs=NETWORK,
    ),
    Sweep(
        "stylegan2",
        "model.discriminator",
        values=HIDDEN | dict(base=64, most=4, group=0),
        programs=NETWORK,
    ),
    Sweep(
        "stylegan2",
        "sample",
        values=dict(truncation=0.5),
        skip=dict(standing=ELSEWHERE),
        programs=SAMPLER,
    ),
    Sweep("dcgan", "model.generator", values=HIDDEN | dict(label_width=8), programs=NETWORK),
    Sweep("dcgan", "model.discriminator", values=HIDDEN, programs=NETWORK),
    Sweep(
        "gan",
        "model.discriminator",
        values=HIDDEN | dict(activation="maxout"),
        skip=dict(pieces=ELSEWHERE),
        programs=NETWORK,
    ),
    Sweep(
        "gan",
        "model.discriminator",
        ("model.discriminator.activation=maxout",),
        only=("pieces",),
        programs=NETWORK,
    ),
    Sweep("tarflow", "model", values=HIDDEN | dict(patch=4, remat="dots"), programs=NETWORK),
    Sweep("glow", "model", values=HIDDEN, programs=NETWORK),
    Sweep("iwae", "model", only=("chain",), programs=NETWORK),
    Sweep(
        "cvae",
        "model",
        values=HIDDEN | dict(latents=(4,), hidden=(16,), activation="tanh"),
        skip=dict(outputs="the method sets it", chain=ELSEWHERE),
        programs=NETWORK,
    ),
)

WRAPS = (
    Sweep(
        "lora", "wrap.0", (f"model={MLP}",), dict(alpha=1.0, match="out\\.kernel$"), programs=PASSES
    ),
    Sweep("progressive", "wrap.0", values=dict(steps=8, last=2), programs=UPDATE),
    Sweep("guided", "wrap.0", values=dict(trajectory=2), programs=UPDATE),
    Sweep("only", "wrap.0", values=dict(match="kernel$"), programs=PASSES),
    Sweep(
        "consistency",
        "wrap.0",
        values=dict(steps=16),
        skip=dict(teacher="names a network"),
        programs=UPDATE,
    ),
    Sweep("near", "wrap.0", programs=SAMPLER),
    Sweep(
        "redact",
        "wrap.0",
        values=dict(classes=(2,), reference=4, match=r"(labels\.embedding|out\.kernel)$"),
        programs=UPDATE,
    ),
    Sweep(
        "directional",
        "wrap.0",
        values=dict(direction=(2.0,) * 64, match=r"^generator\.out\."),
        skip=dict(encoder="names a network: tests/tune/test_directional.py"),
        programs=UPDATE,
    ),
    Sweep(
        "repulsion",
        "wrap.0",
        skip=dict(adapted="names a network", group="names a group"),
        programs=UPDATE,
    ),
    Sweep(
        "pool",
        "wrap.0",
        values=dict(sample=dict(steps=3), own=dict(steps=3)),
        skip=dict(teachers="names networks", reward="a function of samples"),
        programs=UPDATE,
    ),
    Sweep("told", "wrap.0", values=dict(levels=5, values=dict(w=1.0)), programs=SAMPLER),
    Sweep(
        "truncated",
        "wrap.0",
        values=dict(sample=dict(steps=3)),
        skip=dict(teacher="names a network"),
        programs=UPDATE,
    ),
    Sweep(
        "weighted",
        "wrap.0",
        skip=dict(reward="a function of samples", column="a column in its place"),
        programs=UPDATE,
    ),
    *(
        Sweep(
            name,
            "wrap.0",
            values=dict(sample=dict(steps=3)),
            skip=dict(teacher="names a network"),
            programs=UPDATE,
        )
        for name in ("cca", "ddo")
    ),
    Sweep(
        "dreambooth",
        "wrap.0",
        values=dict(parents={"3": "7"}, sample=SHORT | dict(steps=3)),
        skip=dict(teacher="names a network"),
        programs=UPDATE,
    ),
    Sweep(
        "tokens",
        "wrap.0",
        ("wrap=" + repr([TOKENS | dict(diversity=1.0)]),),
        dict(
            classes=(4,),
            targets=(5,),
            reward="tests.option_kit.darkness",
            encoder="tests.option_kit.doubled",
            sample=dict(truncation=0.5),
            match="^generator.*labels",
        ),
        skip=dict(last="a generator has one step", match=ELSEWHERE),
        programs=UPDATE,
    ),
    Sweep(
        "hypernet",
        "wrap.0",
        values=dict(encoder="tests.option_kit.doubled", match="out\\.kernel$"),
        programs=UPDATE,
    ),
    Sweep(
        "priors",
        "wrap.0",
        values=dict(stages=3, first=0.25, patch=4, width=8, depth=2, heads=4),
        programs=PASSES,
    ),
    Sweep("concepts", "wrap.0", values=dict(encoder="tests.option_kit.doubled"), programs=UPDATE),
    Sweep(
        "inclusive",
        "wrap.0",
        values=dict(
            classes=(3, 5),
            parent=7,
            encoder="tests.option_kit.doubled",
            sample=SHORT | dict(steps=3),
        ),
        skip=dict(match="as in tokens"),
        programs=UPDATE,
    ),
    Sweep(
        "diffusion_tokens",
        "wrap.0",
        only=("last",),
        programs=UPDATE,
    ),
    Sweep(
        "tokens",
        "wrap.0",
        values=dict(match="^generator.*labels"),
        only=("match",),
        programs=("init",),
    ),
    Sweep(
        "grpo",
        "wrap.0",
        values=dict(group=2, sample=dict(solver="ancestral.ddpm", steps=3)),
        skip=dict(teacher="names a network", reward="a function of samples"),
        programs=UPDATE,
    ),
    Sweep(
        "dpo",
        "wrap.0",
        values=dict(sample=dict(steps=3), data=True),
        skip=dict(
            teacher="names a network", reward="a function of samples", loser="a column in its place"
        ),
        programs=UPDATE,
    ),
    Sweep(
        "matching",
        "wrap.0",
        values=dict(by="ratio", divergence="jeffreys", fake_steps=2),
        skip=dict(teacher="names a network", huber=ELSEWHERE),
        programs=UPDATE,
    ),
    Sweep(
        "matching",
        "wrap.0",
        ("wrap=" + repr([dict(name="distill.matching", by="implicit")]),),
        only=("huber",),
        programs=UPDATE,
    ),
    Sweep(
        "forget",
        "wrap.0",
        values=dict(classes=(3,), target="negative", substitute=2, sample=dict(steps=3)),
        skip=dict(teacher="names a network", eta=ELSEWHERE),
        programs=UPDATE,
    ),
    Sweep(
        "forget",
        "wrap.0",
        ("wrap=" + repr([dict(name="unlearn.forget", classes=(3,), target="negative")]),),
        only=("eta",),
        programs=UPDATE,
    ),
)

SWEEPS = (*METHODS, *SAMPLES, *OPTIMIZERS, *MODELS, *WRAPS)


@functools.cache
def base(case: str, *overrides: str) -> Setup:
    """A case's setup, in batches of 16."""
    return set_up(loaded(case, *overrides), data=False)


def loaded(case: str, *overrides: str) -> Any:
    """A case's config."""
    config, narrow = CASES[case]
    config = configs.load(config)
    configs.override(config, [*base_run.told(narrow), "data.batch_size=16", *overrides], TOP)
    return config


def changed(setup: Setup, key: str, value: Any) -> Setup:
    """The setup of the same config with `key` set, without opening its data again."""
    config = configs.to_dict(setup.config)
    *parents, last = key.split(".")
    section = config
    for name in map(_step, parents):
        if isinstance(section, dict):
            section.setdefault(name, {})
        if isinstance(section[name], str):
            section[name] = {"name": section[name]}
        section = section[name]
    section[last] = value
    return set_up(configs.ml_collections.ConfigDict(config), spec=setup.spec, coding=setup.coding)


def _step(name: str) -> str | int:
    """A key of a section, or the number of one of a list."""
    return int(name) if name.isdecimal() else name


def function_of(config: Any, key: str) -> tuple[Callable[..., Any], set[str]]:
    """Whose signature the section `key` is, and which of its parameters the run supplies."""
    if key == "optimizer":
        return optimizer, {"images", "batch_size"}
    if key in SECTIONS:
        return SECTIONS[key], set()
    room = key.partition(".")[0]
    section = functools.reduce(lambda a, k: a[_step(k)], key.split("."), config)
    name = section if isinstance(section, str) else section["name"]
    return configs.resolve(name, configs.ROOMS[room], key), GIVEN | OFFERED


def inert(sweep: Sweep) -> list[str]:
    """Options of the section that change none of the programs."""
    setup = base(sweep.case, *sweep.overrides)
    if sweep.key == "sample":
        function, given = setup.method.sampler, set()
    else:
        function, given = function_of(setup.config, sweep.key)
    section = configs.to_dict(setup.config)
    for name in map(_step, sweep.key.split(".")):
        section = section[name] if isinstance(section, list) else section.get(name, {})
    section = {"name": section} if isinstance(section, str) else section
    if sweep.key == "optimizer" and "name" in section:
        given = given | {"name"}
    before = functools.cache(lambda name: program(setup, name))
    trouble = []
    for option in sweep.tried(function, given):
        hint, default = options(function)[option]
        now = section.get(option, default)
        known = option in sweep.values
        for value in (sweep.values[option],) if known else others(hint, now):
            if value == now:
                continue
            try:
                other = changed(setup, f"{sweep.key}.{option}", value)
            except UsageError:
                if known:
                    raise
                continue
            if not any(program(other, name) != before(name) for name in sweep.programs):
                trouble.append(f"{sweep.key}.{option}={value!r}, not {now!r}, changes nothing")
            break
        else:
            trouble.append(f"{sweep.key}.{option}: no other value than {now!r} is known")
    return trouble


@pytest.mark.parametrize("sweep", SWEEPS, ids=[sweep.name for sweep in SWEEPS])
def test_another_value_is_another_program(sweep):
    assert inert(sweep) == []


def test_every_method_and_all_of_its_options_are_swept():
    """Of methods in jaxgen.families and jaxgen.tokenizers, and of every function that is swept."""
    tried: dict[Any, set[str]] = {}
    wanted: dict[Any, set[str]] = {}
    for sweep in SWEEPS:
        if sweep.key in ("train", "data", "sample"):
            continue
        function, given = function_of(loaded(sweep.case, *sweep.overrides), sweep.key)
        function = getattr(function, "func", function)
        reasons = {o for o, why in sweep.skip.items() if why != ELSEWHERE}
        tried.setdefault(function, set()).update(sweep.tried(function, given), reasons)
        wanted[function] = set(options(function)) - given - {"name"}
    for function, every in wanted.items():
        assert every <= tried[function] | {"name"}, (function, every - tried[function])
    methods = {
        function
        for package in (families, tokenizers)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        for function in vars(importlib.import_module(module.name)).values()
        if inspect.isfunction(function)
        and {"spec", "model", "optimizer", "averages"}
        <= set(inspect.signature(function).parameters)
        and not function.__name__.startswith("_")
    }
    assert methods and methods <= wanted.keys(), methods - wanted.keys()
    wraps = {
        function
        for package in (distill, tune, unlearn)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        for function in vars(importlib.import_module(module.name)).values()
        if inspect.isfunction(function) and is_wrap(function)
    }
    assert wraps and wraps <= wanted.keys(), wraps - wanted.keys()


def is_wrap(function: Callable[..., Any]) -> bool:
    """Whether a config can name it, with options: a method, these by name, a method again."""
    signature = inspect.signature(function)
    first, *rest = signature.parameters.values()
    named = all(p.kind is p.KEYWORD_ONLY for p in rest) and not function.__name__.startswith("_")
    named &= {p.name for p in rest} > {"spec", "networks"} & {p.name for p in rest}
    return first.name == "method" and named and signature.return_annotation == "Method"
