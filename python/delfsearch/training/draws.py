"""Random numbers as a function of what they are for: no generator state outlives a call.

The generator of a draw is made from (random_state, purpose, numbers), where the numbers name the
epoch, the place in it, the photo. A run that stopped can therefore go on at any step as if it never
had, and the number of threads and processes changes no draw.
"""

from __future__ import annotations

import enum
import hashlib
import struct

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """What a draw is for; the numbers never change their meaning."""

    ORDER = 1  # epoch
    VIEW = 2  # epoch, place in the epoch, photo
    GAMMA = 3  # step
    ROUND = 4  # step: which round of cached features
    CACHED_VIEW = 5  # round, photo
    CACHED_GAMMA = 6  # round
    INITIAL = 7  # parameter's number
    CELLS = 8  # photo: which of its cells are drawn


def generator(random_state: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """Return the generator of one draw."""
    values = (random_state, int(purpose), len(numbers), *numbers)
    digest = hashlib.blake2b(struct.pack(f"<{len(values)}q", *values), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def normal_(tensor: torch.Tensor, deviation: float, random_state: int, number: int) -> None:
    """Fill a parameter with normal numbers of mean 0; number tells the parameters apart."""
    rng = generator(random_state, Purpose.INITIAL, number)
    values = rng.standard_normal(tuple(tensor.shape), np.float32) * np.float32(deviation)
    with torch.no_grad():
        tensor.copy_(torch.from_numpy(values))
