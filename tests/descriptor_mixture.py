"""Descriptors for tests: clusters like those of real ones."""

from __future__ import annotations

import numpy as np


def mixture(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Clusters of unequal spread along decaying axes, as descriptors after PCA are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 50), d))
    spread = 0.3 * rng.uniform(0.5, 1.5, len(centres))
    which = rng.integers(0, len(centres), n)
    X = centres[which] + rng.normal(size=(n, d)) * spread[which, None]
    return (X / np.sqrt(1 + np.arange(d))).astype(np.float32)
