"""LIFT features, from the files that its released code writes (extra `hdf5`).

The released code (and its later TensorFlow version) ends with one HDF5 file a photo that holds
keypoints (n, 13) and descriptors (n, 128). A keypoint's columns are x, y, scale, angle in degrees,
response, an octave as OpenCV packs it, and seven that describe its ellipse. Positions are
OpenCV's: pixel centres at integers. The network itself is not part of this library.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from delfsearch.baselines.feature_files import _datasets, _open_hdf5, photo_name
from delfsearch.errors import PhotoError
from delfsearch.features import LocalFeatures

_X, _Y, _SCALE, _RESPONSE = 0, 1, 2, 4
_BASE_SCALE = 1.6  # OpenCV's smallest, which the octave column refers to


class LiftFeatures:
    """A local system that reads LIFT's released output files.

    folder : where they lie. pattern : a photo's file relative to it, with {path} its path relative
        to root without suffix, {name} its file name without folder, {stem} that without suffix.
    root : the photos' folder; None takes photos as given. max_features : kept, best responses
        first, ties in the file's order.
    Source: Sec. 5.3 (LIFT, 128-D).
    """

    kind: Literal["local"] = "local"
    needs: Literal["nothing"] = "nothing"
    name = "lift"
    max_squared_distance: float | None = None
    suggested_min_inliers: int | None = None

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        pattern: str = "{stem}_desc.h5",
        root: str | os.PathLike[str] | None = None,
        max_features: int = 1000,
    ) -> None:
        self.folder = Path(folder)
        self.pattern = pattern
        self.root = None if root is None else Path(root)
        self.max_features = max_features

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        return f"LIFT as its released code wrote it to {self.folder.name}"

    def fit(self, photos: Iterable[Any], y: Any = None) -> LiftFeatures:
        """Do nothing, as there is nothing to learn; return self."""
        return self

    def stream(self, photos: Iterable[Any]) -> Iterator[tuple[Any, LocalFeatures | PhotoError]]:
        """Yield (photo, its features); a photo without a file yields a PhotoError."""
        for photo in photos:
            name = photo_name(photo, self.root)
            plain = Path(name)
            path = self.folder / self.pattern.format(
                path=plain.with_suffix("").as_posix(), name=plain.name, stem=plain.stem
            )
            try:
                features = read_lift(path)
            except ValueError as error:
                yield photo, PhotoError(f"no LIFT features of {name!r}: {error}")
            else:
                yield photo, features[: self.max_features]


def read_lift(path: str | os.PathLike[str]) -> LocalFeatures:
    """Return the features in one file of the released LIFT code, best response first.

    scales are LIFT's over 1.6. Raises ValueError where the file is damaged or of another layout;
    ImportError where h5py is not installed.
    """
    with _open_hdf5(Path(path)) as file:
        arrays = _datasets(file, "/", ("keypoints", "descriptors"), ())
    keypoints, descriptors = arrays["keypoints"], arrays["descriptors"]
    if keypoints.ndim != 2 or keypoints.shape[1] < _RESPONSE + 1:
        raise ValueError(f"keypoints of {path} must be (n, 13); got {keypoints.shape}")
    if descriptors.ndim != 2 or len(descriptors) != len(keypoints):
        raise ValueError(
            f"descriptors of {path} must be (n, 128) for {len(keypoints)} keypoints; "
            f"got {descriptors.shape}"
        )
    order = np.argsort(-keypoints[:, _RESPONSE], kind="stable")
    keypoints = keypoints[order]
    return LocalFeatures(
        keypoints[:, [_X, _Y]],
        descriptors[order],
        keypoints[:, _RESPONSE],
        (keypoints[:, _SCALE] / _BASE_SCALE).astype(np.float32),
    )
