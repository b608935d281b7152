"""Bit strings near a set of modes (Malkin et al. 2022, section 5.3)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.environment import Environment, one_hot
from jaxgen.errors import invalid

BLOCKS = ("00000000", "11111111", "11110000", "00001111", "00111100")
"""What the modes are put together from, as in the paper."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BitSequences(Environment):
    """Strings of `length` bits, appended `word` at a time: a tree, so there is one way back.

    A state is its words, -1 where there is none yet. ln R = -beta min_m hamming(x, modes[m]).
    """

    length: int
    word: int
    modes: np.ndarray
    beta: float

    @property
    def words(self) -> int:
        """Words in a whole string."""
        return self.length // self.word

    @property
    def _values(self) -> int:
        return 2**self.word

    def root(self) -> np.ndarray:
        """No word."""
        return np.full(self.words, -1, np.int32)

    def _filled(self, state: jax.Array) -> jax.Array:
        return (state >= 0).sum(-1)

    def allowed(self, state: jax.Array) -> jax.Array:
        """Any word until the string is whole, then stop."""
        whole = (self._filled(state) == self.words)[..., None]
        more = jnp.broadcast_to(~whole, (*whole.shape[:-1], self._values))
        return jnp.concatenate([more, whole], -1)

    def parents(self, state: jax.Array) -> jax.Array:
        """Without its last word."""
        return (self._filled(state) > 0)[..., None]

    def step(self, state: jax.Array, action: jax.Array) -> jax.Array:
        """The next word is `action`."""
        here = (jnp.arange(self.words) == self._filled(state)[..., None]) & (action != self.stop)[
            ..., None
        ]
        return jnp.where(here, action[..., None].astype(jnp.int32), state)

    def undo(self, state: jax.Array, back: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Without the last word, and that word."""
        del back
        here = jnp.arange(self.words) == self._filled(state)[..., None] - 1
        return jnp.where(here, -1, state), jnp.where(here, state, 0).sum(-1)

    def back(self, action: jax.Array) -> jax.Array:
        """The only way."""
        return jnp.zeros_like(action)

    def sample(self, state: jax.Array) -> jax.Array:
        """The bits [..., length], the first of a word its highest; 0 where there is none yet."""
        shifts = jnp.arange(self.word)[::-1]
        bits = (jnp.maximum(state, 0)[..., None] >> shifts) & 1
        return bits.reshape(*state.shape[:-1], self.length).astype(jnp.int32)

    def log_reward(self, state: jax.Array) -> jax.Array:
        """-beta times the distance to the nearest mode."""
        return -self.beta * self._distance(state, jnp.ones(self.length)).min(-1)

    def potential(self, state: jax.Array) -> jax.Array:
        """The same over the bits that are there."""
        known = jnp.repeat(state >= 0, self.word, axis=-1)
        return -self.beta * self._distance(state, known).min(-1)

    def _distance(self, state: jax.Array, known: jax.Array) -> jax.Array:
        bits = self.sample(state)[..., None, :]
        differ = (bits != jnp.asarray(self.modes)) & (known[..., None, :] > 0)
        return differ.sum(-1).astype(jnp.float32)

    def features(self, state: jax.Array) -> jax.Array:
        """An indicator for each value of each word, none among them."""
        return one_hot(state + 1, self._values + 1)

    @property
    def count(self) -> int:
        """Prefixes: 1 + q + q^2 + ... for q words."""
        return (self._values ** (self.words + 1) - 1) // (self._values - 1)

    def states(self) -> np.ndarray:
        """All prefixes, the shorter first, in order within a length."""
        found = []
        for filled in range(self.words + 1):
            numbers = np.arange(self._values**filled)[:, None]
            places = self._values ** np.arange(filled)[::-1]
            words = np.full((len(numbers), self.words), -1, np.int32)
            words[:, :filled] = numbers // places % self._values
            found.append(words)
        return np.concatenate(found)

    def index(self, state: jax.Array) -> jax.Array:
        """How many prefixes are shorter, and the words as digits."""
        filled = self._filled(state)
        number = jnp.zeros(state.shape[:-1], jnp.int32)
        for place in range(self.words):
            number = jnp.where(place < filled, number * self._values + state[..., place], number)
        shorter = (self._values ** np.arange(self.words + 1) - 1) // (self._values - 1)
        return jnp.asarray(shorter, jnp.int32)[filled] + number

    def picture(self, samples: np.ndarray, columns: int) -> np.ndarray:
        """A row of cells a sample (at most 64), and the modes beside them."""
        del columns

        def strip(bits: np.ndarray) -> np.ndarray:
            grey = (255 * (1 - np.asarray(bits[:64], np.uint8))).astype(np.uint8)
            grey = np.pad(grey, ((0, 64 - len(grey)), (0, 2)), constant_values=128)
            return grey[..., None].repeat(3, -1)

        both = np.concatenate([strip(samples), strip(self.modes)], axis=1)
        return both.repeat(4, 0).repeat(4, 1)


def bit_sequences(
    length: int = 120,
    word: int = 8,
    modes: int = 60,
    beta: float = 1.0,
    seed: int = 0,
    split: str = "train",
) -> BitSequences:
    """Strings of `length` bits in words of `word`, rewarded near `modes` strings drawn from `seed`.

    Modes are random rows of the paper's blocks of eight bits, cut to `length`. Distances are
    Hamming's. Raises UsageError where `word` does not divide `length` or a size is out of range.
    """
    del split
    if not 1 <= word <= 16:
        raise invalid("source.word", word, "1 to 16 bits")
    if length < 1 or length % word:
        raise invalid("source.length", length, f"a multiple of word={word}")
    if modes < 1:
        raise invalid("source.modes", modes, "modes >= 1")
    if beta <= 0:
        raise invalid("source.beta", beta, "a number > 0")
    rng = np.random.default_rng(seed)
    blocks = np.array([[int(b) for b in block] for block in BLOCKS], np.int32)
    rows = blocks[rng.integers(0, len(blocks), (modes, -(-length // 8)))].reshape(modes, -1)
    return BitSequences(
        shape=(length,),
        levels=2,
        actions=2**word + 1,
        back_actions=1,
        steps=length // word + 1,
        state_shape=(length // word,),
        length=length,
        word=word,
        modes=rows[:, :length],
        beta=beta,
    )
