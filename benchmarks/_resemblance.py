"""How near synthetic descriptors are to the real ones that they were fitted on, in figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from _synthetic import BLOCK_PHOTOS, PHOTO_ROWS, Synthetic
from _synthetic_fit import (
    FIRST_TEST_BLOCK,
    mean_distinct,
    nearest_in_photos,
    nearest_squared,
    starts_of,
    whole_photos,
)

from delfsearch import OptimizedPQ, _core

_QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
_QUERIES, _CELLS = 1000, 1024


def compare(
    X: np.ndarray, photos: np.ndarray, synthetic: Synthetic, n_threads: int = 1
) -> dict[str, Any]:
    """Measure both: spectrum, cells, neighbours within and across photos, quantization error."""
    rng = np.random.default_rng(synthetic.seed)
    real, real_others = whole_photos(X, starts_of(photos), 400, rng)
    n_photos = len(real) // PHOTO_ROWS
    blocks = -(-(n_photos + len(real_others) // PHOTO_ROWS) // BLOCK_PHOTOS)
    made = np.concatenate([synthetic.block(FIRST_TEST_BLOCK + 1 + i)[0] for i in range(blocks)])
    sets = {
        "real": (real, rng.permutation(real_others)),
        "synthetic": (made[: len(real)], rng.permutation(made[len(real) :])),
    }
    sample = min(200_000, *(len(others) for _, others in sets.values()))
    coarse, _, _ = _core.kmeans(
        np.ascontiguousarray(sets["real"][1][:sample]), _CELLS, 10, 1e-4, 0, 0, n_threads
    )
    models = {
        name: OptimizedPQ(n_subquantizers=10 if X.shape[1] % 10 == 0 else 4, bits=5).fit(
            others[: min(sample, 100_000)]
        )
        for name, (_, others) in sets.items()
    }
    result: dict[str, Any] = {}
    for name, (own, others) in sets.items():
        starts = np.arange(0, len(own) + 1, PHOTO_ROWS)
        within = nearest_in_photos(own, starts, PHOTO_ROWS)
        mixed = others[: len(own) // PHOTO_ROWS * PHOTO_ROWS]
        chance = nearest_in_photos(mixed, np.arange(0, len(mixed) + 1, PHOTO_ROWS), PHOTO_ROWS)
        queries = own[rng.permutation(len(own))[:_QUERIES]]
        cells, _ = _core.assign_nearest(coarse, np.ascontiguousarray(others[:sample]), n_threads)
        counts = np.sort(np.bincount(cells, minlength=_CELLS)) / len(cells)
        own_cells, _ = _core.assign_nearest(coarse, np.ascontiguousarray(own), n_threads)
        steps = [
            n for n in (10_000, 100_000, 1_000_000) if n <= min(len(o) for _, o in sets.values())
        ]
        result[name] = {
            "eigenvalues": np.linalg.eigvalsh(np.cov(others[:sample].T))[::-1].round(5).tolist(),
            "gini_of_cells": float(1 - 2 * (np.cumsum(counts) - counts / 2).sum() / len(counts)),
            "entropy_of_cells_bits": float(
                -(counts[counts > 0] * np.log2(counts[counts > 0])).sum()
            ),
            "cells_of_a_photo": mean_distinct(own_cells),
            "nearest_within_photo": _quantiles(within),
            "nearest_among_500_of_any": _quantiles(chance),
            "nearest_in_others": {
                str(n): _quantiles(nearest_squared(queries, others[:n])) for n in steps
            },
            "quantization_error": {
                f"learned on {other}": _error(model, queries_of(own))
                for other, model in models.items()
            },
        }
    return result


def queries_of(own: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(own[: 100 * PHOTO_ROWS])


def _error(model: OptimizedPQ, X: np.ndarray) -> float:
    return float(((model.inverse_transform(model.transform(X)) - X) ** 2).sum(1).mean())


def _quantiles(values: np.ndarray) -> list[float]:
    return [round(float(v), 4) for v in np.quantile(values, _QUANTILES)]


def table(result: dict[str, Any]) -> str:
    """The comparison as lines of a Markdown table."""
    real, made = result["real"], result["synthetic"]
    lines = ["| | real | synthetic |", "|---|---|---|"]

    def line(name: str, a: Any, b: Any) -> None:
        def show(v: Any) -> str:
            return " ".join(f"{x:.3f}" for x in v) if isinstance(v, list) else f"{v:.3f}"

        lines.append(f"| {name} | {show(a)} | {show(b)} |")

    line(
        "eigenvalues 1, 5, 10, 20, 30, 40",
        *(
            [r["eigenvalues"][i - 1] for i in (1, 5, 10, 20, 30, 40) if i <= len(r["eigenvalues"])]
            for r in (real, made)
        ),
    )
    for key in ("gini_of_cells", "entropy_of_cells_bits", "cells_of_a_photo"):
        line(key.replace("_", " "), real[key], made[key])
    shown = ", ".join(f"{100 * q:g}" for q in _QUANTILES)
    for key in ("nearest_within_photo", "nearest_among_500_of_any"):
        line(f"{key.replace('_', ' ')}, squared, % {shown}", real[key], made[key])
    for n, values in real["nearest_in_others"].items():
        line(f"nearest of {n} in other photos", values, made["nearest_in_others"][n])
    for key, value in real["quantization_error"].items():
        line(f"error of 50-bit codes {key}", value, made["quantization_error"][key])
    return "\n".join(lines)
