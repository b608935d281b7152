"""scikit-learn's digits: an autoencoder with a light KL, then `jaxgen tokenize` for its latents.

jaxgen train    --config configs/digits_kl.py --workdir runs/digits_kl
jaxgen tokenize --workdir runs/digits_kl --out runs/digits_kl/codes
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """8x8 images to 2x2 latents of 4 channels."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=64),
            model=dict(
                name="autoencoder.AutoencoderKL",
                latent_channels=4,
                widths=(16, 32, 32),
                blocks=1,
                groups=8,
            ),
            method=dict(
                name="jaxgen.tokenizers.vqgan.vqgan",
                quantiser=dict(name="gaussian", kl_weight=1e-4),
            ),
            optimizer=dict(
                name="adamw", learning_rate=2e-3, schedule="cosine", warmup_images=6_400
            ),
            ema=dict(half_life=(10_000,)),
            train=dict(images=60_000, log_every=6_400, sample_every=0),
            checkpoint=dict(),
            log=dict(),
            mesh=dict(data=-1),
        )
    )
