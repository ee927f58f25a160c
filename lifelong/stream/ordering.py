"""Shuffling and random draws as pure functions of a key: stateless, so nothing has to be saved.

A generator of a library may change its stream between versions; a run that is resumed in a year must not.
Everything is built on the 64-bit finaliser of splitmix64.

Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; format-preserving
permutation by a Feistel network with cycle walking: Black and Rogaway 2002.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_ROUNDS = 6


def key_of(*parts: int | str) -> int:
    """A 64-bit key of a tuple such as (seed, "masks", stage, epoch); 1 and "1" give different keys."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def uniforms(key: int, positions: int | NDArray[np.integer]) -> NDArray[np.float64]:
    """One number in [0, 1) per position; `positions` an array of indices, or how many from 0 on."""
    indices = np.arange(positions) if isinstance(positions, int) else positions
    value = (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(key & _MASK)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
    value ^= value >> np.uint64(31)
    return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permuted(index: int, length: int, key: int) -> int:
    """Position of `index` in a pseudo-random permutation of `range(length)`: no table, any length."""
    if not 0 <= index < length:
        raise IndexError(f"index {index} is outside a permutation of {length}")
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for number in range(_ROUNDS):
            left, right = right, left ^ (_mixed(key + number * _GOLDEN, right) & mask)
        index = (left << half) | right
        if index < length:
            return index


def _mixed(key: int, value: int) -> int:
    value = ((value + 1) * _GOLDEN + key) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)
