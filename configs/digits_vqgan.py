"""scikit-learn's embedded handwritten digits (8x8) as 4x4 tokens of 64 values, by a small VQGAN.

    jaxgen train --config configs/digits_vqgan.py --workdir runs/digits_vqgan

2 CPU cores (AMD EPYC) that other runs used too: 43 s training, 150 s for the whole command. It
printed, for the reconstructed test half of 896 images: PSNR 25.5 dB, SSIM 0.985, Frechet distance
0.098, classifier agrees 98.66 % (with the originals 99.33 %); all 64 codes in use, perplexity 57.
No adversary: at this size the squared error alone keeps the strokes.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=64),
            model=dict(
                name="vqgan.VQGAN",
                channels=16,
                widths=(16, 32),
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
            optimizer=dict(name="adam", learning_rate=4e-3, schedule="cosine"),
            ema=dict(half_life=(5_000,)),
            train=dict(images=60_000, log_every=5_000),
            checkpoint=dict(every=20_000),
            log=dict(),
            mesh=dict(data=-1),
            evaluate=dict(),
        )
    )
