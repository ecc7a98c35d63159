"""Posting lists made of other posting lists: nothing is encoded anew, and little is held.

Lists are taken some at a time, from all parts; their codes are sorted into leaves and written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch import _core
from delfsearch.index.code_model import CodeModel

BLOCK = 64
# Codes held at a time: some 60 bytes each while they are sorted.
MAX_CODES = 1 << 22


class Sink(Protocol):
    """Where arrays go, see ArrayWriter."""

    def append(self, name: str, rows: NDArray[Any]) -> None:
        """Put rows behind those that the array has."""

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write an array whole."""


class Lists(Protocol):
    """What an InvertedFile has of lists."""

    @property
    def list_sizes(self) -> NDArray[np.int64]:
        """Codes of each list."""

    def take(
        self, begin: int, end: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint32]]:
        """Return numbers (n, n_parts), lists (n,) and ids (n,) of the codes of some lists."""


@dataclass(frozen=True)
class Part:
    """lists, and what their ids become: numbers[id], -1 leaves out; or, None, id + first."""

    lists: Lists
    numbers: NDArray[np.int32] | None = None
    first: int = 0

    def take(
        self, begin: int, end: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.uint32]]:
        """Return numbers, lists and new ids of the codes of some lists."""
        numbers, lists, ids = self.lists.take(begin, end)
        if self.numbers is None:
            return numbers, lists, ids if self.first == 0 else ids + np.uint32(self.first)
        new = self.numbers[ids]
        if (new < 0).any():
            kept = new >= 0
            numbers, lists, new = numbers[kept], lists[kept], new[kept]
        return numbers, lists, new.astype(np.uint32)


def id_firsts(sizes: NDArray[np.int64], leaf_blocks: int) -> NDArray[np.uint64]:
    """Return where the ids of each leaf begin, or of each list without leaves."""
    if leaf_blocks:
        leaf_size = leaf_blocks * BLOCK
        n_leaves = -(-sizes // leaf_size)
        last = sizes - np.maximum(n_leaves - 1, 0) * leaf_size
        full = np.full(int(n_leaves.sum()), leaf_size, np.int64)
        full[np.cumsum(n_leaves)[n_leaves > 0] - 1] = last[n_leaves > 0]
        sizes = full
    firsts = np.zeros(len(sizes) + 1, np.uint64)
    np.cumsum(sizes, out=firsts[1:])
    return firsts


class ListWriter:
    """Writes the lists of an inverted file, in their order, some at a time.

    n_ids : ids are below it. leaf_blocks : blocks of a leaf, 0 for lists without leaves.
    """

    def __init__(
        self, model: CodeModel, n_ids: int, leaf_blocks: int, sink: Sink, n_threads: int
    ) -> None:
        self._model, self._n_ids, self._leaf_blocks = model, max(1, n_ids), leaf_blocks
        self._sink, self._n_threads = sink, n_threads
        self._sizes: list[NDArray[np.int64]] = []
        self._starts = [np.zeros(1, np.uint64)]

    def fill(
        self,
        begin: int,
        end: int,
        numbers: NDArray[np.uint8],
        lists: NDArray[np.uint32],
        ids: NDArray[np.uint32],
    ) -> None:
        """Write the lists begin to end: numbers (n, n_parts), lists (n,) and ids (n,) of codes."""
        _, sizes, blocks, _, present, ids = self._model.view.fill_lists(
            numbers, lists, ids, self._leaf_blocks, self._n_threads
        )
        own = sizes[begin:end].astype(np.int64)
        firsts = id_firsts(own, self._leaf_blocks)
        words, starts = _core.pack_ids(ids, firsts, self._n_ids, self._n_threads)
        self._sink.append("blocks", blocks)
        self._sink.append("present", present)
        self._sink.append("id_words", words)
        self._sizes.append(own)
        self._starts.append(starts[1:] + self._starts[-1][-1])

    def finish(self) -> int:
        """Write where lists, leaves and ids begin; returns how many codes there are."""
        sizes = np.concatenate(self._sizes)
        n_blocks = -(-sizes // BLOCK)
        n_leaves = -(-n_blocks // self._leaf_blocks) if self._leaf_blocks else None
        self._sink.write("sizes", sizes.astype(np.uint32))
        self._sink.write("first_block", _sums(n_blocks))
        self._sink.write(
            "first_leaf", np.zeros(0, np.uint64) if n_leaves is None else _sums(n_leaves)
        )
        self._sink.write("id_starts", np.concatenate(self._starts))
        return int(sizes.sum())


def merge_lists(
    parts: Sequence[Part],
    model: CodeModel,
    writer: ListWriter,
    max_codes: int = MAX_CODES,
) -> int:
    """Write the lists of all parts as those of one inverted file; returns how many codes.

    max_codes : sorted at a time, or one list.
    """
    sizes = np.zeros(model.n_lists, np.int64)
    for part in parts:
        sizes += part.lists.list_sizes
    for begin, end in _ranges(sizes, max_codes):
        taken = [part.take(begin, end) for part in parts]
        numbers, lists, ids = (np.concatenate(column) for column in zip(*taken))
        del taken
        writer.fill(begin, end, numbers, lists, ids)
    return writer.finish()


def _sums(counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    sums = np.zeros(len(counts) + 1, np.uint64)
    np.cumsum(counts, out=sums[1:])
    return sums


def _ranges(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Cut the lists into runs of at most so many codes, one list at least."""
    begin, n = 0, 0
    for end, size in enumerate(sizes.tolist()):
        if end > begin and n + size > most:
            yield begin, end
            begin, n = end, 0
        n += size
    if begin < len(sizes):
        yield begin, len(sizes)
