"""Every family at a size that compiles in seconds: a config and what makes it narrow."""

from jaxgen import config as configs
from jaxgen.run.setup import TOP, Setup, set_up
from tests.base_run import told

DESCENT = "optimizer=" + repr(dict(name="sgd", learning_rate=0.02))
BERT = "model=" + repr(dict(name="bert.Bert", patch=2, width=32, depth=1, heads=2))
BITS = "data.source=" + repr(dict(name="bars_and_stripes.bars_and_stripes", size=4))
SMALL = dict(widths=(8, 16), blocks=1, groups=4)
ADVERSARY = dict(discriminator=dict(name="vqgan.PatchGAN", width=8, depth=1))
VQ = dict(autoencoder=dict(name="vqgan.VQGAN", channels=8, attention_levels=(), **SMALL))
KL = dict(autoencoder=dict(name="autoencoder.AutoencoderKL", latent_channels=2, **SMALL))

ALIGNED = dict(name="alignment", layer=1, encoder="flat", width=16)

MLP = "model=" + repr(dict(name="mlp.MLP", width=24, depth=1))
TOLD = MLP.replace("'depth': 1", "'depth': 1, 'conditions': (('w', 'number'),)")
MATCHING = dict(name="distill.matching", divergence="jensen_shannon", calls=2, adversarial=0.1)
SHORT = dict(solver="euler", steps=2)
DREAMBOOTH = dict(name="tune.dreambooth", parents={"3": "8"}, sample=SHORT)
TEACHER = "networks={'teacher': BASE}"
"""BASE: the workdir of `tests.base_run`; GOAL: a file there."""
LIKENESS = "reward=dict(name='likeness', file=GOAL)"
DRAWN = "sample=dict(solver='ancestral.ddpm', steps=2)"
GRPO = f"wrap=[dict(name='tune.grpo.grpo', group=4, {DRAWN}, {LIKENESS})]"

CARRIED = [
    "method.augmentation=" + repr(dict(name="adaptive", images=256, first=0.5)),
    "method.regularisers=" + repr([dict(name="r1", weight=0.1, every=2), dict(name="lecam")]),
]
"""What a GAN's state carries: ADA's p, LeCam's averages, and when R1 is due."""

FAMILIES: dict[str, tuple[str, list[str]]] = {
    "diffusion": ("tests/tiny.py", []),
    "repa": ("tests/tiny.py", ["method.terms=" + repr([ALIGNED])]),
    "lora": ("tests/tiny.py", ["wrap=" + repr([dict(name="tune.lora", rank=2)])]),
    "uvit": (
        "tests/tiny.py",
        ["model=" + repr(dict(name="uvit.UViT", patch=4, width=16, depth=3, heads=2))],
    ),
    "guided": (
        "tests/tiny.py",
        [TOLD, TEACHER, "wrap=" + repr([dict(name="distill.guidance.guided", high=2.0)])],
    ),
    "progressive": (
        "tests/tiny.py",
        [MLP, "wrap=" + repr([dict(name="distill.guidance.progressive", steps=4, images=64)])],
    ),
    "matching": (
        "tests/tiny.py",
        [MLP, TEACHER, "sample={}", "wrap=" + repr([MATCHING])],
    ),
    "forget": (
        "tests/tiny.py",
        [MLP, TEACHER, "wrap=" + repr([dict(name="unlearn.forget", classes=(3, 4))])],
    ),
    "grpo": ("tests/tiny.py", [MLP, TEACHER, GRPO]),
    "dreambooth": (
        "tests/tiny.py",
        [MLP, TEACHER, "wrap=" + repr([DREAMBOOTH])],
    ),
    "truncated": (
        "tests/tiny.py",
        [MLP, TEACHER, "wrap=" + repr([dict(name="tune.truncated.truncated")])],
    ),
    "jem": ("configs/digits_jem.py", ["model.width=16", "model.depth=1", "method.buffer=64"]),
    "llamagen": (
        "configs/digits_llamagen.py",
        ["model.width=32", "model.depth=1", "model.heads=2"],
    ),
    "pixelcnn": ("configs/digits_pixelcnn.py", ["model.width=16", "model.depth=1"]),
    "maskgit": ("configs/digits_maskgit.py", [BERT]),
    "maskbit": (
        "configs/digits_maskgit.py",
        [BITS, "method.name=discrete.maskbit", BERT, "sample.steps=8"],
    ),
    "gan": (
        "configs/digits_gan.py",
        ["model.generator.width=32", "model.discriminator.width=32", *CARRIED],
    ),
    "tarflow": (
        "configs/digits_tarflow.py",
        ["model.width=32", "model.flows=2", "model.layers=1", "model.dropout=0.0"],
    ),
    "glow": ("configs/digits_glow.py", ["model.steps=1", "model.hidden=16"]),
    "cvae": ("configs/digits_vae.py", ["model.hidden=(32,)", "model.dropout=0.0"]),
    "iwae": ("configs/digits_vae.py:iwae", ["model.hidden=((32,),(16,))", "model.dropout=0.0"]),
    "vqgan": ("configs/digits_vqgan.py", ["model=" + repr(VQ | ADVERSARY)]),
    "kl": ("configs/digits_kl.py", ["model=" + repr(KL | ADVERSARY)]),
    "gflownet": (
        "configs/hypergrid.py",
        ["model.width=32", "method.replay_size=64", "method.replay_priority=1.0"],
    ),
}
TOKENIZERS = ("vqgan", "kl")


def built(name: str, *overrides: str) -> Setup:
    """The parts of a family's tiny run, batches of 32."""
    config, narrow = FAMILIES[name]
    loaded = configs.load(config)
    configs.override(loaded, [*told(narrow), "data.batch_size=32", *overrides], TOP)
    return set_up(loaded)
