"""Order and chance: functions of (seed, position) alone, so that nothing needs to be saved.

A position counts the images of the endless training stream: position p is example
`permutation(seed, p // N, N)[p % N]`. Only NumPy's bit generators are used raw, since their streams
(unlike those of `Generator.permutation`) are promised never to change.
"""

from __future__ import annotations

import functools

import numpy as np

_FLIP_BLOCK = 4096
# Streams of one seed that must not coincide.
_ORDER, _FLIPS, _NOISE, _BLOCKS, _APART = 0, 1, 2, 3, 4


# A stream is in two epochs at most at a time; a union has as many streams as sources.
@functools.lru_cache(maxsize=8)
def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order int64 [size] in which epoch number `epoch` sees the examples; read-only."""
    bits = np.random.Philox(np.random.SeedSequence([seed, _ORDER, epoch])).random_raw(size)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False
    return order


def examples(seed: int, positions: np.ndarray, size: int) -> np.ndarray:
    """Examples int64 [n] in [0, size) at `positions` int64 [n] of the stream, any epochs."""
    epochs, places = np.divmod(positions, size)
    found = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        found[chosen] = permutation(seed, int(epoch), size)[places[chosen]]
    return found


def permutations(seed: int, chunk: int, count: int, size: int) -> np.ndarray:
    """`count` permutations of `size` places, int64 [count, size], for chunk number `chunk`."""
    words = np.random.SeedSequence([seed, _BLOCKS, chunk])
    bits = np.random.Philox(words).random_raw(count * size).reshape(count, size)
    return np.argsort(bits, axis=1, kind="stable")


def apart(seed: int, number: int) -> int:
    """A seed for part `number` of several that one seed stands for."""
    return int(np.random.SeedSequence([seed, _APART, number]).generate_state(1, np.uint64)[0])


@functools.lru_cache(maxsize=16)
def _coins(seed: int, block: int) -> np.ndarray:
    words = np.random.SeedSequence([seed, _FLIPS, block])
    return (np.random.Philox(words).random_raw(_FLIP_BLOCK) >> np.uint64(63)).astype(bool)


def flips(seed: int, positions: np.ndarray) -> np.ndarray:
    """A fair coin for each position: bool [n]."""
    blocks, places = np.divmod(positions, _FLIP_BLOCK)
    found = np.empty(positions.shape, bool)
    for block in np.unique(blocks):
        chosen = blocks == block
        found[chosen] = _coins(seed, int(block))[places[chosen]]
    return found


def noise(seed: int, positions: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Independent N(0, 1) for each position: float32 [n, *shape]."""
    key = np.random.SeedSequence([seed, _NOISE]).generate_state(2, np.uint64)
    found = np.empty((len(positions), *shape), np.float32)
    for row, position in zip(found, positions.tolist(), strict=True):
        # Philox counts upwards from the first word; the third leaves each position 2^128 draws.
        chance = np.random.Philox(key=key, counter=[0, 0, position, 0])
        np.random.Generator(chance).standard_normal(dtype=np.float32, out=row)
    return found
