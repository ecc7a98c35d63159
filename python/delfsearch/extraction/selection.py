"""Which cells of all pyramid levels become features: non-maximum suppression, then the best.

Boxes are the receptive fields in photo pixels, not clipped, all levels compete together. Source:
Sec. 3.3, Table 2. Differs: our box has the field's full side; the official code's is a pixel less.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from delfsearch import _core
from delfsearch.extraction.network import N_CHANNELS
from delfsearch.extraction.runtime import Cells


class Selected(NamedTuple):
    """The selected cells, best score first; ties by smaller scale, then row-major cell."""

    keypoints_xy: NDArray[np.float32]
    scales: NDArray[np.float32]
    scores: NDArray[np.float32]
    features: NDArray[np.float32]

    @staticmethod
    def none(n_channels: int = N_CHANNELS) -> Selected:
        """Return what is selected of a photo without features."""
        return Selected(
            np.zeros((0, 2), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
            np.zeros((0, n_channels), np.float32),
        )


def select(levels: list[Cells], *, max_features: int, iou_threshold: float) -> Selected:
    """Keep at most max_features cells of a photo (n_features, 1024), suppressing by IoU."""
    kept = keep(levels, max_features=max_features, iou_threshold=iou_threshold)
    features = np.empty((len(kept), levels[0].features.shape[1]), np.float32)
    begin = 0
    for cells in levels:
        end = begin + len(cells.scores)
        here = np.flatnonzero((kept >= begin) & (kept < end))
        features[here] = cells.features[kept[here] - begin]
        begin = end
    return selected(levels, kept, features)


def keep(levels: list[Cells], *, max_features: int, iou_threshold: float) -> NDArray[np.int64]:
    """Return the numbers of the cells that `select` keeps, of all levels in a row, best first."""
    scores = np.concatenate([cells.scores for cells in levels])
    xy = np.concatenate([cells.keypoints_xy for cells in levels])
    half_boxes = np.asarray([cells.half_box for cells in levels], np.float32)
    half = np.repeat(half_boxes, [len(cells.scores) for cells in levels], axis=0)
    boxes = np.concatenate([xy - half, xy + half], axis=1)
    kept = _core.non_maximum_suppression(boxes, scores, iou_threshold, max_features)
    return np.asarray(kept, np.int64)


def selected(
    levels: list[Cells], kept: NDArray[np.int64], features: NDArray[np.float32]
) -> Selected:
    """Return the kept cells of `keep` with their features."""
    # The region's side over its side at pyramid scale 1: scale 0.25 -> 4.0.
    scales = np.repeat(
        np.asarray([1.0 / cells.scale for cells in levels], np.float32),
        [len(cells.scores) for cells in levels],
    )
    scores = np.concatenate([cells.scores for cells in levels])
    xy = np.concatenate([cells.keypoints_xy for cells in levels])
    return Selected(xy[kept], scales[kept], scores[kept], features)
