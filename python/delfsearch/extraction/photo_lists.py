"""Many photos at once: what is a list of photos, and an even sample of any number of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image


def check_photos(photos: Any) -> Iterable[Any]:
    """Return an iterable of photos; refuse one photo alone, which would be read as many."""
    if isinstance(photos, (str, os.PathLike, Image.Image)):
        raise TypeError(
            f"photos must be a list or an iterator of photos; got one {type(photos).__name__}. "
            "Pass [photo]"
        )
    if isinstance(photos, np.ndarray) and photos.ndim < 4:
        raise TypeError(f"photos must be a list of arrays; got one of shape {photos.shape}")
    if not isinstance(photos, Iterable):
        raise TypeError(f"photos must be a list or an iterator; got {type(photos).__name__}")
    return photos


def sample_photos(items: Iterable[Any], size: int, seed: int) -> list[Any]:
    """Return size items drawn evenly from a stream of any length, in its order (Algorithm R)."""
    generator = np.random.default_rng(seed)
    kept: list[tuple[int, Any]] = []
    for i, item in enumerate(items):
        if i < size:
            kept.append((i, item))
        elif (place := int(generator.integers(0, i + 1))) < size:
            kept[place] = (i, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]
