"""Laplacian-of-Gaussian keypoints: extrema over place and scale, with an orientation each.

Octaves of Gaussian images, `INTERVALS` levels to an octave, each octave at half the size of the
one before. At a level of standard deviation sigma the response is sigma^2 times the Laplacian of
the Gaussian image, which is comparable between scales (Lindeberg). A keypoint is a pixel whose
response is above or below that of its 26 neighbours in place and scale, moved to the vertex of
the fitted quadric; those on straight edges are dropped. Its orientations are the peaks of the
histogram of gradient directions around it, weighted by magnitude and distance.

Pixel centres lie at integers throughout; a pixel of octave o lies at 2^o times its position.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

INTERVALS = 3
BASE_SIGMA = 1.6
INPUT_SIGMA = 0.5  # blur that a photo is taken to have
MIN_OCTAVE_SIDE = 16
EDGE_RATIO = 10.0  # largest ratio of the principal curvatures of the response
N_ORIENTATION_BINS = 36
_SECOND_PEAK = 0.8
_ORIENTATION_RADIUS = 4.5  # in units of sigma; the weight's deviation is a third
_ORIENTATION_GRID = 13


class Octave(NamedTuple):
    """One octave: Gaussian images (INTERVALS + 2, h, w) float32, level i of deviation sigmas[i].

    step : photo pixels between two pixels of the octave. Sigmas are in pixels of the octave.
    """

    images: NDArray[np.float32]
    sigmas: NDArray[np.float64]
    step: float


class Keypoints(NamedTuple):
    """Keypoints of one photo, strongest first; a place with two orientations is there twice.

    xy (n, 2) float64 : pixels of the photo. sigmas (n,) : pixels of the photo. angles (n,) : of
    the gradient, radians, from x towards y. responses (n,) : magnitudes. octaves, levels (n,)
    int : where each was found.
    """

    xy: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    angles: NDArray[np.float64]
    responses: NDArray[np.float64]
    octaves: NDArray[np.int64]
    levels: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Keypoints:
        """Return some of them, in that order."""
        fields: list[Any] = [values[rows] for values in self]
        return Keypoints(*fields)


def build_octaves(grey: NDArray[np.float32]) -> list[Octave]:
    """Return the octaves of a grey photo (h, w) float32, finest first."""
    sigmas = BASE_SIGMA * 2.0 ** (np.arange(INTERVALS + 2) / INTERVALS)
    increments = np.sqrt(np.diff(sigmas**2))
    base = _blur(grey, float(np.sqrt(BASE_SIGMA**2 - INPUT_SIGMA**2)))
    octaves: list[Octave] = []
    step = 1.0
    while min(base.shape) >= MIN_OCTAVE_SIDE:
        images = np.empty((len(sigmas), *base.shape), np.float32)
        images[0] = base
        for i, increment in enumerate(increments, start=1):
            images[i] = _blur(images[i - 1], float(increment))
        octaves.append(Octave(images, sigmas, step))
        base = images[INTERVALS, ::2, ::2]  # deviation 2 BASE_SIGMA, so BASE_SIGMA after halving
        step *= 2.0
    return octaves


def detect(octaves: list[Octave], *, threshold: float, max_keypoints: int) -> Keypoints:
    """Return the strongest keypoints of a photo with their orientations.

    threshold : smallest magnitude of the scale-normalised response, for photos in 0 ... 1.
    max_keypoints : places kept (some have two orientations); ties go to the finer scale, then to
        the row-major pixel.
    """
    found = [_extrema(octave, i, threshold) for i, octave in enumerate(octaves)]
    if not found:
        return _none()
    fields: list[Any] = [np.concatenate(parts) for parts in zip(*found)]
    places = Keypoints(*fields)
    order = np.argsort(-places.responses, kind="stable")[:max_keypoints]
    return _with_orientations(places.take(order), octaves)


def sample(
    image: NDArray[np.float32], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Return an image's values at positions, bilinear; positions outside take the border's."""
    height, width = image.shape
    x = np.clip(x, 0.0, width - 1.0)
    y = np.clip(y, 0.0, height - 1.0)
    left = np.minimum(x.astype(np.int64), width - 2)
    top = np.minimum(y.astype(np.int64), height - 2)
    fx = (x - left).astype(np.float32)
    fy = (y - top).astype(np.float32)
    flat = image.ravel()
    at = top * width + left
    upper = flat[at] * (1 - fx) + flat[at + 1] * fx
    lower = flat[at + width] * (1 - fx) + flat[at + width + 1] * fx
    values: NDArray[np.float32] = upper * (1 - fy) + lower * fy
    return values


