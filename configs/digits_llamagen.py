"""scikit-learn's embedded handwritten digits (8x8, 17 levels), pixel by pixel, by a Llama.

jaxgen train --config configs/digits_llamagen.py --workdir runs/digits_llamagen
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """Minutes on 2 cores, scores included."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=64),
            model=dict(name="llama.Llama", width=64, depth=4, heads=4, multiple=32, dropout=0.15),
            method=dict(name="autoregressive.autoregressive", label_dropout=0.1),
            optimizer=dict(
                name="adamw",
                learning_rate=4e-3,
                b2=0.98,
                weight_decay=0.1,
                schedule="cosine",
                warmup_images=5_000,
                clip_norm=1.0,
            ),
            ema=dict(half_life=(10_000,)),
            train=dict(images=45_000, log_every=5_000),
            checkpoint=dict(),
            log=dict(),
            mesh=dict(data=-1),
            sample=dict(temperature=1.0, guidance=1.5),
            evaluate=dict(samples=2000, guidance=(1.0, 1.5)),
            classify=dict(draws=1),
            likelihood=dict(at_end=True),
        )
    )
