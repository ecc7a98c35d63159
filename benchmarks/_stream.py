"""Photos of descriptors block after block, real ones first, and queries with known answers."""

from __future__ import annotations

import multiprocessing as mp
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _synthetic import BLOCK_PHOTOS, PHOTO_ROWS, QUANTILES, Mixture, Synthetic
from threadpoolctl import threadpool_limits

from delfsearch.index.uniform_quantizer import UniformQuantizer

# Blocks made ahead: what takes them may be busy for a while (a part of 4 million encoded).
_SLOTS, _QUANTIZED_SLOTS = 6, 96
_NO_DATABASE = 1 << 25  # blocks from here on are no part of a database


@dataclass(frozen=True, eq=False)
class Stream:
    """The same photos in the same order whatever the size: a small database begins a large one.

    real, real_starts : rows and (n_real + 1,) first rows of the real photos, the first ones.
    """

    synthetic: Synthetic
    real: np.ndarray
    real_starts: np.ndarray

    @staticmethod
    def open(folder: Path) -> Stream:
        """Take back what `prepare` of billion.py has written."""
        setup = np.load(folder / "setup.npz")
        synthetic = Synthetic(Mixture.load(folder / "mixture.npz"), int(setup["seed"]))
        return Stream(synthetic, np.load(folder / "real.npy"), setup["real_starts"])

    @property
    def dimension(self) -> int:
        return self.real.shape[1]

    @property
    def n_real(self) -> int:
        return len(self.real_starts) - 1

    def n_blocks(self, size: int) -> int:
        """Blocks that make about `size` descriptors; block 0 holds all real photos."""
        return 1 + max(1, round((size - len(self.real)) / (BLOCK_PHOTOS * PHOTO_ROWS)))

    def block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (n, d) float32 and counts (p,) int64."""
        if number == 0:
            return self.real, np.diff(self.real_starts)
        return self.synthetic.block(number - 1)

    def n_photos(self, n_blocks: int) -> int:
        return self.n_real + (n_blocks - 1) * BLOCK_PHOTOS

    def n_rows(self, n_blocks: int) -> int:
        return len(self.real) + (n_blocks - 1) * BLOCK_PHOTOS * PHOTO_ROWS

    def first_row(self, photos: np.ndarray) -> np.ndarray:
        """The number of the first row of each photo."""
        inside = self.real_starts[np.minimum(photos, self.n_real)]
        return inside + np.maximum(0, photos - self.n_real) * PHOTO_ROWS

    def photo_of(self, rows: np.ndarray) -> np.ndarray:
        """The photo of each row number; -1 stays -1."""
        real = np.searchsorted(self.real_starts, rows, side="right") - 1
        made = self.n_real + (rows - len(self.real)) // PHOTO_ROWS
        return np.where(rows < 0, -1, np.where(rows < len(self.real), real, made))

    def sample(self, n: int, n_blocks: int, seed: int) -> np.ndarray:
        """About n rows, of blocks drawn from all of them, and of the real photos."""
        rng = np.random.default_rng([seed, 5])
        enough = -(-2 * n // (BLOCK_PHOTOS * PHOTO_ROWS))
        chosen = 1 + np.sort(rng.permutation(n_blocks - 1)[:enough])
        parts = [self.real[rng.permutation(len(self.real))[: n // 10]]]
        left = n - len(parts[0])
        for i, number in enumerate(chosen):
            X, _ = self.block(int(number))
            parts.append(X[rng.permutation(len(X))[: -(-left // (len(chosen) - i))]])
            left -= len(parts[-1])
        return np.concatenate(parts)


def _make(feed: Feed, shape: Any, slots: Any, free: Any, made: Any) -> None:
    """Fill slots with blocks until all are made or the parent is gone."""
    parent = mp.parent_process()
    threadpool_limits(1)  # the other cores are at work on what was made before
    stream = Stream.open(feed.folder)
    views = [np.frombuffer(slot, feed.dtype).reshape(shape) for slot in slots]
    for number in range(feed.begin, feed.end):
        X, counts = stream.block(number)
        if feed.quantizer is not None:
            X = feed.quantizer.quantize(np.ascontiguousarray(X))
        while True:
            try:
                slot = free.get(timeout=2)
                break
            except queue.Empty:
                if parent is None or not parent.is_alive():
                    return
        views[slot][: len(X)] = X
        made.put((number, slot, len(X), counts, time.process_time()))


@dataclass
class Feed:
    """Blocks made by a process of its own, beside what takes them; 8-bit ones with a quantizer."""

    folder: Path
    begin: int
    end: int
    quantizer: UniformQuantizer | None = None
    maker_cpu_s: float = 0.0

    @property
    def dtype(self) -> type:
        return np.float32 if self.quantizer is None else np.uint8

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield number, rows and counts of each block; the rows are overwritten later."""
        context = mp.get_context("spawn")
        stream = Stream.open(self.folder)
        shape = max(len(stream.real), BLOCK_PHOTOS * PHOTO_ROWS), stream.dimension
        n_slots = _SLOTS if self.quantizer is None else _QUANTIZED_SLOTS
        kind = "f" if self.quantizer is None else "B"
        slots = [context.RawArray(kind, shape[0] * shape[1]) for _ in range(n_slots)]
        free, made = context.Queue(), context.Queue()
        for slot in range(n_slots):
            free.put(slot)
        maker = context.Process(target=_make, args=(self, shape, slots, free, made), daemon=True)
        maker.start()
        try:
            for _ in range(self.begin, self.end):
                while True:
                    try:
                        number, slot, n, counts, self.maker_cpu_s = made.get(timeout=5)
                        break
                    except queue.Empty:
                        if not maker.is_alive():
                            raise SystemExit("the process that makes descriptors ended") from None
                yield number, np.frombuffer(slots[slot], self.dtype).reshape(shape)[:n], counts
                free.put(slot)
        finally:
            maker.terminate()
            maker.join()


