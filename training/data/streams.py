"""Random numbers by address: a draw depends on its key and its index, never on what was drawn before.

Philox is a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): its output is
a function of a 128-bit key and a 256-bit counter. Here the key says which stream and one word of the counter which item
of it, so item 7,000,000 costs as much as item 0, and ranks, workers and resumed runs agree without sharing any state.
"""

from hashlib import blake2b

import numpy as np

STREAMS = 1  # part of the key of every run's data: raise it when the same address would give other numbers


class Stream:
    """Random generators for the items of one stream.

    Args:
        key: The name of the stream: any values whose repr is stable, such as str, int and tuples of them.
    """

    def __init__(self, *key: object) -> None:
        digest = blake2b(repr(key).encode(), digest_size=16).digest()
        self._philox = np.random.Philox(key=int.from_bytes(digest, "little"))
        self._generator = np.random.Generator(self._philox)
        self._state = self._philox.state

    def at(self, index: int) -> np.random.Generator:
        """The generator at the start of item `index` >= 0. It is valid until the next call of `at`."""
        # Draws advance the lowest counter word: items are 2^128 draws apart and cannot meet.
        self._state["state"]["counter"] = np.array([0, 0, index, 0], dtype=np.uint64)
        self._philox.state = self._state  # also empties the buffer of half-used numbers
        return self._generator
