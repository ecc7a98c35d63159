"""The nearest-neighbour libraries that neighbors.py measures beside ours, each over a grid."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

K = 64


class Unavailable(Exception):
    """The peer is not installed here."""


@dataclass
class Method:
    """build(database) -> (index, bytes per descriptor); search(index, queries, setting) -> ids."""

    name: str
    build: Callable[[np.ndarray], tuple[Any, float]]
    search: Callable[[Any, np.ndarray, Any], np.ndarray]
    settings: list[Any]
    max_queries: int | None = None  # of a batch, for what is very slow
    single: bool = True  # time single queries too


def _faiss(threads: int) -> Any:
    try:
        import faiss
    except ImportError:
        raise Unavailable("faiss is not installed (faiss-cpu)") from None
    faiss.omp_set_num_threads(threads)
    return faiss


def _faiss_method(factory: str, parameter: str, settings: list[int], threads: int) -> Method:
    def build(database: np.ndarray) -> tuple[Any, float]:
        faiss = _faiss(0)
        faiss.omp_set_num_threads(faiss.omp_get_max_threads())
        index = faiss.index_factory(database.shape[1], factory)
        index.train(database)
        index.add(database)
        size = len(faiss.serialize_index(index)) / len(database)
        faiss.omp_set_num_threads(threads)
        return (faiss.ParameterSpace(), index), size

    def search(built: Any, queries: np.ndarray, setting: int) -> np.ndarray:
        space, index = built
        space.set_index_parameter(index, parameter, setting)
        return index.search(queries, K)[1]

    return Method(f"faiss {factory}", build, search, settings)


def faiss_ivf(threads: int) -> list[Method]:
    """IVF with 8-bit scalar codes, over the number of lists."""
    return [
        _faiss_method(f"IVF{lists},SQ8", "nprobe", probes, threads)
        for lists, probes in (
            (1024, [12, 20, 32, 48, 72, 112]),
            (2048, [20, 32, 56, 96, 144]),
            (4096, [32, 56, 96, 144, 224]),
        )
    ]


def faiss_hnsw(threads: int) -> list[Method]:
    """A graph over 8-bit scalar codes."""
    return [
        _faiss_method(f"HNSW{links}_SQ8", "efSearch", [64, 96, 144, 200, 280, 360], threads)
        for links in (16, 24)
    ]


def hnswlib_float(threads: int) -> list[Method]:
    """A graph over float vectors."""

    def build(database: np.ndarray) -> tuple[Any, float]:
        try:
            import hnswlib
        except ImportError:
            raise Unavailable("hnswlib is not installed") from None
        index = hnswlib.Index(space="l2", dim=database.shape[1])
        index.init_index(len(database), M=16, ef_construction=200, random_seed=0)
        index.add_items(database, num_threads=-1)
        index.set_num_threads(threads)
        return index, index.index_file_size() / len(database)

    def search(index: Any, queries: np.ndarray, setting: int) -> np.ndarray:
        index.set_ef(setting)
        return index.knn_query(queries, k=K, num_threads=threads)[0]

    return [Method("hnswlib M16 float", build, search, [64, 80, 112, 160, 240, 320])]


def scann(threads: int) -> list[Method]:
    """Anisotropic 4-bit codes with int8 reordering."""

    def build(database: np.ndarray) -> tuple[Any, float]:
        try:
            from scann.scann_ops.py import scann_ops_pybind
        except ImportError as error:
            raise Unavailable(f"scann does not import here ({error})") from None
        builder = scann_ops_pybind.builder(database, K, "squared_l2")
        index = (
            builder.tree(num_leaves=1024, num_leaves_to_search=64, training_sample_size=200_000)
            .score_ah(2, anisotropic_quantization_threshold=float("nan"))
            .reorder(512, quantize=True)
            .build()
        )
        # Packed 4-bit codes of 2 dimensions each, int8 rows and the ids of the tree.
        return index, database.shape[1] * 1.25 + 8.0

    def search(index: Any, queries: np.ndarray, setting: tuple[int, int]) -> np.ndarray:
        leaves, reorder = setting
        run = index.search_batched if threads == 1 else index.search_batched_parallel
        found = run(
            queries,
            final_num_neighbors=K,
            pre_reorder_num_neighbors=reorder,
            leaves_to_search=leaves,
        )
        return np.asarray(found[0], np.int64)

    settings = [(24, 200), (40, 256), (64, 320), (128, 512), (200, 800)]
    return [Method("scann tree AH + int8", build, search, settings)]


class _FlannParameters(ctypes.Structure):
    """FLANNParameters of flann/defines.h, version 1.9."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("algorithm", "checks")),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("sorted", "max_neighbors", "cores", "trees")),
        *((name, ctypes.c_int) for name in ("leaf_max_size", "branching", "iterations")),
        ("centers_init", ctypes.c_int),
        ("cb_index", ctypes.c_float),
        *((name, ctypes.c_float) for name in ("target_precision", "build_weight")),
        *((name, ctypes.c_float) for name in ("memory_weight", "sample_fraction")),
        *((name, ctypes.c_uint) for name in ("table_number_", "key_size_", "multi_probe_level_")),
        ("log_level", ctypes.c_int),
        ("random_seed", ctypes.c_long),
    ]


