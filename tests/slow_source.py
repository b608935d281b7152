"""The digits, read slowly by process 1 of a run."""

import dataclasses
import time

import jax

from jaxgen.data import digits as real
from jaxgen.data.source import ArraySource

SECONDS = 0.05


class Slow(ArraySource):
    def draw(self, *args, **kwargs):
        time.sleep(SECONDS * jax.process_index())
        return super().draw(*args, **kwargs)


def digits(split: str = "train") -> Slow:
    source = real.digits(split)
    return Slow(**{f.name: getattr(source, f.name) for f in dataclasses.fields(source)})
