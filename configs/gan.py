"""scikit-learn's digits (8x8) with any combination of the adversarial method's pieces.

    jaxgen train --config configs/gan.py:BACKBONE-HEAD-LOSS-REG-AUG --workdir runs/gan

For example `mlp-pd-ns-r1-diffaug` (the default), `sn_conv-adc-hinge-none-ada`,
`dcgan-ac-ls-fm-none`. The names are below; several regularisers are written r1+lecam. What means
nothing together is refused with the reason: slopes under batch norm, Wasserstein without a bound, a
consistency without an augmentation, smoothing of a loss that has no target.
"""

import ml_collections

from jaxgen.errors import invalid, unknown

MLP, CONV, DCGAN = ("gan.MLP", 256), ("gan.Conv", 16), ("dcgan.", 64)
BACKBONES = {
    "mlp": (MLP, {}),
    "sn_mlp": (MLP, dict(spectral=True)),
    "conv": (CONV, {}),
    "sn_conv": (CONV, dict(spectral=True)),
    "dcgan": (DCGAN, {}),
    "sn_dcgan": (DCGAN, dict(spectral=True, batch_norm=False)),
}
HEADS = {
    "none": "unconditional",
    "pd": "projection",
    "concat": "concatenation",
    "san": "normalised",
    "ac": "auxiliary",
    "tac": "twin_auxiliary",
    "adc": "discriminative",
    "2c": "contrastive",
    "d2dce": "data_to_data",
    "mh": "multi_hinge",
    "md": "several",
}
LOSSES = {
    "minimax": "saturating",
    "ns": "non_saturating",
    "logistic": "non_saturating",
    "ls": "least_squares",
    "hinge": "hinge",
    "wgan": "wasserstein",
    "mh": "multi_hinge",
}
SMOOTHED = ("minimax", "ns", "logistic", "ls")
REGULARISERS = {
    "none": {},
    "gp": dict(name="gradient_penalty"),
    "maxgp": dict(name="max_gradient_penalty"),
    "dragan": dict(name="dragan"),
    "r1": dict(name="r1", weight=0.1),
    "lazy_r1": dict(name="r1", weight=0.1, every=16),
    "r2": dict(name="r2", weight=0.1),
    "r1r2": dict(name="zero_centred", weight=0.1),
    "cr": dict(name="consistency"),
    "bcr": dict(name="balanced_consistency"),
    "zcr": dict(name="latent_consistency"),
    "lecam": dict(name="lecam"),
    "ortho": dict(name="orthogonal"),
    "clip": dict(name="clip", bound=0.05),
    "topk": dict(name="top_k"),
    "logan": dict(name="latent_optimisation"),
    "fm": dict(name="feature_matching"),
    "mbdisc": dict(name="minibatch_discrimination"),
    "mbstd": dict(name="minibatch_deviation"),
    "hist": dict(name="historical_averaging", weight=1e-3),
    "smooth": {},
}
SHIFTED = dict(policy=("translation",), shift=0.125, fill=-1.0)
AUGMENTATIONS = {
    "none": None,
    "diffaug": dict(name="differentiable", **SHIFTED),
    "cutout": dict(name="differentiable", policy=("cutout",), hole=0.25, fill=-1.0),
    "ada": dict(name="adaptive", images=200_000, **SHIFTED),
    "apa": dict(name="pseudo", images=200_000),
}
AXES = (BACKBONES, HEADS, LOSSES, REGULARISERS, AUGMENTATIONS)


def get_config(combination: str = "mlp-pd-ns-r1-diffaug") -> ml_collections.ConfigDict:
    """BACKBONE-HEAD-LOSS-REG-AUG, REG perhaps several joined by +."""
    names = combination.split("-")
    if len(names) != len(AXES):
        raise invalid("configs/gan.py", combination, "BACKBONE-HEAD-LOSS-REG-AUG")
    for given, axis in zip(names, AXES, strict=True):
        for name in given.split("+") if axis is REGULARISERS else (given,):
            if name not in axis:
                raise unknown("configs/gan.py", name, axis)
    backbone, head, loss, rules, augmentation = names
    (family, width), options = BACKBONES[backbone]
    game = dict(name=LOSSES[loss])
    if "smooth" in rules.split("+"):
        if loss not in SMOOTHED:
            raise invalid("configs/gan.py", f"smooth with {loss}", "a loss with a target for real "
                          f"images: {', '.join(SMOOTHED)}")  # fmt: skip
        game["smoothing"] = 0.1
    method = dict(
        name="adversarial.adversarial",
        loss=game,
        head=HEADS[head],
        regularisers=tuple(r for r in map(REGULARISERS.get, rules.split("+")) if r),
        latent=dict(name="normal", size=32),
    )
    if AUGMENTATIONS[augmentation]:
        method["augmentation"] = AUGMENTATIONS[augmentation]
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=128),
            model=dict(
                generator=dict(name=f"{family}Generator", width=width),
                discriminator=dict(name=f"{family}Discriminator", width=width, **options),
            ),
            method=method,
            optimizer=dict(name="adam", learning_rate=1e-3, b1=0.0, b2=0.99),
            ema=dict(half_life=(10_000,)),
            train=dict(images=1_000_000, log_every=50_000, sample_every=300_000),
            checkpoint=dict(every=500_000),
            log=dict(),
            mesh=dict(data=-1),
            sample=dict(),
            evaluate=dict(samples=2000),
        )
    )
