"""scikit-learn's embedded handwritten digits (8x8, 10 classes) with a small class-conditional GAN.

    jaxgen train --config configs/digits_gan.py --workdir runs/digits_gan

2 CPU cores (AMD EPYC) that other runs used too: 82 s training (12,000 images/s), 133 s for the
whole command. It printed, for 2,000 samples and the test half of 896 images: Frechet distance 0.928
(all samples; train-to-test floor 0.501), 1.098 (as many samples as training images), precision
0.889, recall 0.666, memorised 4.40 %, classifier agrees 99.70 %. One network evaluation a sample.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(source=dict(name="digits.digits"), batch_size=128),
            model=dict(
                generator=dict(name="gan.MLPGenerator", width=256, depth=3),
                discriminator=dict(name="gan.MLPDiscriminator", width=256, depth=3),
            ),
            method=dict(
                name="adversarial.adversarial",
                loss="non_saturating",
                head="projection",
                regularisers=(dict(name="r1", weight=0.1),),
                augmentation=dict(
                    name="differentiable", policy=("translation",), shift=0.125, fill=-1.0
                ),
                latent=dict(name="normal", size=32),
            ),
            optimizer=dict(name="adam", learning_rate=1e-3, b1=0.0, b2=0.99),
            ema=dict(half_life=(10_000,)),
            train=dict(images=1_000_000, log_every=50_000, sample_every=300_000),
            checkpoint=dict(every=500_000),
            log=dict(),
            mesh=dict(data=-1),
            sample=dict(),
            evaluate=dict(samples=2000),
        )
    )
