"""What codes and ids of posting lists cost, and what they cannot cost less than."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from delfsearch.index.code_model import CodeModel
from delfsearch.index.inverted_file import InvertedFile

_LISTS = 200  # whose codes are looked at


def log2_binomial(n: Any, k: Any) -> np.ndarray:
    """log2 of n over k, element by element; Stirling's series where numbers are large."""
    n, k = np.broadcast_arrays(np.asarray(n, np.float64), np.asarray(k, np.float64))
    return (_log_factorial(n) - _log_factorial(k) - _log_factorial(n - k)) / math.log(2)


def _log_factorial(n: np.ndarray) -> np.ndarray:
    # Stirling's series is exact to 1e-9 from 20 on.
    small = np.array([math.lgamma(i + 1) for i in range(20)])
    large = np.maximum(n, 20.0)
    series = large * np.log(large) - large + 0.5 * np.log(2 * np.pi * large) + 1 / (12 * large)
    series -= 1 / (360 * large**3)
    return np.where(n < 20, small[np.minimum(n, 19).astype(np.int64)], series)


def elias_fano_bits(universe: int, sizes: np.ndarray) -> float:
    """Bits of Elias and Fano's code for sorted numbers below universe; a sequence a size."""
    n = sizes[sizes > 0].astype(np.float64)
    low = np.maximum(0, np.floor(np.log2(np.maximum(1, universe / n))))
    return float((n * low + n + np.floor(universe / 2**low)).sum())


def cut(sizes: np.ndarray, leaf_size: int) -> np.ndarray:
    """Sizes of the leaves that lists are cut into."""
    full, rest = sizes // leaf_size, sizes % leaf_size
    return np.concatenate([np.full(int(full.sum()), leaf_size), rest[rest > 0]])


def id_costs(list_sizes: np.ndarray, n_photos: int, leaf_size: int) -> dict[str, Any]:
    """Bits of an id under each scheme: floor (no code can do with less on average) and Elias-Fano.

    floor of features : log2 of the number of sets of row numbers of each list. jointly : of ways to
    share all rows out to the lists, which codes of single lists cannot reach. floor of photos : of
    multisets of photo numbers, as if each photo were as likely in every list.
    """
    n = int(list_sizes.sum())
    found: dict[str, Any] = {
        "plain": 32.0 if n < 2**32 else 64.0,
        "features_jointly": float(
            (_log_factorial(np.array([float(n)]))[0] - _log_factorial(list_sizes * 1.0).sum())
            / math.log(2)
            / n
        ),
    }
    pieces = {"whole lists": list_sizes}
    for size in sorted({64, 1024, leaf_size} - {0}):
        pieces[f"leaves of {size}"] = cut(list_sizes, size)
    for name, sizes in pieces.items():
        sizes = sizes[sizes > 0]
        found[name] = {
            "features": float(log2_binomial(n, sizes).sum()) / n,
            "features_elias_fano": elias_fano_bits(n, sizes) / n,
            "photos": float(log2_binomial(n_photos + sizes - 1, sizes).sum()) / n,
            "photos_elias_fano": elias_fano_bits(n_photos, sizes) / n,
        }
    return found


def code_entropy_bits(file: InvertedFile, model: CodeModel, seed: int) -> float:
    """Entropy of a code given its list, part by part (parts that depend on one another would code
    shorter still), with the correction of Miller and Madow for short lists."""
    sizes = file.list_sizes
    rng = np.random.default_rng(seed)
    lists = np.sort(rng.permutation(np.flatnonzero(sizes))[:_LISTS])
    bits = rows = 0.0
    for number in lists:
        numbers, _, _ = file.take(int(number), int(number) + 1)
        for part in numbers.T:
            counts = np.bincount(part, minlength=2**model.bits)
            shares = counts[counts > 0] / len(part)
            own = -(shares * np.log2(shares)).sum()
            own += (len(shares) - 1) / (2 * len(part) * math.log(2))
            bits += len(part) * min(model.bits, own)
        rows += len(numbers)
    return bits / max(1.0, rows)
