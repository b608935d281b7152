"""A config that compiles in seconds: a one-block Llama on the digits. Not a model to look at."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            seed=3,
            data=dict(source=dict(name="digits.digits"), batch_size=16),
            model=dict(name="llama.Llama", width=64, depth=1, heads=2, multiple=32),
            method=dict(name="autoregressive.autoregressive"),
            optimizer=dict(name="adamw", learning_rate=3e-3),
            ema=dict(half_life=(500,)),
            train=dict(images=1600, log_every=320),
            log=dict(tensorboard=False),
            sample=dict(top_p=0.9, guidance=1.5),
            evaluate=dict(at_end=False, samples=40, batch_size=40),
            classify=dict(at_end=False, draws=1, limit=40),
            likelihood=dict(limit=40),
        )
    )
