"""Your own images: a folder to pictures by one command. A config to copy and change.

    jaxgen train --config configs/own_folder.py:path/to/images --workdir runs/own

The folder holds a sub-folder of images per class, or train/ and test/ with such sub-folders, or
images alone, which are then one class. The size, the network, the batch and the budget are chosen
from the data by the tables below, and said when the run begins. After the path, with commas: the
size in pixels (32, 64, 128, 256) and `cpu`, a small network for a machine without an accelerator:

    jaxgen train --config configs/own_folder.py:path/to/images,128 --workdir runs/own
    jaxgen train --config "configs/own_folder.py:my images,32,cpu" --workdir runs/own

With a tokenizer's latents, which is how 256 pixels become cheap: train the tokenizer, encode the
images, train on the codes (three commands; the last two where there is a tokenizer already).

    jaxgen train --config configs/own_folder.py:path/to/images,256,tokenizer --workdir runs/kl
    jaxgen tokenize --workdir runs/kl --out runs/kl/codes --flips
    jaxgen train --config configs/own_folder.py:runs/kl/codes,latents --workdir runs/own

Images of three or four channels are mirrored at random; letters and digits should not be:
--config.data.flip=False. On GPUs --config.model.dtype=bfloat16 is faster. The same command with a
larger --config.train.images goes on. The budgets are where to begin and not measured optima.
"""

from pathlib import Path

import ml_collections

from jaxgen.data import codes
from jaxgen.data.survey import Survey, survey
from jaxgen.errors import invalid
from jaxgen.training.log import say

GRAMMAR = "own_folder.py:PATH[,32|64|128|256][,cpu|tokenizer], own_folder.py:CODES,latents"
KINDS = ("cpu", "tokenizer", "latents")

# By size: the U-Net's levels (attention at 16 and 8 pixels) and the images of an update.
LEVELS = {32: (1, 2, 2), 64: (1, 2, 2, 2), 128: (1, 1, 2, 2, 2), 256: (1, 1, 2, 2, 2, 2)}
BATCH = {32: 128, 64: 64, 128: 32, 256: 16}
# Larger pictures wait until somebody asks: twice the side is four times the work.
LARGEST_UNASKED = 64
# Of fewer images, a network of half the width, which learns them by heart later.
FEW_FOR_A_NETWORK = 5_000
# Of fewer, no test half and no scores: a Frechet distance wants 65 images, memorisation 100.
FEW_FOR_SCORES = 500
FEW_FOR_A_HALF = 110
# So many are decoded before training begins, so that a bad file is named then.
FEW_TO_VERIFY = 20_000


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """A path, and then, with commas between, a size and one of `KINDS`; see above."""
    path, size, kind = parsed(argument)
    if kind == "latents":
        return of_codes(path)
    seen = survey(path, option="--config own_folder.py:PATH")
    size = size or chosen(seen)
    if kind == "tokenizer":
        return of_images(path, seen, size, tokenizer(seen, size))
    return of_images(path, seen, size, small(seen, size) if kind == "cpu" else unet(seen, size))


def parsed(argument: str) -> tuple[str, int | None, str | None]:
    """(path, size, kind). Only last words that are sizes or kinds are no part of the path."""
    path, size, kind = argument, None, None
    while "," in path and not Path(path).expanduser().exists():
        rest, _, word = path.rpartition(",")
        if word in KINDS and kind is None and size is None:
            kind = word
        elif word.isdigit() and size is None:
            size = int(word)
        else:
            break
        path = rest
    if not path:
        raise invalid("--config", f"own_folder.py:{argument}", GRAMMAR)
    if size not in (None, *LEVELS):
        raise invalid("--config", f"own_folder.py:{argument}", f"{GRAMMAR}: a size that is listed")
    if kind == "latents" and size is not None:
        raise invalid("--config", f"own_folder.py:{argument}", "no size: the codes have theirs")
    return path, size, kind


def chosen(seen: Survey) -> int:
    """The largest size that the median image has, up to what is tried unasked; at least 32."""
    return max(n for n in LEVELS if n == min(LEVELS) or n <= min(seen.side, LARGEST_UNASKED))


