"""Random numbers as pure functions of what they are for: no generator is ever advanced or passed on.

Only the raw words of NumPy's Philox are used. They are the same on every platform and NumPy version, which NumPy
does not promise of `Generator.permutation` or `Generator.integers`.
"""

import hashlib

import numpy as np


def _philox(purpose: tuple, counter: int = 0) -> np.random.Philox:
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"), counter=counter)


def permutation(size: int, *purpose: int | str) -> np.ndarray:
    """Returns the permutation of `range(size)` (int64) that belongs to `purpose`, such as `(seed, "blocks", 3)`."""
    return np.argsort(_philox(purpose).random_raw(size), kind="stable")


def row_words(first: int, count: int, words: int, *purpose: int | str) -> np.ndarray:
    """Returns the random words of `count` consecutive rows.

    Row r gets the same words whichever range it is asked for in: the counter of Philox (Salmon et al. 2011,
    "Parallel random numbers: as easy as 1, 2, 3") is the row itself.

    Args:
        first: the first row.
        count: number of rows.
        words: words of a row; a multiple of 4, the words that one counter value gives.
        *purpose: seed and use of the words.

    Returns:
        uint64 [count, words].
    """
    if words % 4:
        raise ValueError(f"words={words} is not a multiple of 4")
    raw = _philox(purpose, counter=first * (words // 4)).random_raw(count * words)
    return raw.reshape(count, words)


def uniform(words: np.ndarray) -> np.ndarray:
    """Maps uint64 words to float64 in [0, 1), with all 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
