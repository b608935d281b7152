"""Data: sources (one module each) and the pipeline from a source to batches on the devices.

source = jaxgen.data.digits.digits(split="train")
for batch in to_device(batches(source, batch_size=256, seed=0), sharding):
    ...  # normalise(batch) inside the jitted step
"""

from jaxgen.data.device import local_rows, normalise, to_device, to_global, to_host
from jaxgen.data.pipeline import Batches, Streamed, at_hand, batches, whole
from jaxgen.data.source import Coding, Source, Target

__all__ = [
    "Batches",
    "Coding",
    "Source",
    "Streamed",
    "Target",
    "at_hand",
    "batches",
    "local_rows",
    "normalise",
    "to_device",
    "to_global",
    "to_host",
    "whole",
]
