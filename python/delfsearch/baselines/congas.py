"""CONGAS-style local features: Laplacian-of-Gaussian keypoints described by Gabor responses.

The paper compares with CONGAS, whose code was never released; what is public of it is its kind:
interest points of the Laplacian of Gaussian, Gabor wavelet responses at their scale and
orientation, 40 dimensions by PCA. This is ours, of that kind, and no claim about the original.

The filter bank, in units of the keypoint's sigma, turned by its orientation:

    wavelength  envelope's deviation  places
    4           2                     centre; 6 at distance 3; 8 at distance 5.5
    8           4                     centre; 6 at distance 4

with 8 orientations (22.5 degrees apart) at each place: 176 filters. A filter is a complex Gabor
function whose mean is taken off and whose energy is 1; the response is the magnitude, which does
not depend on the phase. The responses of each wavelength are scaled to length 1 (the Gaussian
level that they are read from damps short waves), then square-rooted, and the whole to length 1.
Sources: Neven, Rose, Macready, "Image recognition with an adiabatic quantum computer" (kind of
feature); Sec. 5.3 (CONGAS with 40-D descriptors). Differs: the bank is ours.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from delfsearch._validation import check_real
from delfsearch.baselines.local_system import Detector, LocalSystem, grey_of
from delfsearch.baselines.scale_space import (
    BASE_SIGMA,
    Keypoints,
    Octave,
    build_octaves,
    detect,
    group_by_level,
    sample,
)
from delfsearch.features import LocalFeatures

N_ORIENTATIONS = 8
# (wavelength, deviation of the envelope, rings of places as (number, distance)), in sigmas.
LAYERS = (
    (4.0, 2.0, ((1, 0.0), (6, 3.0), (8, 5.5))),
    (8.0, 4.0, ((1, 0.0), (6, 4.0))),
)
PATCH_RADIUS = 7.5  # in sigmas
PATCH_SIDE = 21  # samples


class GaborBank(NamedTuple):
    """The filters, to be applied to patches as one matrix product.

    offsets : (p, 2) float64, places of a patch's samples in sigmas. even, odd : (p, f) float32,
    real and imaginary parts. blocks : first and last + 1 filter of each wavelength.
    """

    offsets: NDArray[np.float64]
    even: NDArray[np.float32]
    odd: NDArray[np.float32]
    blocks: tuple[tuple[int, int], ...]

    def describe(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return descriptors (n, f) float32 of length 1 of patches (n, p); zeros of flat ones."""
        centred = patches - patches.mean(axis=1, keepdims=True)
        responses: NDArray[np.float32] = np.hypot(centred @ self.even, centred @ self.odd)
        for start, stop in self.blocks:
            block = responses[:, start:stop]
            block /= np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-6)
        np.sqrt(responses, out=responses)
        responses /= np.maximum(np.linalg.norm(responses, axis=1, keepdims=True), 1e-6)
        return responses


@cache
def gabor_bank() -> GaborBank:
    """Return the filter bank of the module's table."""
    line = np.linspace(-PATCH_RADIUS, PATCH_RADIUS, PATCH_SIDE)
    offsets = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    filters: list[NDArray[np.complex128]] = []
    blocks = []
    for wavelength, deviation, rings in LAYERS:
        start = len(filters)
        for number, distance in rings:
            for turn in 2 * np.pi * np.arange(number) / number:
                place = distance * np.array([np.cos(turn), np.sin(turn)])
                for angle in np.pi * np.arange(N_ORIENTATIONS) / N_ORIENTATIONS:
                    filters.append(_gabor(offsets - place, wavelength, deviation, angle))
        blocks.append((start, len(filters)))
    matrix = np.stack(filters, axis=1)
    return GaborBank(
        offsets,
        np.ascontiguousarray(matrix.real, np.float32),
        np.ascontiguousarray(matrix.imag, np.float32),
        tuple(blocks),
    )


class CongasExtractor(LocalSystem):
    """Extract CONGAS-style features, see the module.

    threshold : smallest |sigma^2 Laplacian| of a keypoint, for photos in 0 ... 1.
    max_features : places kept; one in four has two orientations and gives two features, so that a
        photo may have somewhat more.
    n_components : dimensions kept by PCA, as fit learned it; None keeps the 176 responses.
    max_side, n_fit_photos, n_jobs, random_state : see LocalSystem.
    """

    name = "congas"

    def __init__(
        self,
        *,
        max_side: int | None = 1024,
        max_features: int = 1000,
        threshold: float = 0.01,
        n_components: int | None = 40,
        n_fit_photos: int = 200,
        n_jobs: int | None = -1,
        random_state: Any = 0,
    ) -> None:
        self.max_side = max_side
        self.max_features = max_features
        self.threshold = threshold
        self.n_components = n_components
        self.n_fit_photos = n_fit_photos
        self.n_jobs = n_jobs
        self.random_state = random_state

    @property
    def suggested_min_inliers(self) -> int | None:  # type: ignore[override]
        """min_inliers for the Verifier, docs/baselines.md; None where it was not measured."""
        return 19 if self.n_components == 40 else None

    @property
    def ran(self) -> str:
        """What actually runs, for the caption of a table."""
        reduced = "" if self.n_components is None else f", PCA to {self.n_components}"
        n = len(gabor_bank().even[0])
        return f"CONGAS-style features of ours: LoG keypoints, {n} Gabor magnitudes{reduced}"

    def _detector(self) -> Detector:
        threshold = check_real(self.threshold, "threshold", minimum=0.0, exclusive_minimum=True)
        limit = self.max_features

        def detector(image: Image.Image) -> LocalFeatures:
            octaves = build_octaves(grey_of(image))
            keypoints = detect(octaves, threshold=threshold, max_keypoints=limit)
            return LocalFeatures(
                keypoints.xy.astype(np.float32),
                describe(keypoints, octaves),
                keypoints.responses.astype(np.float32),
                (keypoints.sigmas / BASE_SIGMA).astype(np.float32),
                image.size,
            )

        return detector


def describe(keypoints: Keypoints, octaves: list[Octave]) -> NDArray[np.float32]:
    """Return the Gabor descriptors (n, 176) float32 of keypoints, unreduced."""
    bank = gabor_bank()
    descriptors = np.zeros((len(keypoints.xy), bank.even.shape[1]), np.float32)
    u, v = bank.offsets.T
    for (number, level), rows in group_by_level(keypoints).items():
        octave, some = octaves[number], keypoints.take(rows)
        sigma = (some.sigmas / octave.step)[:, None]
        cos, sin = np.cos(some.angles)[:, None], np.sin(some.angles)[:, None]
        x = some.xy[:, :1] / octave.step + sigma * (cos * u - sin * v)
        y = some.xy[:, 1:] / octave.step + sigma * (sin * u + cos * v)
        descriptors[rows] = bank.describe(sample(octave.images[level], x, y))
    return descriptors


def _gabor(
    offsets: NDArray[np.float64], wavelength: float, deviation: float, angle: float
) -> NDArray[np.complex128]:
    envelope = np.exp(-0.5 * (offsets**2).sum(axis=1) / deviation**2)
    along = offsets @ np.array([np.cos(angle), np.sin(angle)])
    wave = np.exp(2j * np.pi / wavelength * along)
    filter_ = envelope * (wave - (envelope * wave).sum() / envelope.sum())
    result: NDArray[np.complex128] = filter_ / np.linalg.norm(filter_)
    return result