@dataclass(frozen=True, eq=False)
class Queries:
    """X (q, 500, d); true (q,) photo numbers, -1 without; is_planted (q, 500); is_real (q,): of
    real descriptors, in a real photo; share (q,) of planted rows."""

    X: np.ndarray
    true: np.ndarray
    is_planted: np.ndarray
    is_real: np.ndarray
    share: np.ndarray

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @staticmethod
    def load(path: Path) -> Queries:
        with np.load(path) as stored:
            return Queries(**dict(stored))


def plant(
    stream: Stream,
    n_blocks: int,
    clutter: np.ndarray,
    n_queries: int,
    n_without: int,
    shares: list[float],
    seed: int,
) -> Queries:
    """Query photos: noisy copies of some rows of a photo of the first n_blocks among other rows.

    Every other query asks for a real photo, among rows of real photos that no database holds
    (clutter, from all of them: one of them alone may show what a photo of the database shows, and
    then has an answer that nobody knows); the others for synthetic photos among synthetic rows.
    """
    rng = np.random.default_rng([seed, 3])
    synthetic, n = stream.synthetic, n_queries + n_without
    others = synthetic.block(_NO_DATABASE)[0].reshape(BLOCK_PHOTOS, PHOTO_ROWS, -1)
    X = np.empty((n, PHOTO_ROWS, stream.dimension), np.float32)
    true, share = np.full(n, -1), np.zeros(n)
    is_planted, is_real = np.zeros((n, PHOTO_ROWS), bool), np.arange(n) % 2 == 1
    for q in range(n):
        if is_real[q] and len(clutter) >= PHOTO_ROWS:
            X[q] = clutter[np.sort(rng.integers(0, len(clutter), PHOTO_ROWS))]
        else:
            is_real[q] = False
            X[q] = others[q % BLOCK_PHOTOS]
            if q % BLOCK_PHOTOS == BLOCK_PHOTOS - 1:
                block = _NO_DATABASE + 1 + q // BLOCK_PHOTOS
                others = synthetic.block(block)[0].reshape(BLOCK_PHOTOS, PHOTO_ROWS, -1)
        if q >= n_queries:
            continue
        share[q] = shares[(q // 2) % len(shares)]
        if is_real[q]:
            true[q] = rng.integers(stream.n_real)
            at = stream.real_starts[true[q] : true[q] + 2]
            source = stream.real[at[0] : at[1]]
        else:
            number, photo = int(rng.integers(n_blocks - 1)), int(rng.integers(BLOCK_PHOTOS))
            true[q] = stream.n_real + number * BLOCK_PHOTOS + photo
            source = synthetic.block(number)[0].reshape(BLOCK_PHOTOS, PHOTO_ROWS, -1)[photo]
        n_planted = min(len(source), round(share[q] * PHOTO_ROWS))
        squared = np.interp(rng.random(n_planted), QUANTILES, synthetic.mixture.twin_squared)
        chosen = rng.permutation(len(source))[:n_planted]
        places = rng.permutation(PHOTO_ROWS)[:n_planted]
        X[q, places] = synthetic.noisy(source[chosen], squared.astype(np.float32), rng)
        is_planted[q, places] = True
    return Queries(X, true, is_planted, is_real, share)
