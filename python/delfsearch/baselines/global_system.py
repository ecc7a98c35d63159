"""What the global baselines share: photos in, one vector a photo out, in order, bounded memory."""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator

from delfsearch._validation import check_integer, check_n_jobs
from delfsearch.baselines.trunks import Trunk, load_trunk
from delfsearch.errors import PhotoError
from delfsearch.extraction.photo_lists import check_photos
from delfsearch.extraction.photos import DEFAULT_MAX_PIXELS, open_photo
from delfsearch.extraction.pipeline import run_in_order
from delfsearch.extraction.reduction import l2_normalize

_LOADING = threading.Lock()


class GlobalSystem(BaseEstimator):  # type: ignore[misc]
    """One float32 vector (d,) of length 1 per photo: fit, transform, stream.

    Subclasses say at which sizes a photo is read and what becomes of its feature maps; they hold
    weights (see load_trunk), query_expansion (rounds that GlobalIndex.query should make), precision
    and device (as in DelfExtractor) and n_jobs (processor threads, -1 for all; the vectors do not
    depend on it).
    """

    kind: Literal["global"] = "global"
    weights: str | os.PathLike[str] | None
    query_expansion: int
    precision: str
    device: str
    n_jobs: int | None
    _family: str  # name without query expansion

    @property
    def name(self) -> str:
        """Name in the registry, "+qe" where query expansion is asked for."""
        return self._family + ("+qe" if self.query_expansion else "")

    @property
    @abstractmethod
    def needs(self) -> Literal["nothing", "photos", "labels"]:
        """What fit has yet to see before stream: "photos", or with "labels" of what matches."""

    @property
    @abstractmethod
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""

    @abstractmethod
    def fit(self, photos: Iterable[Any], y: Any = None) -> GlobalSystem:
        """Learn what the vectors need from photos that are not evaluated; return self."""

    @abstractmethod
    def _sizes(self) -> Sequence[int | None]:
        """Return the longer sides at which a photo is read; None: at most max_side, not enlarged"""

    @abstractmethod
    def _pool(self, rgb: NDArray[np.uint8], trunk: Trunk) -> NDArray[np.float32]:
        """Return the raw vectors (r, c) of one copy of a photo."""

    @abstractmethod
    def _finish(self, copies: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Turn the raw vectors of a photo's copies into its vector (d,)."""

    @abstractmethod
    def _check_ready(self) -> None:
        """Raise NotFittedError where fit has yet to learn something."""

    def transform(self, photos: Iterable[Any]) -> NDArray[np.float32]:
        """Return the vectors (n, d) float32; raises PhotoError for the first unreadable photo."""
        rows = []
        for _, vector in self.stream(photos):
            if isinstance(vector, PhotoError):
                raise vector
            rows.append(vector)
        return np.stack(rows) if rows else np.zeros((0, 0), np.float32)

    def stream(
        self, photos: Iterable[Any]
    ) -> Iterator[tuple[Any, NDArray[np.float32] | PhotoError]]:
        """Yield (photo, its vector (d,) float32 of length 1) in input order and bounded memory.

        A photo that cannot be read yields its PhotoError and does not stop the rest.
        Raises NotFittedError where fit has yet to learn something; WeightsError.
        """
        self._check_ready()
        for photo, copies in self._stream_raw(check_photos(photos)):
            yield photo, copies if isinstance(copies, PhotoError) else self._finish(copies)

    def _stream_raw(
        self, photos: Iterable[Any]
    ) -> Iterator[tuple[Any, list[NDArray[np.float32]] | PhotoError]]:
        trunk, sizes = self._trunk(), self._sizes()

        def read(photo: Any) -> tuple[tuple[int, int], list[NDArray[np.uint8]]]:
            largest = max((size for size in sizes if size is not None), default=None)
            limit = getattr(self, "max_side", None) if largest is None else 2 * largest
            opened = open_photo(photo, max_side=limit, max_pixels=DEFAULT_MAX_PIXELS)
            return opened.size, [_resized(opened.image, size, trunk.stride) for size in sizes]

        def compute(_: tuple[int, int], rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
            return self._pool(rgb, trunk)

        def finish(
            _: tuple[int, int], copies: list[NDArray[np.float32]]
        ) -> list[NDArray[np.float32]]:
            return copies

        n_workers = check_n_jobs(self.n_jobs) or os.cpu_count() or 1
        return run_in_order(photos, read=read, compute=compute, finish=finish, n_workers=n_workers)

    def _trunk(self) -> Trunk:
        """Return the loaded network; load it when first used or when a parameter changed."""
        key = (os.fspath(self._weights_or_default()), self.precision, self.device)
        loaded: tuple[Any, Trunk] | None = getattr(self, "_loaded", None)
        if loaded is None or loaded[0] != key:
            with _LOADING:
                trunk = load_trunk(key[0], precision=self.precision, device=self.device)
                loaded = self._loaded = (key, trunk)
        return loaded[1]

    @abstractmethod
    def _weights_or_default(self) -> str | os.PathLike[str]:
        """Return weights, or what stands in for the paper's where it is None."""

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {key: value for key, value in state.items() if key != "_loaded"}


class Projection:
    """Rows (r, c) float32 -> L2 (optional), A x + b, L2, as one product: PCA or a linear layer.

    matrix : (d, c). offset : (d,). normalize : whether rows are first scaled to length 1.
    """

    def __init__(
        self, matrix: NDArray[Any], offset: NDArray[Any], *, normalize: bool = True
    ) -> None:
        self._matrix = np.ascontiguousarray(np.asarray(matrix, np.float32).T)
        self._offset = np.asarray(offset, np.float32)
        self._normalize = normalize

    def __call__(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (r, d) rows of length 1."""
        if self._normalize:
            rows = l2_normalize(rows)
        projected = rows @ self._matrix
        projected += self._offset
        result: NDArray[np.float32] = l2_normalize(projected)
        return result


def check_rounds(query_expansion: Any) -> int:
    """Return query_expansion as an int at least 0."""
    return check_integer(query_expansion, "query_expansion", minimum=0)


def _resized(image: Image.Image, size: int | None, least: int) -> NDArray[np.uint8]:
    """Return the pixels (h, w, 3) with a longer side of size, each side at least one cell."""
    ratio = 1.0 if size is None else size / max(image.size)
    width, height = (max(least, round(side * ratio)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)
