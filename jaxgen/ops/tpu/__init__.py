"""Pallas kernels for TPU: `fused`, `single`, `flash`, on the arithmetic of `head`."""
