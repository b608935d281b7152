"""A config that compiles in seconds: a one-block DiT on the digits. Not a model to look at."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            seed=3,
            data=dict(source=dict(name="digits.digits"), batch_size=16),
            model=dict(name="dit.DiT", patch=4, width=16, depth=1, heads=2),
            method=dict(name="diffusion.denoising", times="stratified"),
            optimizer=dict(name="adamw", learning_rate=3e-3, warmup_images=160),
            ema=dict(half_life=(500,), power_std=(0.05, 0.1)),
            train=dict(images=6400, log_every=320, sample_every=0, preview_per_label=2),
            checkpoint=dict(every=640, snapshot_every=1280),
            log=dict(tensorboard=False),
            mesh=dict(data=-1),
            sample=dict(solver="euler", steps=3, guidance=1.5),
            evaluate=dict(at_end=False, samples=200, batch_size=40),
            classify=dict(at_end=False, draws=4, limit=40),
        )
    )
