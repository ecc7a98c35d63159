"""The scores of all pyramid levels as one map over the photo, for pictures. Source: Fig. 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from delfsearch._validation import check_choice
from delfsearch.extraction.receptive_field import to_photo_pixels

MERGES = ("mean", "max")


class ScoreLevel(Protocol):
    """What pictures need to know of a pyramid level, as DelfExtractor.score_map returns it."""

    @property
    def scale(self) -> float:
        """The pyramid scale."""
        ...

    @property
    def scores(self) -> NDArray[np.float32]:
        """(h, w) float32, one score per cell."""
        ...

    @property
    def keypoints_xy(self) -> NDArray[np.float32]:
        """(h, w, 2) float32, centres of the cells, pixels of the original photo."""
        ...


def merge_levels(
    levels: Sequence[ScoreLevel],
    photo_size: tuple[int, int],
    *,
    map_size: tuple[int, int] | None = None,
    merge: str = "mean",
) -> NDArray[np.float32]:
    """Merge the scores of all levels into one map over the photo.

    levels : what DelfExtractor.score_map returned for the photo.
    photo_size : (width, height) of the original photo, in pixels.
    map_size : (width, height) of the map, which covers the photo; None means photo_size.
    merge : "mean" of the levels, or "max", the best of any, which is what selection looks at.
    Returns (height, width) float32. Between the centres of cells scores are linear, beyond the
    outermost ones constant. Raises ValueError where no level has a cell.
    Source: Fig. 3. Differs: the paper does not say which scales its maps show.
    """
    check_choice(merge, "merge", MERGES)
    size = photo_size if map_size is None else map_size
    dense = []
    for level in levels:
        if np.size(level.scores) == 0:
            continue
        centres = np.asarray(level.keypoints_xy, np.float64)
        across = _interpolation(centres[0, :, 0], size[0], photo_size[0])
        down = _interpolation(centres[:, 0, 1], size[1], photo_size[1])
        dense.append(down @ np.asarray(level.scores, np.float64) @ across.T)
    if not dense:
        raise ValueError(f"levels must have at least one cell; got {len(levels)} without any")
    merged = np.mean(dense, axis=0) if merge == "mean" else np.max(dense, axis=0)
    return np.asarray(merged, np.float32)


def _interpolation(
    centres: NDArray[np.float64], map_side: int, photo_side: int
) -> NDArray[np.float64]:
    """Return the (map_side, n) weights that interpolate values at n centres to a map's pixels."""
    pixels = to_photo_pixels(np.arange(map_side, dtype=np.float64), map_side, photo_side)
    return np.stack([np.interp(pixels, centres, unit) for unit in np.eye(len(centres))], axis=1)
