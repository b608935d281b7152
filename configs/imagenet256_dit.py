"""ImageNet at 256x256, latent DiT (Peebles & Xie 2023): sizes S/B/L/XL, patches 2/4/8.

    jaxgen train --config configs/imagenet256_dit.py:XL/2 --workdir runs/dit

The data: moments of Stable Diffusion's autoencoder (scale 0.18215), precomputed with flips. The
paper's results after 400K steps of 256: FID 68.4 (S/2), 43.5 (B/2), 23.3 (L/2), 19.5 (XL/2) without
guidance; XL/2 after 7M steps with guidance 1.5 of three of the four channels: 2.27. This config has
not been run here at full length. Workdirs of before the path was `discrete` keep their own config;
to go on with one, pass what it has (path vp_linear, times uniform, model.time_scale=1000).
"""

import ml_collections


def get_config(variant: str = "XL/2") -> ml_collections.ConfigDict:
    """A variant: a size and a patch, as in `B/4`."""
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(
                source=dict(name="latents.latents", path="data/imagenet256/{split}", scale=0.18215),
                holds=dict(shape=(32, 32, 4), num_classes=1000, levels=None),
                batch_size=256,
                test="val",
                flip=True,
                workers=8,
            ),
            # Told the index of the noise level, 0 to 999, as it is.
            model=dict(
                name="dit.DiT", size=variant, time_scale=1.0, dtype="bfloat16", remat="dots"
            ),
            method=dict(
                name="diffusion.denoising",
                path=dict(name="discrete", betas="linear", levels=1000),
                prediction="eps",
                times=dict(name="levels"),
                weighting=dict(name="simple"),
                learned_variance=True,
                label_dropout=0.1,
            ),
            optimizer=dict(name="adamw", learning_rate=1e-4, weight_decay=0.0),
            # The paper's decay of 0.9999 a step of 256: a half-life of 1.77 million images.
            ema=dict(half_life=(1_774_000,), ramp=None),
            train=dict(images=7_000_000 * 256, log_every=25_600, sample_every=5_000_000),
            checkpoint=dict(every=2_560_000, keep_last=2, keep_every=128_000_000),
            log=dict(),
            mesh=dict(data=-1, fsdp=1),
            # The published scores guide three of the four latent channels.
            sample=dict(
                solver="ddpm",
                steps=250,
                grid="respaced",
                guidance=[dict(name="cfg.cfg", weight=1.5, channels=3)],
            ),
            evaluate=dict(samples=50_000, batch_size=512),  # at the guidance of `sample`
            classify=dict(at_end=False, draws=64),
        )
    )