def flann(threads: int) -> list[Method]:
    """The paper's kind of search: one KD-tree over uint8, `checks` points visited."""

    def build(database: np.ndarray) -> tuple[Any, float]:
        name = ctypes.util.find_library("flann")
        if name is None:
            raise Unavailable("libflann is not installed (libflann-dev)")
        library = ctypes.CDLL(name)
        parameters = _FlannParameters.in_dll(library, "DEFAULT_FLANN_PARAMETERS")
        parameters = _FlannParameters.from_buffer_copy(parameters)
        parameters.algorithm, parameters.trees, parameters.random_seed = 1, 1, 1
        parameters.cores, parameters.sorted, parameters.log_level = threads, 1, 0
        # The library's own default: one point per leaf.
        parameters.leaf_max_size = 1
        low, high = np.quantile(database[:: max(1, len(database) // 200_000)], [5e-5, 1 - 5e-5])
        scale = 255 / (high - low)

        # One step for all dimensions: the distance is a plain one between bytes.
        def to_bytes(x: np.ndarray) -> np.ndarray:
            return np.clip(np.rint((x - low) * scale), 0, 255).astype(np.uint8)

        rows = to_bytes(database)
        library.flann_build_index_byte.restype = ctypes.c_void_p
        speedup = ctypes.c_float()
        index = library.flann_build_index_byte(
            rows.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int(rows.shape[0]),
            ctypes.c_int(rows.shape[1]),
            ctypes.byref(speedup),
            ctypes.byref(parameters),
        )
        library.flann_used_memory_byte.restype = ctypes.c_int
        size = library.flann_used_memory_byte(ctypes.c_void_p(index)) / len(rows)
        return (library, index, parameters, rows, to_bytes), size + rows.shape[1]

    def search(built: Any, queries: np.ndarray, setting: int) -> np.ndarray:
        library, index, parameters, _, to_bytes = built
        parameters.checks = setting
        rows = to_bytes(queries)
        ids = np.empty((len(rows), K), np.int32)
        distances = np.empty((len(rows), K), np.float32)
        library.flann_find_nearest_neighbors_index_byte(
            ctypes.c_void_p(index),
            rows.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int(len(rows)),
            ids.ctypes.data_as(ctypes.c_void_p),
            distances.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int(K),
            ctypes.byref(parameters),
        )
        return ids

    settings = [5000, 10000, 20000, 40000]
    return [Method("FLANN 1 tree uint8", build, search, settings, max_queries=100, single=False)]


PEERS: dict[str, Callable[[int], list[Method]]] = {
    "faiss-ivf": faiss_ivf,
    "faiss-hnsw": faiss_hnsw,
    "hnswlib": hnswlib_float,
    "scann": scann,
    "flann": flann,
}
