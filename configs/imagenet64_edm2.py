"""ImageNet at 64x64 in pixels, EDM2 (Karras et al. 2024): magnitude-preserving U-Net, XS to XXL.

    jaxgen train --config configs/imagenet64_edm2.py:S --workdir runs/imagenet64

The data: `data/imagenet/train` and `data/imagenet/val`, a folder of images per class in each.
The paper's results for ImageNet-64: FID 1.58 (S), 1.43 (M), 1.33 (L), 1.33 (XL); this config
has not been run here at full length.
"""

import ml_collections

# The paper's table 6 for S to XL at 64x64; XS and XXL, which it does not train there, are ours.
LEARNING_RATE = dict(XS=0.0100, S=0.0100, M=0.0090, L=0.0080, XL=0.0070, XXL=0.0065)
DROPOUT = dict(XS=0.0, S=0.0, M=0.10, L=0.10, XL=0.10, XXL=0.10)


def get_config(size: str = "S") -> ml_collections.ConfigDict:
    """A size of the paper: XS, S, M, L, XL, XXL."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(
                source=dict(name="folder.folder", path="data/imagenet", image_size=64),
                holds=dict(shape=(64, 64, 3), num_classes=1000, levels=256),
                batch_size=2048,
                test="val",
                flip=False,
                workers=16,
            ),
            model=dict(name="edm2.EDM2", size=size, dropout=DROPOUT[size], dtype="bfloat16"),
            method=dict(
                name="diffusion.denoising",
                path=dict(name="edm", sigma_min=0.002, sigma_max=80.0),
                prediction="edm",
                times=dict(name="log_normal", mean=-0.8, std=1.6),
                weighting=dict(name="edm", sigma_data=0.5),
                sigma_data=0.5,
                terms=("uncertainty",),
                label_dropout=0.1,
            ),
            optimizer=dict(
                name="adam",
                learning_rate=LEARNING_RATE[size],
                b2=0.99,
                schedule="inverse_sqrt",
                warmup_images=10_000_000,
                decay_images=35_000 * 2048,
            ),
            ema=dict(power_std=(0.05, 0.10)),
            train=dict(images=2**30, log_every=200_000, sample_every=10_000_000),
            checkpoint=dict(every=4_000_000, snapshot_every=8 * 2**20),
            log=dict(),
            mesh=dict(data=-1, fsdp=1),
            sample=dict(solver="heun", steps=32, grid=dict(name="karras", rho=7.0), guidance=1.0),
            evaluate=dict(samples=50_000, guidance=(1.0,), batch_size=1024),
            classify=dict(at_end=False, draws=64),
        )
    )
