"""Asking for a part of a photo: crop, then extract; keypoints stay in pixels of the whole photo."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from delfsearch._validation import check_real
from delfsearch.features import LocalFeatures

Box = tuple[float, float, float, float]


class PhotoPart(NamedTuple):
    """photo : a PIL image that begins at origin (x, y) of a photo of size (width, height)."""

    photo: Any
    origin: tuple[int, int]
    size: tuple[int, int]

    def to_whole(self, features: LocalFeatures) -> LocalFeatures:
        """Return features of the part as features of the whole photo."""
        return dataclasses.replace(
            features,
            keypoints_xy=features.keypoints_xy + np.array(self.origin, np.float32),
            image_size=self.size,
        )


def crop(photo: Any, box: Box, *, max_pixels: int | None = None) -> PhotoPart:
    """Cut a box out of a path, PIL image or array; the box grows to whole pixels.

    box : (x0, y0, x1, y1) in pixels of the upright photo; what lies outside is cut off.
    max_pixels : photos of more are refused; None means the default.
    Raises PhotoError where the photo cannot be read, ValueError where the box is malformed or lies
    outside the photo.
    """
    from delfsearch.extraction.photos import DEFAULT_MAX_PIXELS, open_photo

    x0, y0, x1, y1 = check_box(box)
    image = open_photo(photo, max_pixels=max_pixels or DEFAULT_MAX_PIXELS).image
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(image.width, math.ceil(x1)), min(image.height, math.ceil(y1))
    if left >= right or top >= bottom:
        raise ValueError(
            f"box must lie in the photo of {image.width} x {image.height} pixels; got {box}"
        )
    return PhotoPart(image.crop((left, top, right, bottom)), (left, top), image.size)


def inside(features: LocalFeatures, box: Box) -> LocalFeatures:
    """Return the features whose keypoints lie in the box."""
    x0, y0, x1, y1 = check_box(box)
    x, y = features.keypoints_xy.T
    return features[(x >= x0) & (x < x1) & (y >= y0) & (y < y1)]


def check_box(box: Any) -> Box:
    """Return box as four finite numbers with x0 < x1 and y0 < y1."""
    try:
        x0, y0, x1, y1 = (check_real(value, "box") for value in box)
    except (TypeError, ValueError):
        raise ValueError(f"box must be four finite numbers (x0, y0, x1, y1); got {box!r}") from None
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"box must have x0 < x1 and y0 < y1; got {box!r}")
    return x0, y0, x1, y1
