"""Two views of one thing, and which of their points show the same spot.

The two views are random perspective crops: of one photo, where the crops say what corresponds, or
of two photos of the same thing, between which matches were verified (matched_photos.py). Source:
ours; the paper trains descriptors by classification alone (Sec. 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from delfsearch._validation import check_integer, check_real
from delfsearch.training.views import MIN_SQUARE, recolour

# Of two photos, a view is at most so much narrower than its photo; and never fewer pixels wide.
_LEAST_CROP_PIXELS = 96.0
_MATCHED_SHIFT = 0.12
_MATCHED_ZOOM = 1.4
# Points nearer to a view's edge than this have no cell around them.
_MARGIN = 8.0
# Matches used of a pair of photos at a time.
_MAX_POINTS = 100


@dataclass(frozen=True, kw_only=True)
class PairViews:
    """How two views are made.

    side : of a view, in pixels. max_side : of the photos that the views are cropped from.
    min_crop : smallest side of a crop over the shorter side of the photo.
    zoom : largest ratio of the sides of the two crops, either way, >= 1.
    shift : displacement of the second crop over the first's side (standard deviation).
    turn : largest turn of a crop, in degrees. corner_shift : largest displacement of its corners
        over its side. colour : as in Views.
    """

    side: int = 224
    max_side: int = 720
    min_crop: float = 0.45
    zoom: float = 2.0
    shift: float = 0.15
    turn: float = 15.0
    corner_shift: float = 0.1
    colour: float = 0.6

    def check(self) -> None:
        """Refuse sizes and amounts that make no sense."""
        check_integer(self.side, "side", minimum=2 * MIN_SQUARE)
        check_integer(self.max_side, "max_side", minimum=self.side)
        check_real(self.min_crop, "min_crop", minimum=0.05, maximum=1.0)
        check_real(self.zoom, "zoom", minimum=1.0, maximum=8.0)
        check_real(self.shift, "shift", minimum=0.0, maximum=1.0)
        check_real(self.turn, "turn", minimum=0.0, maximum=180.0)
        check_real(self.corner_shift, "corner_shift", minimum=0.0, maximum=0.25)
        check_real(self.colour, "colour", minimum=0.0, maximum=1.0)


class TwoViews(NamedTuple):
    """first, second : (s, s, 3) uint8. points : (m, 4) float32, rows (x, y) of the first view and
    (x, y) of the second where both show the same spot; pixel centres at integers.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    points: NDArray[np.float32]


class _Crop(NamedTuple):
    """A perspective crop. matrix : (3, 3), view to photo, both with their corner at 0; side : of
    the crop, in pixels of the photo; centre : of it.
    """

    matrix: NDArray[np.float64]
    side: float
    centre: NDArray[np.float64]


def views_of_photo(
    photo: NDArray[np.uint8],
    centres: NDArray[np.float64],
    views: PairViews,
    rng: np.random.Generator,
) -> TwoViews:
    """Return two views of one photo (h, w, 3).

    centres : (n, 2), points of the first view that are looked for in the second, in its pixels.
    """
    size = np.array([photo.shape[1], photo.shape[0]], np.float64)
    short = float(size.min())
    side = short * np.exp(rng.uniform(np.log(views.min_crop), 0.0))
    free = np.maximum(size - side, 0.0)
    first = _crop(
        views, rng, centre=np.minimum(side, size) / 2 + rng.uniform(0, 1, 2) * free, side=side
    )
    other = side * np.exp(rng.uniform(-1, 1) * np.log(views.zoom))
    other = float(np.clip(other, 0.75 * views.min_crop * short, 1.05 * short))
    shifted = first.centre + rng.normal(0.0, views.shift, 2) * side
    second = _crop(views, rng, centre=shifted, side=other)
    a, b = (_render(photo, crop, views, rng) for crop in (first, second))
    start = centres + 0.5
    spots = _apply(first.matrix, start)
    found = _apply(np.linalg.inv(second.matrix), spots)
    inside = ((spots > 0) & (spots < size)).all(axis=1) & _shown(found, views.side)
    points = np.hstack([start, found])[inside] - 0.5
    return TwoViews(a, b, points.astype(np.float32))


