"""CIFAR-10, class-conditional EDM (Karras et al. 2022): DDPM++ at 55.7M parameters.

    jaxgen train --config configs/cifar10_edm.py --workdir runs/cifar10

The data: `tfds build cifar10` with --file_format=array_record beforehand. The paper's result is FID
1.79 at 35 network calls, after 200M images on 8 V100s for about two days, with its non-leaking
augmentation; this config has not been run here at full length and has no augmentation but flips.
"""

import ml_collections

NETWORKS = dict(ddpmpp="unet.UNet", ncsnpp="unet.NCSNpp")


def get_config(network: str = "ddpmpp") -> ml_collections.ConfigDict:
    """`ddpmpp` or `ncsnpp`."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(
                source=dict(name="tfds.tfds", dataset="cifar10"),
                holds=dict(shape=(32, 32, 3), num_classes=10, levels=256),
                batch_size=512,
                flip=True,
                workers=8,
            ),
            model=dict(name=NETWORKS[network], dropout=0.13, dtype="float32"),
            method=dict(
                name="diffusion.denoising",
                path=dict(name="edm", sigma_min=0.002, sigma_max=80.0),
                prediction="edm",
                times=dict(name="log_normal", mean=-1.2, std=1.2),
                weighting=dict(name="edm", sigma_data=0.5),
                sigma_data=0.5,
                label_dropout=0.0,
            ),
            optimizer=dict(
                name="adam", learning_rate=1e-3, warmup_images=10_000_000, clip_norm=None
            ),
            ema=dict(half_life=(500_000,), ramp=0.05),
            train=dict(images=200_000_000, log_every=50_000, sample_every=2_000_000),
            checkpoint=dict(every=2_000_000, keep_last=2, keep_every=50_000_000),
            log=dict(),
            mesh=dict(data=-1, fsdp=1),
            sample=dict(solver="heun", steps=18, grid=dict(name="karras", rho=7.0), guidance=1.0),
            evaluate=dict(samples=50_000, guidance=(1.0,), batch_size=512),
            classify=dict(at_end=False, draws=64),
        )
    )
