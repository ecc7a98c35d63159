"""ReductionTrainer: L2-PCA-L2 learned on photos and written into a weights file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sklearn.base import BaseEstimator

from delfsearch.extraction.extractor import DelfExtractor
from delfsearch.extraction.weights import load_weights
from delfsearch.extraction.weights_io.safetensors_files import digest_arrays
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.results import check_licence, save_learned, trained_licence
from delfsearch.training.trainer import PathLike


class ReductionTrainer(BaseEstimator):  # type: ignore[misc]
    """Learn the reduction of descriptors on the features that an extractor keeps of some photos.

    weights, scales, max_side, max_features, score, border_cells, precision, device, n_jobs,
        random_state, verbose : as in DelfExtractor, whose fit learns.
    n_components : directions kept, 1 ... 1024; an extractor may use fewer of them.
    n_photos : photos that are sampled.
    Learned: weights_, a Weights; pca_, the PcaReduction; fit_sample_ = (photos, descriptors), how
        many it was learned from.
    Source: Sec. 3.4.
    """

    def __init__(
        self,
        weights: PathLike = "resnet50-imagenet",
        *,
        n_components: int = 128,
        n_photos: int = 500,
        scales: str | tuple[float, ...] = "0.25-2",
        max_side: int | None = 1024,
        max_features: int = 1000,
        score: str = "auto",
        border_cells: int = 0,
        precision: str = "auto",
        device: str = "auto",
        n_jobs: int | None = -1,
        random_state: int = 0,
        verbose: int = 0,
    ) -> None:
        self.weights = weights
        self.n_components = n_components
        self.n_photos = n_photos
        self.scales = scales
        self.max_side = max_side
        self.max_features = max_features
        self.score = score
        self.border_cells = border_cells
        self.precision = precision
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        photos: LabelledPhotos | Iterable[Any],
        y: Any = None,
        *,
        licence: str | None = None,
    ) -> ReductionTrainer:
        """Learn from a sample of the photos; return self.

        photos : LabelledPhotos, or paths, PIL images or arrays; unreadable ones are left out.
        licence : of the photos, as in DescriptorTrainer.fit.
        Raises ValueError where they have fewer features than n_components.
        """
        check_licence(licence)
        source = "photos"
        if isinstance(photos, LabelledPhotos):
            source = photos.source
            photos = [photos.file(row) for row in range(len(photos))]
        params = self.get_params(deep=False)
        params["n_fit_photos"] = params.pop("n_photos")
        extractor = DelfExtractor(**params).fit(photos)
        self.pca_ = extractor.pca_
        self.fit_sample_ = extractor.fit_sample_
        n_photos, n_descriptors = extractor.fit_sample_
        before = load_weights(self.weights)
        learned = dataclasses.replace(
            before,
            name=f"with a PCA of {source}",
            pca=extractor.pca_.to_arrays(),
        )
        self.weights_ = dataclasses.replace(
            learned,
            sha256=digest_arrays(learned.to_arrays()),
            provenance=(
                f"{learned.provenance}; PCA of {n_descriptors} descriptors of {n_photos} photos "
                f"({source})"
            ),
            licence=trained_licence(before, licence),
        )
        return self

    def save(self, path: PathLike, *, half: bool = False) -> Path:
        """Write the weights with the reduction in them, instead of one that they had.

        path : ends in .safetensors. half : in half precision, all but the variances.
        Raises NotFittedError before fit.
        """
        return save_learned(self, path, half)