def views_of_matched(
    photo_a: NDArray[np.uint8],
    photo_b: NDArray[np.uint8],
    matches: NDArray[np.float64],
    zoom: float,
    views: PairViews,
    rng: np.random.Generator,
) -> TwoViews:
    """Return a view of each of two photos that show the same thing, both around one of the matches.

    matches : (m, 4), rows (x, y) in the first photo and (x, y) in the second, pixel centres at
        integers. zoom : pixels of the second photo for one of the first.
    """
    short = min(photo_a.shape[:2])
    side = max(short * np.exp(rng.uniform(np.log(views.min_crop), 0.0)), _LEAST_CROP_PIXELS)
    middle = matches[rng.integers(len(matches))] + 0.5
    jitter = rng.normal(0.0, _MATCHED_SHIFT, 4) * side
    first = _crop(views, rng, centre=middle[:2] + jitter[:2], side=side)
    other = side * zoom * np.exp(rng.uniform(-1, 1) * np.log(_MATCHED_ZOOM))
    second = _crop(views, rng, centre=middle[2:] + jitter[2:] * zoom, side=float(other))
    a, b = _render(photo_a, first, views, rng), _render(photo_b, second, views, rng)
    left = _apply(np.linalg.inv(first.matrix), matches[:, :2] + 0.5)
    right = _apply(np.linalg.inv(second.matrix), matches[:, 2:] + 0.5)
    rows = np.flatnonzero(_shown(left, views.side) & _shown(right, views.side))
    if len(rows) > _MAX_POINTS:
        rows = np.sort(rng.permutation(rows)[:_MAX_POINTS])
    points = np.hstack([left, right])[rows] - 0.5
    return TwoViews(a, b, points.astype(np.float32))


def _crop(
    views: PairViews, rng: np.random.Generator, *, centre: NDArray[np.float64], side: float
) -> _Crop:
    turn = np.deg2rad(rng.uniform(-views.turn, views.turn))
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    unit = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
    corners = unit * side / 2 @ rotation
    corners += rng.uniform(-views.corner_shift, views.corner_shift, (4, 2)) * side + centre
    return _Crop(_homography((unit + 1) * views.side / 2, corners), float(side), centre)


def _homography(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the perspective map of four points on four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(start, end):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def _apply(matrix: NDArray[Any], xy: NDArray[Any]) -> NDArray[np.float64]:
    moved = xy @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(moved[:, :2] / moved[:, 2:])


def _shown(xy: NDArray[np.float64], side: int) -> NDArray[np.bool_]:
    return np.asarray(((xy > _MARGIN) & (xy < side - _MARGIN)).all(axis=1))


def _render(
    photo: NDArray[np.uint8], crop: _Crop, views: PairViews, rng: np.random.Generator
) -> NDArray[np.uint8]:
    image = Image.fromarray(photo)
    size = image.size
    # Resampling through a perspective does not antialias: shrink first, so that it hardly shrinks.
    if crop.side > 1.25 * views.side:
        share = views.side / crop.side
        image = image.resize(
            (max(MIN_SQUARE, round(size[0] * share)), max(MIN_SQUARE, round(size[1] * share))),
            Image.Resampling.BICUBIC,
        )
    matrix = np.diag([image.width / size[0], image.height / size[1], 1.0]) @ crop.matrix
    matrix /= matrix[2, 2]
    view = image.transform(
        (views.side, views.side),
        Image.Transform.PERSPECTIVE,
        tuple(matrix.ravel()[:8]),
        resample=Image.Resampling.BICUBIC,
    )
    amount = views.colour
    return recolour(np.asarray(view), amount, rng) if amount > 0 else np.asarray(view)
