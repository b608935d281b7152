"""scikit-learn's digits with a Glow of two levels.

jaxgen train --config configs/digits_glow.py --workdir runs/digits_glow
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """A small Glow: 2 levels of 6 steps."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=128),
            model=dict(name="glow.Glow", scales=2, steps=6, hidden=64, label_couplings=True),
            method=dict(name="flows.flow", noise="uniform"),
            optimizer=dict(
                name="adamw",
                learning_rate=2e-3,
                weight_decay=1e-2,
                schedule="cosine",
                warmup_images=25_000,
                clip_norm=1.0,
            ),
            ema=dict(half_life=(30_000,)),
            train=dict(images=100_000, log_every=10_000, sample_every=0),
            checkpoint=dict(every=100_000),
            log=dict(),
            mesh=dict(data=-1),
            sample=dict(temperature=0.8),
            evaluate=dict(samples=2000),
            classify=dict(),
            likelihood=dict(at_end=True, batch_size=128),
        )
    )
