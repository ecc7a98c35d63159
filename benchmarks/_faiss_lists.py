"""FAISS's inverted files over the same cells as ours, beside which billion.py measures."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from delfsearch.index.code_model import CodeModel

_ROTATION_ROWS = 50_000  # OPQ learns from; more take minutes and change nothing


@dataclass
class Peer:
    index: Any
    kept: tuple[Any, ...]  # what the index points to
    bytes: int = 0
    build_s: float = 0.0

    def search(self, X: np.ndarray, k: int, n_probe: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers (m, k), -1 where missing, and squared distances."""
        import faiss

        faiss.omp_set_num_threads(1)
        faiss.extract_index_ivf(self.index).nprobe = n_probe
        squared, rows = self.index.search(X, k)
        return rows, squared


def _make(faiss: Any, model: CodeModel, train: np.ndarray, out: int, parts: int, bits: int) -> Peer:
    """An IVF over a learned rotation, whose cells are ours, turned."""
    d = model.dimension
    turn = faiss.OPQMatrix(d, parts, out)
    # By itself the rotation is learned for 8 bits, whatever the codes have.
    code_of_rotation = faiss.ProductQuantizer(out, parts, bits)
    turn.pq = code_of_rotation
    turn.train(train[:_ROTATION_ROWS])
    turn.pq = None
    cells = faiss.IndexFlatL2(out)
    cells.add(turn.apply(model.coarse))
    if bits == 4:
        lists = faiss.IndexIVFPQFastScan(cells, out, model.n_lists, parts, bits)
    else:
        lists = faiss.IndexIVFPQ(cells, out, model.n_lists, parts, bits)
    lists.by_residual = True
    index = faiss.IndexPreTransform(turn, lists)
    index.own_fields = False
    lists.train(turn.apply(train))
    index.is_trained = True
    return Peer(index, (turn, cells, lists))


def build_peers(
    model: CodeModel, train: np.ndarray, blocks: Iterable[Any], n_jobs: int
) -> dict[str, Peer]:
    """Train on rows, then add blocks (number, rows, counts) to each."""
    try:
        import faiss
    except ImportError:
        print("faiss is left out: not installed (pip install faiss-cpu)", file=sys.stderr)
        return {}
    faiss.omp_set_num_threads(1)  # its rotation is learned slower by more, where others work too
    d, parts, bits = model.dimension, model.n_parts, model.bits
    fast_parts = parts * bits // 4
    fast_parts -= fast_parts % 2  # 48 bits for ours of 50
    fast_d = d - d % fast_parts
    peers = {}
    for name, wanted in (
        (f"faiss OPQ{parts} PQ{parts}x{bits}", (d, parts, bits)),
        (f"faiss OPQ{fast_parts}_{fast_d} PQ{fast_parts}x4fs", (fast_d, fast_parts, 4)),
    ):
        start = time.perf_counter()
        peers[name] = _make(faiss, model, train, *wanted)
        peers[name].build_s = time.perf_counter() - start
    faiss.omp_set_num_threads(n_jobs)
    for _, X, _ in blocks:
        for peer in peers.values():
            start = time.perf_counter()
            peer.index.add(np.ascontiguousarray(X))
            peer.build_s += time.perf_counter() - start
    for peer in peers.values():
        peer.bytes = _bytes_of(faiss, peer.index)
    return peers


def _bytes_of(faiss: Any, index: Any) -> int:
    """Codes, filled up to whole blocks where it has any, and ids of 8 bytes."""
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    sizes = np.array([lists.list_size(i) for i in range(lists.nlist)])
    if hasattr(lists, "n_per_block"):
        codes = int((-(-sizes // lists.n_per_block)).sum()) * lists.block_size
    else:
        codes = int(sizes.sum()) * lists.code_size
    return codes + 8 * int(sizes.sum())