def of_images(path: str, seen: Survey, size: int, rest: dict) -> ml_collections.ConfigDict:
    """The config, and the advice said: what the data are, and what is chosen for them."""
    source = dict(name="folder.folder", path=path, image_size=size, channels=1 if seen.grey else 3)
    source |= dict(verify=True) if seen.images <= FEW_TO_VERIFY else {}
    source |= dict(one_class=True) if seen.one_class else {}
    source |= dict(splits=seen.splits) if seen.splits is not None else {}
    labels, tokenizing = len(seen.classes) > 1, "sample" not in rest
    scored = seen.images >= FEW_FOR_SCORES
    if not tokenizing:
        rest["method"] |= dict(label_dropout=0.1 if labels else 0.0)
        rest["sample"] |= dict(guidance=1.5 if labels else 1.0)
    share = round(max(0.1, FEW_FOR_A_HALF / seen.images), 2) if scored else 0.1
    data = dict(
        source=source,
        train=seen.train,
        test=seen.test or "test",
        # A tokenizer shows what it makes of images that it does not learn from.
        holdout=share if seen.test is None and (scored or tokenizing) else 0.0,
        flip=not seen.grey,
        batch_size=rest.pop("batch_size"),
    )
    say(advice(path, seen, size, data, rest, scored))
    # Scores are in a classifier's features, which one class cannot teach.
    scores = dict(at_end=scored and labels, samples=min(2000, seen.images), guidance=(1.0,))
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=data,
            checkpoint=dict(every=rest["train"]["images"] // 10),
            log=dict(),
            mesh=dict(data=-1),
            evaluate=scores,
            classify=dict(at_end=False),
        )
        | rest
    )


