"""What answers are worth: recall beside exact search, planted photos, votes, latency."""

from __future__ import annotations

from typing import Any

import numpy as np
from _stream import Queries

RANKS = (1, 10, 64)
Found = tuple[np.ndarray, np.ndarray]  # photo numbers (m, k), -1 where missing; squared distances


def votes_of(
    photos: np.ndarray, squared: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Photos found by the rows (m, k) of a query, -1 for none, and their votes; most first, ties by
    number. A row has a vote for a photo: 1, or 1 - d / d_k of its nearest, as DelfIndex has it."""
    order = np.argsort(photos, axis=1, kind="stable")
    ordered = np.take_along_axis(photos, order, 1)
    first = ordered >= 0
    first[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    weights = None
    if squared is not None:
        finite = np.where(photos >= 0, squared, 0)
        farthest = np.maximum(finite.max(1, keepdims=True), 1e-30)
        weights = np.take_along_axis(1 - finite / farthest, order, 1)[first].astype(np.float64)
    found, inverse = np.unique(ordered[first], return_inverse=True)
    votes = np.bincount(inverse, weights, len(found))
    best = np.lexsort((found, -votes))
    return found[best], votes[best]


def exact_rows(queries: Queries, n: int) -> np.ndarray:
    """The same rows of all query photos that have an answer: every so many."""
    rows = queries.X[queries.true >= 0].reshape(-1, queries.X.shape[2])
    return np.ascontiguousarray(rows[:: max(1, len(rows) // n)][:n])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Share of photo numbers (m, r) of b that a has too, each as often."""
    shared = 0
    for found, wanted in zip(a, b):
        numbers, counts = np.unique(found[found >= 0], return_counts=True)
        there, needed = np.unique(wanted[wanted >= 0], return_counts=True)
        both, at, of = np.intersect1d(numbers, there, return_indices=True)
        shared += int(np.minimum(counts[at], needed[of]).sum()) if len(both) else 0
    return shared / max(1, int((b >= 0).sum()))


def recall_of(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Of photos: those of the nearest row among the first R, and of the R nearest rows."""
    result = {f"nearest_in_{r}": float((found[:, :r] == true[:, :1]).any(1).mean()) for r in RANKS}
    return {
        **result,
        **{f"recall_{r}": overlap(found[:, :r], true[:, :r]) for r in RANKS[1:]},
    }


def latency_of(times: dict[str, list[float]]) -> dict[str, float]:
    found = {}
    for clock, values in times.items():
        found[f"{clock}_ms_median"] = 1e3 * float(np.median(values))
        found[f"{clock}_ms_p90"] = 1e3 * float(np.quantile(values, 0.9))
    return found


def planted_results(queries: Queries, found: list[Found]) -> dict[str, Any]:
    """Photos that come first by votes, planted rows that find theirs, votes without an answer."""
    planted = queries.true >= 0
    result: dict[str, Any] = {}
    columns = {}
    for name, weighed in (("", False), ("_weighed", True)):
        first, votes_true, votes_none = [], [], []
        for true, (photos, squared) in zip(queries.true, found):
            numbers, votes = votes_of(photos, squared if weighed else None)
            if true < 0:
                votes_none.append(float(votes[0]) if len(votes) else 0.0)
                continue
            first.append(bool(len(numbers)) and bool(numbers[0] == true))
            votes_true.append(float(votes[numbers == true].sum()))
        most = max(votes_none, default=0.0)
        columns["first" + name] = np.array(first)
        columns["above_all_without_answer" + name] = np.array(votes_true) > most
        result["most_votes_without_answer" + name] = most
    columns["planted_recall"] = np.array(
        [
            (photos == true).any(1)[rows].mean()
            for true, rows, (photos, _) in zip(queries.true, queries.is_planted, found)
            if true >= 0
        ]
    )
    groups = {"real": queries.is_real[planted], "synthetic": ~queries.is_real[planted]}
    for share in np.unique(queries.share[planted]):
        groups[f"planted {share:g}"] = queries.share[planted] == share
    return {
        **{name: float(values.mean()) for name, values in columns.items()},
        **result,
        "by": {
            group: {name: float(values[of].mean()) for name, values in columns.items()}
            for group, of in groups.items()
            if of.any()
        },
    }
