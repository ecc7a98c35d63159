"""What the local baselines share: photos in, LocalFeatures out, in order and bounded memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from os import cpu_count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from delfsearch._validation import check_integer, check_n_jobs, check_seed
from delfsearch.errors import PhotoError
from delfsearch.extraction.photo_lists import check_photos, sample_photos
from delfsearch.extraction.photos import DEFAULT_MAX_PIXELS, open_photo
from delfsearch.extraction.pipeline import run_in_order
from delfsearch.extraction.receptive_field import to_photo_pixels
from delfsearch.extraction.reduction import PcaReduction
from delfsearch.features import LocalFeatures

Detector = Callable[[Image.Image], LocalFeatures]


class LocalSystem(BaseEstimator):  # type: ignore[misc]
    """A local feature behind the interface that DelfExtractor has: fit, transform, stream.

    Subclasses say how one photo is described; they hold the parameters max_side (longer side that
    photos are resized down to, None keeps them), max_features (kept per photo, best scores first),
    n_components (dimensions kept by L2-PCA-L2, None keeps all, not projected), n_fit_photos
    (photos that fit samples), n_jobs (photos at a time, -1 for all cores; the features do not
    depend on it) and random_state (seeds the sample of fit).
    Learned: pca_, where n_components is not None.
    """

    kind: Literal["local"] = "local"
    name: str
    max_side: int | None
    max_features: int
    n_components: int | None
    n_fit_photos: int
    n_jobs: int | None
    random_state: Any
    # Squared L2 beyond which two descriptors are no match; None: not known for these features.
    max_squared_distance: float | None = None
    # min_inliers for the Verifier as docs/baselines.md measures it; None: not measured.
    suggested_min_inliers: int | None = None

    @property
    def needs(self) -> Literal["nothing", "photos"]:
        """What fit has yet to see before stream: "photos", of things that are not evaluated."""
        learned = self.n_components is None or hasattr(self, "pca_")
        return "nothing" if learned else "photos"

    @property
    @abstractmethod
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""

    @abstractmethod
    def _detector(self) -> Detector:
        """Return what turns an RGB photo into unreduced features, in that photo's pixels."""

    def fit(self, photos: Iterable[Any], y: Any = None) -> LocalSystem:
        """Learn the PCA from at most n_fit_photos photos, where there is one to learn; return self.

        photos : paths, PIL images or arrays, of things that are not evaluated; those that cannot
            be read are left out. Raises ValueError where fewer descriptors than n_components are
            found.
        """
        photos = check_photos(photos)
        if self.n_components is None:
            return self
        check_integer(self.n_components, "n_components", minimum=1)
        limit = check_integer(self.n_fit_photos, "n_fit_photos", minimum=1)
        sample = sample_photos(photos, limit, check_seed(self.random_state))
        blocks = (
            features.descriptors
            for _, features in self._stream_raw(sample)
            if isinstance(features, LocalFeatures) and len(features)
        )
        self.pca_ = fit_pca(self.n_components, blocks, f"the {len(sample)} photos given")
        return self

    def transform(self, photos: Iterable[Any]) -> list[LocalFeatures]:
        """Return the features of each photo; raises PhotoError for the first that is unreadable."""
        results = []
        for _, features in self.stream(photos):
            if isinstance(features, PhotoError):
                raise features
            results.append(features)
        return results

    def stream(self, photos: Iterable[Any]) -> Iterator[tuple[Any, LocalFeatures | PhotoError]]:
        """Yield (photo, its features) in input order and bounded memory.

        A photo that cannot be read yields its PhotoError and does not stop the rest.
        Raises NotFittedError where fit has not learned the PCA yet.
        """
        pca: PcaReduction | None = None
        if self.n_components is not None:
            pca = getattr(self, "pca_", None)
            if pca is None or len(pca.components_) != self.n_components:
                raise NotFittedError(
                    f"{type(self).__name__} has no PCA to {self.n_components} dimensions: call "
                    "fit(photos) with photos that are not evaluated, or set n_components=None"
                )
        for photo, features in self._stream_raw(check_photos(photos)):
            if isinstance(features, LocalFeatures) and pca is not None:
                features = _reduced(features, pca)
            yield photo, features

    def _stream_raw(
        self, photos: Iterable[Any]
    ) -> Iterator[tuple[Any, LocalFeatures | PhotoError]]:
        check_integer(self.max_features, "max_features", minimum=1)
        if self.max_side is not None:
            check_integer(self.max_side, "max_side", minimum=32)
        detector = self._detector()

        def read(photo: Any) -> tuple[tuple[int, int], list[Image.Image]]:
            opened = open_photo(photo, max_side=self.max_side, max_pixels=DEFAULT_MAX_PIXELS)
            return opened.size, [opened.image]

        def compute(size: tuple[int, int], image: Image.Image) -> LocalFeatures:
            return in_photo_pixels(detector(image), image.size, size)

        def finish(size: tuple[int, int], pieces: list[LocalFeatures]) -> LocalFeatures:
            return pieces[0]

        n_workers = check_n_jobs(self.n_jobs) or cpu_count() or 1
        return run_in_order(photos, read=read, compute=compute, finish=finish, n_workers=n_workers)


def fit_pca(
    n_components: int, blocks: Iterable[NDArray[Any]], source: str, *, whiten: bool = False
) -> PcaReduction:
    """Learn a PCA from blocks of descriptors; source : what they are of, for the error."""
    try:
        return PcaReduction(n_components, whiten=whiten).fit_blocks(blocks)
    except ValueError as error:
        raise ValueError(
            f"cannot learn a PCA to {n_components} dimensions from {source}: {error}"
        ) from None


def grey_of(image: Image.Image) -> NDArray[np.float32]:
    """Return an RGB photo as grey (h, w) float32 in 0 ... 1."""
    grey: NDArray[np.float32] = np.asarray(image.convert("L"), np.float32) / np.float32(255.0)
    return grey


def in_photo_pixels(
    features: LocalFeatures, found_in: tuple[int, int], photo: tuple[int, int]
) -> LocalFeatures:
    """Move features from a resized copy (width, height) to the photo it was made of."""
    xy = features.keypoints_xy
    scales = features.scales
    if found_in != photo:
        axes = [to_photo_pixels(xy[:, i].astype(np.float64), found_in[i], photo[i]) for i in (0, 1)]
        xy = np.stack(axes, axis=1).astype(np.float32)
        scales = scales * np.float32(max(photo) / max(found_in))
    return LocalFeatures(xy, features.descriptors, features.scores, scales, photo)


def _reduced(features: LocalFeatures, pca: PcaReduction) -> LocalFeatures:
    if len(features) == 0:
        return LocalFeatures.empty(len(pca.components_), features.image_size)
    return LocalFeatures(
        features.keypoints_xy,
        pca.transform(features.descriptors),
        features.scores,
        features.scales,
        features.image_size,
    )