def unet(seen: Survey, size: int) -> dict:
    """EDM's network and training (Karras et al. 2022), with more noise above 32 pixels (EDM2)."""
    channels = 64 if seen.images < FEW_FOR_A_NETWORK else 128
    images = min(max(200_000, 100 * seen.images), 10_000_000)
    mean, std = (-1.2, 1.2) if size == 32 else (-0.8, 1.6)
    return dict(
        model=dict(
            name="unet.UNet",
            channels=channels,
            multipliers=LEVELS[size],
            blocks=2,
            attention_sizes=(16, 8),
            dropout=0.1,
            dtype="float32",
        ),
        method=dict(
            name="diffusion.denoising",
            path=dict(name="edm", sigma_min=0.002, sigma_max=80.0),
            prediction="edm",
            times=dict(name="log_normal", mean=mean, std=std),
            weighting=dict(name="edm", sigma_data=0.5),
            sigma_data=0.5,
        ),
        optimizer=dict(name="adam", learning_rate=3e-4, warmup_images=20_000),
        batch_size=BATCH[size],
        ema=dict(half_life=(images // 20,), ramp=0.05),
        train=dict(images=images, log_every=2_000, sample_every=images // 20),
        sample=dict(solver="heun", steps=18, grid=dict(name="karras", rho=7.0)),
    )


def small(seen: Survey, size: int) -> dict:
    """A DiT of 64 patches, as `fashion_mnist.py` has it, whatever the size."""
    images = 300_000
    return dict(
        model=dict(name="dit.DiT", patch=size // 8, width=128, depth=6, heads=4),
        method=dict(
            name="diffusion.denoising",
            path=dict(name="linear"),
            prediction="velocity",
            times=dict(name="stratified"),
            weighting=dict(name="simple"),
        ),
        optimizer=dict(name="adamw", learning_rate=1e-3, b2=0.99, warmup_images=20_000),
        batch_size=64,
        ema=dict(half_life=(images // 20,), ramp=0.05),
        train=dict(images=images, log_every=2_000, sample_every=images // 20),
        sample=dict(solver="heun", steps=15),
    )


def tokenizer(seen: Survey, size: int) -> dict:
    """A KL autoencoder to 1/8 of the side and 4 channels, without adversary: sharp is another."""
    images = min(max(200_000, 50 * seen.images), 2_000_000)
    return dict(
        model=dict(name="autoencoder.AutoencoderKL", widths=(64, 128, 256, 256), blocks=1),
        method=dict(
            name="jaxgen.tokenizers.vqgan.vqgan",
            quantiser=dict(name="gaussian", kl_weight=1e-6),
        ),
        optimizer=dict(name="adam", learning_rate=2e-4, warmup_images=10_000),
        batch_size=BATCH[size],
        ema=dict(half_life=(images // 20,), ramp=0.05),
        train=dict(images=images, log_every=2_000, sample_every=images // 20),
    )


def of_codes(path: str) -> ml_collections.ConfigDict:
    """A latent DiT on what `jaxgen tokenize` wrote."""
    about = codes.read_about(Path(path).expanduser())
    if about["kind"] != "latents":
        raise invalid("--config", f"own_folder.py:{path},latents", "latents; these are tokens")
    side, count, labels = about["shape"][0], about["splits"]["train"], len(about["class_names"]) > 1
    size, patch = ("S" if count < 20_000 else "B"), (2 if side <= 32 else 4)
    images = min(max(400_000, 200 * count), 20_000_000)
    say(
        f"ADVICE {path}: {count:,} latents {'x'.join(map(str, about['shape']))} of "
        f"{len(about['class_names'])} classes: DiT-{size}/{patch}, batch 256, {images:,} images"
        + (", mirrored at random" if about["flips"] else "; not mirrored (tokenize --flips)")
    )
    return ml_collections.ConfigDict(
        dict(
            seed=0,
            data=dict(
                source=dict(name="codes.codes", path=path), batch_size=256, flip=about["flips"]
            ),
            model=dict(name="dit.DiT", size=f"{size}/{patch}", dtype="float32"),
            method=dict(
                name="diffusion.denoising",
                path=dict(name="linear"),
                prediction="velocity",
                times=dict(name="logit_normal"),
                weighting=dict(name="simple"),
                label_dropout=0.1 if labels else 0.0,
            ),
            optimizer=dict(name="adamw", learning_rate=1e-4, warmup_images=20_000),
            ema=dict(half_life=(images // 20,), ramp=0.05),
            train=dict(images=images, log_every=5_000, sample_every=images // 20),
            checkpoint=dict(every=images // 10),
            log=dict(),
            mesh=dict(data=-1),
            sample=dict(solver="heun", steps=25, guidance=1.5 if labels else 1.0),
            evaluate=dict(
                at_end=labels and count >= FEW_FOR_SCORES,
                samples=min(2000, count),
                guidance=(1.0,),
            ),
            classify=dict(at_end=False),
        )
    )


def advice(path: str, seen: Survey, size: int, data: dict, rest: dict, scored: bool) -> str:
    """What is known of the data, and what is chosen for them, in a few lines."""
    what = f"{seen.images:,} images of "
    what += "one class (no sub-folders)" if seen.one_class else f"{len(seen.classes)} classes"
    fewest, most = min(seen.counts), max(seen.counts)
    what += f" ({fewest:,} to {most:,} in each)" if most > fewest else ""
    what += f", median {seen.width}x{seen.height}" + (", grey" if seen.grey else "")
    name = rest["model"]["name"].rpartition(".")[2]
    lines = [
        f"ADVICE {path}: {what}: {size} px, {name}, batch {data['batch_size']}, "
        f"{rest['train']['images']:,} images to train on, "
        f"{'mirrored at random' if data['flip'] else 'not mirrored'}"
    ]
    larger = [n for n in LEVELS if size < n <= seen.side]
    if larger:
        lines.append(f"large enough for {larger[-1]} px: own_folder.py:PATH,{larger[-1]}")
    if seen.side < size:
        lines.append(f"the median image is smaller than {size} px and will be enlarged")
    if seen.side >= 8 * size:
        lines.append(f"decoded anew at every visit: jaxgen data --out DIR keeps them at {size} px")
    if seen.unread:
        said = f"{seen.unread} of those looked at have no header that Pillow reads"
        lines.append(f"{said}: --config.data.source.on_error=skip leaves bad files out")
    if most > 10 * max(1, fewest):
        few = seen.classes[seen.counts.index(fewest)]
        lines.append(f"classes are unequal: {few!r} has {fewest:,}; its samples will be alike")
    if data["holdout"]:
        held = f"{data['holdout']:.0%} of every class"
        lines.append(f"no test half: {held} is held out of training")
    if not scored:
        lines.append(f"fewer than {FEW_FOR_SCORES} images: no scores at the end; expect copies")
    elif len(seen.classes) == 1:
        lines.append("of one class: no scores at the end (jaxgen evaluate --features ...)")
    return "\n  ".join(lines)
