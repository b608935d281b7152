"""How well a tokenizer's reconstructions keep the images: PSNR, SSIM, mean squared error, LPIPS."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from jaxgen.metrics.extractors.lpips import LPIPS
from jaxgen.metrics.sets.quantise import quantise

RANGE = 255.0
PERCEPTUAL = "How different images look to a network, in place, as people judged differences."


def psnr(real: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB, [N], of images uint8 [N, H, W, C]; equal images: inf."""
    error = (real.astype(np.float64) - made.astype(np.float64)) ** 2
    with np.errstate(divide="ignore"):
        return 10 * np.log10(RANGE**2 / error.reshape(len(real), -1).mean(1))


def ssim(real: np.ndarray, made: np.ndarray, *, sigma: float = 1.5) -> np.ndarray:
    """Structural similarity [N] of images uint8 [N, H, W, C] (Wang et al. 2004, eq. 13).

    Gaussian windows of standard deviation `sigma`, 11 pixels wide, reflected at the border, moments
    without the correction for sample size; the mean over pixels and channels.
    """
    x, y = real.astype(np.float64), made.astype(np.float64)
    spread = (0, sigma, sigma, 0)

    def blur(a: np.ndarray) -> np.ndarray:
        return gaussian_filter(a, spread, truncate=5 / sigma)

    mx, my = blur(x), blur(y)
    vx, vy, both = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    value = ((2 * mx * my + c1) * (2 * both + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return value.reshape(len(x), -1).mean(1)


def reconstruction(
    made: np.ndarray, real: np.ndarray, perceptual: LPIPS | None = None
) -> dict[str, dict[str, Any]]:
    """Scores of reconstructions against their originals, both [N, H, W, C], bytes or [-1, 1].

    perceptual: for LPIPS, too, the mean over images. PSNR is the mean over images of each one's,
    over those that are not perfect.
    """
    a, b = quantise(real), quantise(made)
    error = ((a.astype(np.float64) - b) ** 2).mean() / (RANGE / 2) ** 2
    ratios = psnr(a, b)
    whole = np.isfinite(ratios)
    mean = float(ratios[whole].mean()) if whole.any() else float("inf")
    results: dict[str, dict[str, Any]] = {}
    if perceptual is not None:
        apart = float(perceptual.distances(b, a).astype(np.float64).mean())
        about = {"digest": perceptual.digest, "samples": len(a), "says": PERCEPTUAL}
        results[perceptual.name] = {"value": apart, "floor": None, "better": "lower", **about}
    found: dict[str, tuple[float, str, str]] = {
        "psnr": (
            mean,
            "higher",
            "How small the error of a pixel is, in dB; 20 more: a tenth of it.",
        ),
        "ssim": (
            float(ssim(a, b).mean()),
            "higher",
            "How alike images are in brightness, contrast and structure; 1 where they are equal.",
        ),
        "mse": (float(error), "lower", "The mean squared error of a pixel in [-1, 1]."),
    }
    for name, (value, better, says) in found.items():
        results[name] = {"value": value, "floor": None, "better": better, "says": says}
    results["psnr"]["perfect"] = int((~whole).sum())
    return results
