"""scikit-learn's embedded handwritten digits (8x8) as 4x4 tokens of 64 values, by a small VQGAN."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=64),
            model=dict(
                name="vqgan.VQGAN",
                channels=32,
                widths=(32, 64),
                blocks=1,
                attention_levels=(),
                groups=8,
            ),
            method=dict(
                name="jaxgen.tokenizers.vqgan.vqgan",
                quantiser=dict(
                    name="nearest",
                    levels=64,
                    width=8,
                    codebook="average",
                    revive=0.05,
                ),
                reconstruction="l2",
            ),
            optimizer=dict(name="adam", learning_rate=2e-3, schedule="cosine"),
            ema=dict(half_life=(5_000,)),
            train=dict(images=100_000, log_every=10_000),
            checkpoint=dict(every=50_000),
            log=dict(),
            mesh=dict(data=-1),
            evaluate=dict(),
        )
    )