def _blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    blurred: NDArray[np.float32] = ndimage.gaussian_filter(
        image, sigma, mode="nearest", truncate=3.5
    )
    return blurred


def _responses(octave: Octave) -> NDArray[np.float32]:
    """Return sigma^2 times the Laplacian (nine-point stencil) of each level, zero at the border."""
    g = octave.images
    result = np.zeros_like(g)
    centre = g[:, 1:-1, 1:-1]
    cross = g[:, :-2, 1:-1] + g[:, 2:, 1:-1] + g[:, 1:-1, :-2] + g[:, 1:-1, 2:]
    corners = g[:, :-2, :-2] + g[:, :-2, 2:] + g[:, 2:, :-2] + g[:, 2:, 2:]
    inner = (4.0 * cross + corners - 20.0 * centre) / np.float32(6.0)
    result[:, 1:-1, 1:-1] = inner * (octave.sigmas**2).astype(np.float32)[:, None, None]
    return result


def _extrema(octave: Octave, number: int, threshold: float) -> tuple[NDArray[np.generic], ...]:
    """Return the fields of Keypoints (angles zero) for one octave."""
    response = _responses(octave)
    height, width = response.shape[1:]
    inner = np.abs(response[1:-1, 2:-2, 2:-2]) > 0.8 * threshold
    level, row, column = np.nonzero(inner)
    at = ((level + 1) * height + row + 2) * width + column + 2
    flat = response.ravel()
    # A minimum is a maximum of the negative.
    sign = np.sign(flat[at])
    for dl in (0, -1, 1):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                offset = (dl * height + dy) * width + dx
                if offset == 0:
                    continue
                kept = sign * (flat[at] - flat[at + offset]) > 0
                at, sign = at[kept], sign[kept]
    shift, value, on_edge = _fit_quadric(flat, at, height, width)
    good = (np.abs(shift).max(axis=1, initial=0.0) <= 1.0) & ~on_edge
    good &= np.abs(value) >= threshold
    at, shift, value = at[good], shift[good], value[good]
    level, place = np.divmod(at, height * width)
    row, column = np.divmod(place, width)
    xy = np.stack([column + shift[:, 0], row + shift[:, 1]], axis=1) * octave.step
    sigmas = BASE_SIGMA * 2.0 ** ((level + shift[:, 2]) / INTERVALS) * octave.step
    return (
        xy,
        sigmas,
        np.zeros(len(at)),
        np.abs(value),
        np.full(len(at), number, np.int64),
        level.astype(np.int64),
    )


