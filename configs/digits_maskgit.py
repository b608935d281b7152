"""Digits as 64 tokens of 17 levels of ink, by a masked transformer (MaskGIT).

jaxgen train --config configs/digits_maskgit.py --workdir runs/digits_maskgit
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Minutes on 2 cores."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=128),
            # Patches of 2 x 2 tokens: a quarter of the positions.
            model=dict(name="bert.Bert", patch=2, width=96, depth=4, heads=4),
            method=dict(
                name="discrete.maskgit",
                schedule="cosine",
                label_smoothing=0.0,
                label_dropout=0.1,
            ),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3,
                b2=0.98,
                weight_decay=0.03,
                schedule="cosine",
                warmup_images=10_000,
                clip_norm=1.0,
            ),
            ema=dict(half_life=(10_000,)),
            train=dict(images=100_000, log_every=5_000),
            checkpoint=dict(),
            log=dict(),
            mesh=dict(data=-1),
            sample=dict(solver="confidence", steps=32, choice_temperature=10.0, guidance=1.5),
            evaluate=dict(samples=1000, guidance=(1.0, 1.5)),
            classify=dict(draws=16, limit=200),
            likelihood=dict(at_end=True, draws=16),
        )
    )
