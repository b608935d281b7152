"""scikit-learn's embedded handwritten digits (8x8, 10 classes) with a small U-ViT.

jaxgen train --config configs/digits_uvit.py --workdir runs/digits_uvit
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """As configs/digits.py, but for the network, a lower rate and fewer images."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=128),
            model=dict(name="uvit.UViT", patch=2, width=96, depth=5, heads=4),
            method=dict(
                name="diffusion.denoising",
                path=dict(name="linear"),
                prediction="velocity",
                times=dict(name="logit_normal"),
                weighting=dict(name="simple"),
                label_dropout=0.1,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=1e-3,
                b2=0.99,
                schedule="cosine",
                warmup_images=25_000,
            ),
            ema=dict(half_life=(30_000,)),
            train=dict(images=300_000, log_every=5_000, sample_every=100_000),
            checkpoint=dict(every=100_000),
            log=dict(),
            mesh=dict(data=-1),
            sample=dict(solver="heun", steps=10, guidance=2.0),
            evaluate=dict(samples=2000, guidance=(1.0, 2.0)),
            classify=dict(draws=16),
        )
    )