def _fit_quadric(
    flat: NDArray[np.float32], at: NDArray[np.int64], height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the vertex (n, 3) as (x, y, level) from the pixel, its value, and what is an edge."""
    steps = (1, width, height * width)
    centre = flat[at].astype(np.float64)
    gradient = np.empty((len(at), 3))
    hessian = np.empty((len(at), 3, 3))
    for i, si in enumerate(steps):
        plus, minus = flat[at + si].astype(np.float64), flat[at - si].astype(np.float64)
        gradient[:, i] = (plus - minus) / 2
        hessian[:, i, i] = plus + minus - 2 * centre
        for j, sj in enumerate(steps[:i]):
            mixed = (
                flat[at + si + sj].astype(np.float64)
                - flat[at + si - sj]
                - flat[at - si + sj]
                + flat[at - si - sj]
            ) / 4
            hessian[:, i, j] = hessian[:, j, i] = mixed
    trace = hessian[:, 0, 0] + hessian[:, 1, 1]
    determinant = hessian[:, 0, 0] * hessian[:, 1, 1] - hessian[:, 0, 1] ** 2
    on_edge = trace**2 * EDGE_RATIO >= (EDGE_RATIO + 1) ** 2 * determinant
    # A flat direction has no vertex; the pixel itself stands.
    solvable = np.abs(np.linalg.det(hessian)) > 1e-18
    shift = np.zeros((len(at), 3))
    if solvable.any():
        shift[solvable] = -np.linalg.solve(hessian[solvable], gradient[solvable][..., None])[..., 0]
    value = centre + 0.5 * np.einsum("ni,ni->n", gradient, shift)
    return shift, value, on_edge


def _with_orientations(places: Keypoints, octaves: list[Octave]) -> Keypoints:
    """Return the places with their orientations, in the same order."""
    rows: list[NDArray[np.int64]] = []
    angles: list[NDArray[np.float64]] = []
    for (octave, level), members in group_by_level(places).items():
        some = places.take(members)
        peak_rows, peak_angles = _peaks(_direction_histograms(some, octaves[octave], level))
        rows.append(members[peak_rows])
        angles.append(peak_angles)
    if not rows:
        return places
    row, angle = np.concatenate(rows), np.concatenate(angles)
    order = np.argsort(row, kind="stable")
    return places.take(row[order])._replace(angles=angle[order])


def group_by_level(keypoints: Keypoints) -> dict[tuple[int, int], NDArray[np.int64]]:
    """Return the rows of the keypoints by (octave, level)."""
    pairs = np.stack([keypoints.octaves, keypoints.levels], axis=1)
    return {
        (int(octave), int(level)): np.flatnonzero((pairs == (octave, level)).all(axis=1))
        for octave, level in np.unique(pairs, axis=0)
    }


def _direction_histograms(keypoints: Keypoints, octave: Octave, level: int) -> NDArray[np.float64]:
    """Return (n, N_ORIENTATION_BINS) histograms of gradient directions around the keypoints."""
    image = octave.images[level]
    dy, dx = np.gradient(image)
    line = np.linspace(-_ORIENTATION_RADIUS, _ORIENTATION_RADIUS, _ORIENTATION_GRID)
    grid_x, grid_y = (g.ravel() for g in np.meshgrid(line, line))
    inside = np.hypot(grid_x, grid_y) <= _ORIENTATION_RADIUS
    grid_x, grid_y = grid_x[inside], grid_y[inside]
    weight = np.exp(-0.5 * (grid_x**2 + grid_y**2) / (_ORIENTATION_RADIUS / 3) ** 2)
    sigma = (keypoints.sigmas / octave.step)[:, None]
    x = keypoints.xy[:, :1] / octave.step + sigma * grid_x
    y = keypoints.xy[:, 1:] / octave.step + sigma * grid_y
    gx, gy = sample(dx, x, y), sample(dy, x, y)
    magnitude = np.hypot(gx, gy) * weight
    position = np.arctan2(gy, gx) * (N_ORIENTATION_BINS / (2 * np.pi)) % N_ORIENTATION_BINS
    low = position.astype(np.int64) % N_ORIENTATION_BINS
    fraction = position - np.floor(position)
    first = np.arange(len(sigma))[:, None] * N_ORIENTATION_BINS
    size = len(sigma) * N_ORIENTATION_BINS
    histogram = np.bincount((first + low).ravel(), (magnitude * (1 - fraction)).ravel(), size)
    histogram += np.bincount(
        (first + (low + 1) % N_ORIENTATION_BINS).ravel(), (magnitude * fraction).ravel(), size
    )
    smooth: NDArray[np.float64] = histogram.astype(np.float64)
    smooth = smooth.reshape(len(sigma), N_ORIENTATION_BINS)
    for _ in range(2):
        smooth = (np.roll(smooth, 1, axis=1) + smooth + np.roll(smooth, -1, axis=1)) / 3
    return smooth


def _peaks(histograms: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (row, angle) of the highest peak of each histogram and of a second almost as high."""
    left, right = np.roll(histograms, 1, axis=1), np.roll(histograms, -1, axis=1)
    is_peak = (histograms > left) & (histograms >= right)
    heights = np.where(is_peak, histograms, -1.0)
    order = np.argsort(-heights, axis=1, kind="stable")[:, :2]
    best = np.take_along_axis(heights, order, axis=1)
    kept = best >= _SECOND_PEAK * best[:, :1]
    # A flat histogram has no peak: direction 0.
    kept[:, 0] = True
    kept[:, 1] &= best[:, 1] > 0
    rows, which = np.nonzero(kept)
    bins = order[rows, which]
    a, b, c = left[rows, bins], histograms[rows, bins], right[rows, bins]
    curvature = a - 2 * b + c
    vertex = np.where(curvature < 0, 0.5 * (a - c) / np.where(curvature < 0, curvature, -1.0), 0.0)
    angles = np.asarray((bins + vertex) * (2 * np.pi / N_ORIENTATION_BINS), np.float64)
    return rows.astype(np.int64), angles


def _none() -> Keypoints:
    empty = np.zeros(0)
    whole = np.zeros(0, np.int64)
    return Keypoints(np.zeros((0, 2)), empty, empty, empty, whole, whole)
