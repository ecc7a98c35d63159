"""SIFT and RootSIFT, as OpenCV computes them (extra `opencv`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from delfsearch.baselines.local_system import Detector, LocalSystem
from delfsearch.baselines.optional import import_optional
from delfsearch.features import LocalFeatures

_BASE_DIAMETER = 3.2  # OpenCV's keypoint size at the base sigma of 1.6


class SiftExtractor(LocalSystem):
    """Extract SIFT features with OpenCV.

    root : RootSIFT (L1, square root: Arandjelovic and Zisserman), else SIFT scaled to length 1.
    max_features : OpenCV's nfeatures, the strongest.
    n_components : dimensions kept by PCA, as fit learned it; None keeps the 128.
    max_side, n_fit_photos, n_jobs, random_state : see LocalSystem.
    Differs: where several keypoints are equally strong OpenCV may keep one or two more.
    """

    def __init__(
        self,
        *,
        root: bool = True,
        max_side: int | None = 1024,
        max_features: int = 1000,
        n_components: int | None = None,
        n_fit_photos: int = 200,
        n_jobs: int | None = -1,
        random_state: Any = 0,
    ) -> None:
        self.root = root
        self.max_side = max_side
        self.max_features = max_features
        self.n_components = n_components
        self.n_fit_photos = n_fit_photos
        self.n_jobs = n_jobs
        self.random_state = random_state

    @property
    def name(self) -> str:  # type: ignore[override]
        """ "rootsift" or "sift"."""
        return "rootsift" if self.root else "sift"

    @property
    def suggested_min_inliers(self) -> int | None:  # type: ignore[override]
        """min_inliers for the Verifier, docs/baselines.md; None where it was not measured."""
        return 47 if self.root and self.n_components is None else None

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        reduced = "" if self.n_components is None else f", PCA to {self.n_components}"
        return f"{'RootSIFT' if self.root else 'SIFT'} of OpenCV{reduced}"

    def _detector(self) -> Detector:
        cv2 = import_optional("cv2", extra="opencv", purpose="SIFT")
        limit, root = self.max_features, self.root

        def detector(image: Image.Image) -> LocalFeatures:
            # One per photo: an OpenCV object is not for several threads at once.
            sift = cv2.SIFT_create(nfeatures=limit)
            keypoints, found = sift.detectAndCompute(np.asarray(image.convert("L")), None)
            if found is None or len(keypoints) == 0:
                return LocalFeatures.empty(128, image.size)
            descriptors = np.asarray(found, np.float32)
            if root:
                descriptors = np.sqrt(descriptors / _positive(descriptors.sum(1)))
            descriptors = descriptors / _positive(np.linalg.norm(descriptors, axis=1))
            responses = np.array([k.response for k in keypoints], np.float32)
            features = LocalFeatures(
                np.array([k.pt for k in keypoints], np.float32),
                descriptors,
                responses,
                np.array([k.size for k in keypoints], np.float32) / _BASE_DIAMETER,
                image.size,
            )
            return features[np.argsort(-responses, kind="stable")]

        return detector


def _positive(lengths: Any) -> Any:
    return np.maximum(lengths, 1e-12)[:, None]
