"""LocalFeatures: the one value that flows from extraction through index and verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_matrix, check_points, check_vector


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """The local features of one photo, best score first where an extractor made them.

    keypoints_xy : (n, 2) float32, pixels of the original photo (EXIF orientation applied), pixel
        centres at integers.
    descriptors : (n, d) float32, or uint8 codes; L2-normalised where DelfExtractor made them.
    scores : (n,) float32, higher is better; ones if omitted.
    scales : (n,) float32, side of the described region over its side at pyramid scale 1 (pyramid
        scale 0.25 -> 4.0); ones if omitted.
    image_size : (width, height) in pixels; (0, 0) where unknown.
    Raises ValueError where shapes disagree or a value is not finite.
    Any local feature fits: everything after extraction takes LocalFeatures from anywhere.
    """

    keypoints_xy: NDArray[np.float32]
    descriptors: NDArray[Any]
    scores: NDArray[np.float32] = None  # type: ignore[assignment]  # ones if omitted
    scales: NDArray[np.float32] = None  # type: ignore[assignment]  # ones if omitted
    image_size: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        raw = np.asarray(self.descriptors)
        if raw.dtype == np.uint8 and raw.ndim == 2:
            descriptors: NDArray[Any] = np.ascontiguousarray(raw)
        else:
            descriptors = check_matrix(raw, "descriptors")
        n = len(descriptors)
        keypoints_xy = check_points(self.keypoints_xy, "keypoints_xy", n_rows=n)
        scores = np.ones(n, np.float32) if self.scores is None else self.scores
        scales = np.ones(n, np.float32) if self.scales is None else self.scales
        try:
            width, height = (int(side) for side in self.image_size)
        except (TypeError, ValueError):
            raise ValueError(
                f"image_size must be (width, height); got {self.image_size!r}"
            ) from None
        if width < 0 or height < 0:
            raise ValueError(f"image_size must not be negative; got {self.image_size!r}")
        values = {
            "descriptors": descriptors,
            "keypoints_xy": keypoints_xy,
            "scores": check_vector(scores, "scores", np.float32, n=n),
            "scales": check_vector(scales, "scales", np.float32, n=n),
            "image_size": (width, height),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.descriptors)

    def __repr__(self) -> str:
        return (
            f"LocalFeatures(n={len(self)}, dimension={self.dimension}, "
            f"image_size={self.image_size})"
        )

    @property
    def dimension(self) -> int:
        """Number of descriptor columns d."""
        return int(self.descriptors.shape[1])

    def __getitem__(self, rows: Any) -> LocalFeatures:
        """Return the features of a slice, mask or index array, in that order."""
        if isinstance(rows, (int, np.integer)):
            raise TypeError("index LocalFeatures with a slice, mask or array of rows, not one row")
        return LocalFeatures(
            keypoints_xy=self.keypoints_xy[rows],
            descriptors=self.descriptors[rows],
            scores=self.scores[rows],
            scales=self.scales[rows],
            image_size=self.image_size,
        )

    @staticmethod
    def empty(dimension: int, image_size: tuple[int, int] = (0, 0)) -> LocalFeatures:
        """Return the features of a photo in which none was found."""
        return LocalFeatures(
            keypoints_xy=np.zeros((0, 2), np.float32),
            descriptors=np.zeros((0, dimension), np.float32),
            image_size=image_size,
        )
