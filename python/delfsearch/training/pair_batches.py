"""Batches of two views each, for contrastive training.

What a step sees depends on (random_state, epoch, place in the epoch, photo), as in batches.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delfsearch.errors import DatasetError, PhotoError
from delfsearch.training.batches import Plan
from delfsearch.training.draws import Purpose, generator
from delfsearch.training.labelled import LabelledPhotos
from delfsearch.training.matched_photos import MatchedPhotos
from delfsearch.training.photo_store import PhotoStore
from delfsearch.training.two_views import PairViews, TwoViews, views_of_matched, views_of_photo


class PairBatch(NamedTuple):
    """inputs : (2 b, s, s, 3) uint8, the first views of b pairs and then their second views.

    points (m, 4) float32 : (x, y) in the first view and in the second, pixel centres at integers.
    pair_of (m,) int64 : the pair of each row of points, in order. classes (b,) int64.
    """

    inputs: Tensor
    points: Tensor
    pair_of: Tensor
    classes: Tensor

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """What the model takes."""
        return tuple(self)


def pairs_among(matched: MatchedPhotos, photos: LabelledPhotos) -> list[tuple[int, int, int]]:
    """Return (pair, row, row) of the matched pairs of which both photos are there.

    Raises DatasetError where there is none: matched is of other photos.
    """
    row_of = {path: row for row, path in enumerate(photos.paths)}
    rows = [row_of.get(name, -1) for name in matched.names]
    pairs = [
        (pair, rows[a], rows[b])
        for pair, (a, b) in enumerate(matched.pairs.tolist())
        if rows[a] >= 0 and rows[b] >= 0
    ]
    if not pairs:
        raise DatasetError(
            f"none of {len(matched)} matched pairs is of the {len(photos)} photos of "
            f"{photos.source}: match these photos"
        )
    return pairs


class PairBatches:
    """Makes the batch of a step: two views for each place of the plan.

    centres : (n,) of the cells along an axis of a view. The rest as in ContrastiveTrainer.
    """

    def __init__(
        self,
        plan: Plan,
        photos: LabelledPhotos,
        store: PhotoStore,
        views: PairViews,
        centres: NDArray[np.float64],
        *,
        matched: MatchedPhotos | None,
        matched_share: float,
        random_state: int,
    ) -> None:
        self._plan = plan
        self._photos = photos
        self._store = store
        self._views = views
        self._cells = np.stack(np.meshgrid(centres, centres), -1).reshape(-1, 2)
        self._share = matched_share
        self._seed = random_state
        self._matched = matched
        self._pairs = [] if matched is None else pairs_among(matched, photos)
        by_class: dict[int, list[int]] = {}
        for i, (_, row, _) in enumerate(self._pairs):
            by_class.setdefault(int(photos.labels[row]), []).append(i)
        self._by_class = [by_class[label] for label in sorted(by_class)]

    def __call__(self, step: int) -> PairBatch:
        """Return the batch of a step; what cannot be read is grey and has no points."""
        epoch, places, rows = self._plan.step(step)
        side, b = self._views.side, len(rows)
        inputs = np.full((2 * b, side, side, 3), 128, np.uint8)
        points, counts, classes = [], np.zeros(b, np.int64), np.zeros(b, np.int64)
        for i, (place, row) in enumerate(zip(places.tolist(), rows.tolist())):
            rng = generator(self._seed, Purpose.VIEW, epoch, place, row)
            try:
                label, made = self._two_views(row, rng)
            except PhotoError:
                classes[i] = self._photos.labels[row]
                continue
            inputs[i], inputs[b + i] = made.first, made.second
            points.append(made.points)
            counts[i], classes[i] = len(made.points), label
        joined = np.concatenate(points) if points else np.zeros((0, 4), np.float32)
        return PairBatch(
            torch.from_numpy(inputs),
            torch.from_numpy(joined),
            torch.from_numpy(np.repeat(np.arange(b), counts)),
            torch.from_numpy(classes),
        )

    def _two_views(self, row: int, rng: np.random.Generator) -> tuple[int, TwoViews]:
        if self._by_class and rng.random() < self._share:
            members = self._by_class[int(rng.integers(len(self._by_class)))]
            return self._of_matched(*self._pairs[members[int(rng.integers(len(members)))]], rng)
        views = views_of_photo(self._store.pixels(row), self._cells, self._views, rng)
        return int(self._photos.labels[row]), views

    def _of_matched(
        self, pair: int, row_a: int, row_b: int, rng: np.random.Generator
    ) -> tuple[int, TwoViews]:
        assert self._matched is not None  # it has pairs
        first, second = self._store.pixels(row_a), self._store.pixels(row_b)
        sizes = self._matched.sizes[pair].astype(np.float64)
        # The photos were matched at their own size, and are kept at another.
        a, b = first.shape[1] / sizes[0], second.shape[1] / sizes[2]
        factors = np.array([a, a, b, b])
        matches = (self._matched.points_of(pair) + 0.5) * factors - 0.5
        zoom = float(self._matched.zooms[pair]) * b / a
        views = views_of_matched(first, second, matches, zoom, self._views, rng)
        return int(self._photos.labels[row_a]), views
