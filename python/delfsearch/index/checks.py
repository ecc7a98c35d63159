"""Checks that DelfIndex makes of what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_vector
from delfsearch.features import LocalFeatures
from delfsearch.index.uniform_quantizer import MAX_MAGNITUDE


def check_features(features: Any, name: str) -> LocalFeatures:
    """Return features if they are LocalFeatures whose descriptors can be indexed."""
    if not isinstance(features, LocalFeatures):
        raise TypeError(f"{name} must be LocalFeatures; got {type(features).__name__}")
    descriptors = features.descriptors
    if descriptors.size and descriptors.dtype != np.uint8:
        largest = float(np.abs(descriptors).max())
        if not largest <= MAX_MAGNITUDE:
            raise ValueError(
                f"descriptors of {name} must lie within +-{MAX_MAGNITUDE:g}; got {largest:g}. "
                "Scale them"
            )
    return features


def check_photos(features: Any) -> list[LocalFeatures]:
    """Return features as a list with one LocalFeatures a photo."""
    if isinstance(features, LocalFeatures):
        raise TypeError(
            "features must be a list with one LocalFeatures per photo; got one LocalFeatures. "
            "Pass [features]"
        )
    if not isinstance(features, Iterable):
        raise TypeError(f"features must be a list of LocalFeatures; got {type(features).__name__}")
    return [check_features(photo, "features") for photo in features]


def as_ids(ids: Any, name: str, n: int | None = None) -> NDArray[np.int64]:
    """Return ids as (n,) int64."""
    if isinstance(ids, Iterable) and not isinstance(ids, np.ndarray):
        ids = list(ids)
    values = np.asarray(ids)
    if values.ndim == 0:
        raise TypeError(f"{name} must be a sequence of integers; got {ids!r}. Pass [{ids!r}]")
    # An empty list is float64 to NumPy.
    values = values if values.size else np.zeros(0, np.int64)
    return np.asarray(check_vector(values, name, np.int64, n=n))


def check_ids(ids: Any, n: int, name: str) -> NDArray[np.int64]:
    """Return ids as (n,) int64, distinct and at least 0."""
    image_ids = as_ids(ids, name, n)
    if len(image_ids) and image_ids.min() < 0:
        raise ValueError(f"{name} must be at least 0; got {image_ids.min()}")
    if len(np.unique(image_ids)) != len(image_ids):
        raise ValueError(f"{name} must be distinct; some repeat")
    return image_ids


def dimension_of(photos: Sequence[LocalFeatures]) -> int:
    """Return the dimension that all photos with features share."""
    filled = [photo for photo in photos if len(photo)]
    dimension = (filled or list(photos))[0].dimension
    for photo in filled:
        if photo.dimension != dimension:
            raise ValueError(
                f"descriptors must have {dimension} columns (as in the first photo); "
                f"got {photo.dimension}"
            )
    return dimension
