"""Candidates with a known answer."""

from __future__ import annotations

import numpy as np

from delfsearch import Matches

WIDTH_HEIGHT = np.array([1024.0, 768.0])


def affine(scale=1.0, rotation_deg=0.0, stretch=1.0, shift=(0.0, 0.0)):
    """A (2, 3) map about the middle of the photo; stretch is the ratio of its singular values."""
    turn = np.deg2rad(rotation_deg)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = scale * rotation @ np.diag([stretch**0.5, stretch**-0.5])
    centre = WIDTH_HEIGHT / 2
    return np.hstack([linear, (centre + np.asarray(shift) - linear @ centre)[:, None]])


def apply(matrix, xy):
    return xy @ matrix[:, :2].T + matrix[:, 2]


def candidate(rng, n, n_true, matrix=None, noise=0.0):
    """n matches (query_xy, database_xy) of which the first n_true follow matrix."""
    query = rng.uniform(0, WIDTH_HEIGHT, (n, 2))
    database = rng.uniform(0, WIDTH_HEIGHT, (n, 2))
    if n_true:
        database[:n_true] = apply(matrix, query[:n_true]) + rng.normal(0, noise, (n_true, 2))
    return query.astype(np.float32), database.astype(np.float32)


def pack(candidates, image_ids=None):
    """Matches of several candidates, every match between keypoints of its own."""
    sizes = [len(query) for query, _ in candidates]
    numbers = np.concatenate([np.arange(n) for n in sizes]).astype(np.int32)
    ids = np.arange(len(candidates)) if image_ids is None else np.asarray(image_ids)
    return Matches(
        image_ids=ids.astype(np.int64),
        offsets=np.cumsum([0, *sizes]).astype(np.int64),
        query_indices=numbers,
        database_indices=numbers,
        query_xy=np.concatenate([query for query, _ in candidates]).astype(np.float32),
        database_xy=np.concatenate([database for _, database in candidates]).astype(np.float32),
        squared_distances=np.ones(len(numbers), np.float32),
    )


def mixed_matches(seed=0, n_candidates=40):
    """Some true candidates of many shapes, mostly false ones, hubs among them."""
    rng = np.random.default_rng(seed)
    candidates = []
    for i in range(n_candidates):
        n = int(rng.integers(3, 200))
        if i % 5 == 0:
            matrix = affine(rng.uniform(0.6, 1.6), rng.uniform(-30, 30), rng.uniform(1, 1.4))
            candidates.append(candidate(rng, n + 20, n // 2 + 12, matrix, noise=2.0))
        else:
            query, database = candidate(rng, n, 0)
            if i % 5 == 1:  # hubs: few database keypoints
                database = database[rng.integers(0, max(1, n // 20), n)]
            candidates.append((query, database))
    matches = pack(candidates)
    distances = rng.uniform(0.2, 1.2, len(matches.squared_distances)).astype(np.float32)
    return Matches(**{**vars(matches), "squared_distances": distances})
