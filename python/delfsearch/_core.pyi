"""The compiled core. Arguments are unchecked: use the Python classes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

def simd() -> str: ...
def first_photo_of_buckets(offsets: NDArray[np.int64]) -> NDArray[np.int32]: ...
def filter_neighbors(
    rows: NDArray[np.int64],
    squared_distances: NDArray[np.float32],
    k: int,
    excluded_begin: NDArray[np.int64],
    excluded_end: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]: ...
def merge_neighbors(
    rows: NDArray[np.int64],
    squared_distances: NDArray[np.float32],
    offsets: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    first: NDArray[np.int32],
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]: ...
def group_by_photo(
    rows: NDArray[np.int64],
    squared_distances: NDArray[np.float32],
    offsets: NDArray[np.int64],
    image_ids: NDArray[np.int64],
    first: NDArray[np.int32],
    max_candidates: int,
    weigh_by_distance: bool,
) -> tuple[
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int32],
    NDArray[np.int32],
    NDArray[np.int64],
    NDArray[np.float32],
]: ...
def rematch(
    lower: NDArray[np.float32],
    step: NDArray[np.float32],
    codes: NDArray[np.uint8],
    queries: NDArray[np.float32],
    query_of: NDArray[np.int32],
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    n_threads: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
def non_maximum_suppression(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    iou_threshold: float,
    max_kept: int,
) -> NDArray[np.int64]: ...
def ransac_affine(
    query_xy: NDArray[np.float32],
    database_xy: NDArray[np.float32],
    squared_distances: NDArray[np.float32],
    offsets: NDArray[np.int64],
    ids: NDArray[np.int64],
    *,
    max_error: float,
    min_separation: float,
    max_iterations: int,
    confidence: float,
    min_support: int,
    min_scale: float,
    max_scale: float,
    max_stretch: float,
    max_rotation_deg: float,
    seed: int,
    n_threads: int,
) -> tuple[
    NDArray[np.int32],
    NDArray[np.float64],
    NDArray[np.int64],
    NDArray[np.int64],
    NDArray[np.int32],
]: ...
def fit_quantizer(
    X: NDArray[np.float32], clip_quantile: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
def quantize(
    lower: NDArray[np.float32], step: NDArray[np.float32], X: NDArray[np.float32]
) -> NDArray[np.uint8]: ...
def decode(
    lower: NDArray[np.float32], step: NDArray[np.float32], codes: NDArray[np.uint8]
) -> NDArray[np.float32]: ...
def build_kdtree(
    lower: NDArray[np.float32],
    step: NDArray[np.float32],
    codes: NDArray[np.uint8],
    leaf_size: int,
    axis_splits: bool,
    refine_steps: int,
    n_threads: int,
) -> tuple[
    NDArray[np.uint8],
    NDArray[np.float32],
    NDArray[np.uint8],
    NDArray[np.uint8],
    NDArray[np.float32],
]: ...

class KdTreeView:
    """Borrows its arrays and keeps them alive; checks what a damaged file could hold."""

    def __init__(
        self,
        n: int,
        leaf_size: int,
        lower: NDArray[np.float32],
        step: NDArray[np.float32],
        codes: NDArray[np.uint8],
        norms: NDArray[np.float32],
        ids: NDArray[np.uint8],
        leaf_codes: NDArray[np.uint8],
        leaf_norms: NDArray[np.float32],
        check: bool,
    ) -> None: ...
    def search(
        self, queries: NDArray[np.float32], k: int, max_leaves: int, n_threads: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
    def norms_of_wanted(
        self, wanted: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    def unpack_codes(self, begin: int, end: int) -> NDArray[np.uint8]: ...

def rows_of_places(
    file: InvertedFileView,
    words: NDArray[np.uint64],
    starts: NDArray[np.uint64],
    firsts: NDArray[np.uint64],
    universe: int,
    probes: NDArray[np.uint32],
    squared_distances: NDArray[np.float32],
    places: NDArray[np.int64],
    n_threads: int,
) -> NDArray[np.int64]: ...
def rerank(
    exact: NDArray[np.uint8],
    lower: NDArray[np.float32],
    step: NDArray[np.float32],
    queries: NDArray[np.float32],
    candidates: NDArray[np.int64],
    k: int,
    n_threads: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def pack_ids(
    values: NDArray[np.uint32], firsts: NDArray[np.uint64], universe: int, n_threads: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]: ...

class PackedIdsView:
    """Borrows its arrays and keeps them alive."""

    def __init__(
        self,
        words: NDArray[np.uint64],
        starts: NDArray[np.uint64],
        firsts: NDArray[np.uint64],
        universe: int,
        check: bool,
    ) -> None: ...
    def get_range(self, begin: int, end: int, n_threads: int) -> NDArray[np.uint32]: ...
    def select(
        self,
        wanted: NDArray[np.uint64],
        places: NDArray[np.uint64],
        n_words: int,
        n_threads: int,
    ) -> NDArray[np.uint64]: ...

def kmeans(
    X: NDArray[np.float32],
    k: int,
    max_iterations: int,
    tolerance: float,
    batch_size: int,
    seed: int,
    n_threads: int,
) -> tuple[NDArray[np.float32], float, int]: ...
def assign_nearest(
    centroids: NDArray[np.float32], X: NDArray[np.float32], n_threads: int
) -> tuple[NDArray[np.uint32], NDArray[np.float32]]: ...

class CoarseSearch:
    def __init__(self, centroids: NDArray[np.float32]) -> None: ...
    @property
    def n_bytes(self) -> int: ...
    def nearest(
        self, X: NDArray[np.float32], n_nearest: int, n_threads: int
    ) -> NDArray[np.uint32]: ...

def pack_numbers(n_parts: int, bits: int, numbers: NDArray[np.uint8]) -> NDArray[np.uint8]: ...
def unpack_numbers(
    n_parts: int, bits: int, blocks: NDArray[np.uint8], n: int
) -> NDArray[np.uint8]: ...
def train_lopq(
    X: NDArray[np.float32],
    lists: NDArray[np.uint32],
    coarse: NDArray[np.float32],
    n_parts: int,
    bits: int,
    rotation: int,
    min_rotation_rows: int,
    min_codebook_rows: int,
    max_iterations: int,
    batch_size: int,
    rounded: bool,
    rounds: int,
    seed: int,
    n_threads: int,
) -> tuple[dict[str, NDArray[Any]], int]: ...

class LopqView:
    def __init__(
        self,
        n_parts: int,
        bits: int,
        coarse: NDArray[np.float32],
        rotations: NDArray[np.float32] | NDArray[np.int8],
        rotation_of: NDArray[np.int32],
        codebooks: NDArray[np.float32] | NDArray[np.int8],
        codebook_of: NDArray[np.int32],
        rotation_steps: NDArray[np.float32] | None = None,
        codebook_steps: NDArray[np.float32] | None = None,
    ) -> None: ...
    def encode(
        self, X: NDArray[np.float32], lists: NDArray[np.uint32], n_threads: int
    ) -> NDArray[np.uint8]: ...
    def decode(
        self, numbers: NDArray[np.uint8], lists: NDArray[np.uint32]
    ) -> NDArray[np.float32]: ...
    def distances(
        self,
        queries: NDArray[np.float32],
        numbers: NDArray[np.uint8],
        lists: NDArray[np.uint32],
        n_threads: int,
    ) -> NDArray[np.float32]: ...
    def fill_lists(
        self,
        numbers: NDArray[np.uint8],
        lists: NDArray[np.uint32],
        rows: NDArray[np.uint32],
        leaf_blocks: int,
        n_threads: int,
    ) -> tuple[
        NDArray[np.uint64],
        NDArray[np.uint32],
        NDArray[np.uint8],
        NDArray[np.uint64],
        NDArray[np.uint32],
        NDArray[np.uint32],
    ]: ...

class InvertedFileView:
    def __init__(
        self,
        quantizer: LopqView,
        first_block: NDArray[np.uint64],
        sizes: NDArray[np.uint32],
        blocks: NDArray[np.uint8],
        leaf_blocks: int,
        first_leaf: NDArray[np.uint64],
        present: NDArray[np.uint32],
    ) -> None: ...
    def take(
        self, begin: int, end: int, n_threads: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]: ...
    def search(
        self,
        queries: NDArray[np.float32],
        probes: NDArray[np.uint32],
        k: int,
        max_leaves: int,
        eps: float,
        allowed: NDArray[np.uint64],
        n_threads: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
