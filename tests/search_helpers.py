"""What the tests of index, storage and search share: features, an extractor, photo files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from delfsearch.errors import PhotoError
from delfsearch.features import LocalFeatures
from delfsearch.index.delf_index import DelfIndex
from delfsearch.matches import Matches

DIMENSION = 8


def make_features(rng: np.random.Generator, n: int, dimension: int = DIMENSION) -> LocalFeatures:
    descriptors = rng.normal(size=(n, dimension)).astype(np.float32)
    return LocalFeatures(
        keypoints_xy=rng.uniform(0, 500, (n, 2)),
        descriptors=descriptors,
        scores=rng.uniform(0, 1, n),
        scales=rng.choice([1.0, 1.5, 4.0], n),
        image_size=(640, 480),
    )


def make_collection(seed: int = 0, counts=(30, 0, 41, 7, 55, 1, 24)) -> list[LocalFeatures]:
    rng = np.random.default_rng(seed)
    return [make_features(rng, n) for n in counts]


def as_dict(matches: Matches) -> dict[int, list[tuple]]:
    """What a Matches says, photo by photo, in its order."""
    return {
        int(image_id): [
            (
                int(matches.query_indices[row]),
                int(matches.database_indices[row]),
                *map(float, matches.query_xy[row]),
                *map(float, matches.database_xy[row]),
                float(matches.squared_distances[row]),
            )
            for row in range(matches.offsets[i], matches.offsets[i + 1])
        ]
        for i, image_id in enumerate(matches.image_ids)
    }


def brute_force(index: DelfIndex, query: LocalFeatures, k: int, excluded=()) -> dict:
    """The pairs of every photo, {id: {(query feature, database feature): squared distance}}."""
    owners, numbers, decoded = [], [], []
    for image_id in index.ids:
        if image_id in excluded:
            continue
        descriptors = index.features_of(image_id).descriptors
        owners += [int(image_id)] * len(descriptors)
        numbers += range(len(descriptors))
        decoded.append(descriptors)
    differences = query.descriptors[:, None, :].astype(np.float64) - np.concatenate(decoded)[None]
    squared = (differences**2).sum(axis=2)
    pairs: dict[int, dict] = {}
    for q, row in enumerate(squared):
        for at in np.argsort(row, kind="stable")[:k]:
            pairs.setdefault(owners[at], {})[q, numbers[at]] = row[at]
    return pairs


def same_matches(a: Matches, b: Matches) -> bool:
    return list(as_dict(a)) == list(as_dict(b)) and as_dict(a) == as_dict(b)


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file in a folder, by relative name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class PatchExtractor(BaseEstimator):
    """An extractor with DelfExtractor's contract and no network: rotated grey patches on a grid."""

    def __init__(self, step: int = 8, device: str = "auto") -> None:
        self.step = step
        self.device = device

    def fit(self, photos, y=None):
        # What is learned depends on the photos, as a PCA would.
        basis = np.random.default_rng(len(list(photos))).normal(size=(16, DIMENSION))
        self.basis_ = np.linalg.qr(basis)[0].astype(np.float32)
        return self

    def get_state(self):
        if not hasattr(self, "basis_"):
            raise NotFittedError("fit first")
        return self.get_params(), {"basis": self.basis_}

    @classmethod
    def from_state(cls, params, arrays):
        extractor = cls(**params)
        extractor.basis_ = np.array(arrays["basis"])
        return extractor

    def transform(self, photos):
        found = []
        for _, result in self.stream(photos):
            if isinstance(result, PhotoError):
                raise result
            found.append(result)
        return found

    def stream(self, photos):
        for photo in photos:
            try:
                yield photo, self._extract(photo)
            except (UnidentifiedImageError, OSError) as error:
                yield photo, PhotoError(f"photo cannot be read: {type(error).__name__}")

    def _extract(self, photo) -> LocalFeatures:
        image = photo if isinstance(photo, Image.Image) else Image.open(photo)
        grey = np.asarray(image.convert("L"), np.float32) / 255
        height, width = grey.shape
        ys, xs = np.mgrid[0 : height - 4 : self.step, 0 : width - 4 : self.step]
        if xs.size == 0:
            return LocalFeatures.empty(DIMENSION, (width, height))
        windows = np.lib.stride_tricks.sliding_window_view(grey, (4, 4))
        patches = windows[ys.ravel(), xs.ravel()].reshape(xs.size, 16)
        descriptors = (patches - patches.mean(axis=1, keepdims=True)) @ self.basis_
        return LocalFeatures(
            keypoints_xy=np.column_stack([xs.ravel() + 1.5, ys.ravel() + 1.5]),
            descriptors=descriptors,
            image_size=(width, height),
        )


def make_photos(folder: Path, n: int, *, seed: int = 0, size=(96, 72)) -> list[Path]:
    """Write n different photos with non-ASCII names, half of them in a subfolder."""
    rng = np.random.default_rng(seed)
    (folder / "été").mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(n):
        path = folder / ("été" if i % 2 else ".") / f"фото-{i:02d}.png"
        pixels = rng.integers(0, 256, (size[1], size[0]), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths
