"""Peak arithmetic of devices, for model FLOPs utilisation (MFU).

MFU = 6 x (forward multiply-adds of one image) x images per second / peak: 2 floating-point
operations a multiply-add, and a training step counted as three forward passes.
"""

from __future__ import annotations

from typing import Any

# Dense bfloat16 peak, FLOP/s per JAX device, from the makers' data sheets.
PEAKS = {
    "TPU v2": 22.5e12,  # a JAX device is one core, half a chip, on v2 and v3
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device: Any) -> float | None:
    """Peak FLOP/s of a JAX device, or None where it is not known (CPUs)."""
    kind = device.device_kind
    fits = [name for name in PEAKS if kind.startswith(name)]
    return PEAKS[max(fits, key=len)] if fits else None
