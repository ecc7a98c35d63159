"""Exact nearest neighbours by one pass over the stream, which sizes share."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from _stream import Feed, Stream

K = 64
_ROWS_AT_ONCE = 10_000
_MERGE_AT, _SAVE_EVERY_S = 2_000_000, 60.0


class Nearest:
    """The K nearest so far of each query: squared distances and row numbers (m, K)."""

    def __init__(self, queries: np.ndarray) -> None:
        self.queries = queries
        self.squared = np.full((len(queries), K), np.inf, np.float32)
        self.rows = np.full((len(queries), K), -1)
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._n_pending = 0

    def add(self, X: np.ndarray, first_row: int) -> None:
        for begin in range(0, len(X), _ROWS_AT_ONCE):
            squared = self.queries @ X[begin : begin + _ROWS_AT_ONCE].T
            squared *= -2
            squared += 2  # rows of length 1
            query, row = np.nonzero(squared < self.squared[:, -1:])
            self._pending.append((query, squared[query, row], row + first_row + begin))
            self._n_pending += len(query)
            if self._n_pending > _MERGE_AT or not np.isfinite(self.squared[0, -1]):
                self.merge()

    def merge(self) -> None:
        m = len(self.queries)
        self._pending.append(
            (np.repeat(np.arange(m), K), self.squared.reshape(-1), self.rows.reshape(-1))
        )
        query, squared, rows = (np.concatenate(column) for column in zip(*self._pending))
        order = np.lexsort((rows, squared, query))
        starts = np.searchsorted(query[order], np.arange(m))
        best = order[starts[:, None] + np.arange(K)]
        self.squared, self.rows = squared[best], rows[best]
        self._pending, self._n_pending = [], 0


def exact_pass(folder: Path, size: int, queries: np.ndarray) -> None:
    """Write exact_SIZE.npz; goes on from the size before, or from where it was stopped."""
    stream = Stream.open(folder)
    state, nearest, begin, spent = folder / "exact_state.npz", Nearest(queries), 0, 0.0
    end = stream.n_blocks(size)
    if state.exists() and int(np.load(state)["n_blocks"]) <= end:
        stored = np.load(state)
        nearest.squared, nearest.rows = stored["squared"], stored["rows"]
        begin, spent = int(stored["n_blocks"]), float(stored["seconds"])
    start = saved = time.perf_counter()

    def save(path: Path, n_blocks: int) -> None:
        nearest.merge()
        partial = path.with_name("partial_" + path.name)
        seconds = spent + time.perf_counter() - start
        np.savez(
            partial,
            squared=nearest.squared,
            rows=nearest.rows,
            n_blocks=n_blocks,
            seconds=seconds,
        )
        partial.rename(path)

    for number, X, _ in Feed(folder, begin, end):
        nearest.add(X, stream.n_rows(number) if number else 0)
        done = number + 1
        if done == end or time.perf_counter() - saved > _SAVE_EVERY_S:
            save(state, done)
            saved = time.perf_counter()
            rate = (stream.n_rows(done) - stream.n_rows(begin or 1)) / (saved - start)
            print(f"exact: {stream.n_rows(done):,} rows, {rate:,.0f}/s", flush=True)
    save(folder / f"exact_{size}.npz", end)
